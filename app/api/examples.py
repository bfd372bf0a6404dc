"""Examples in the OpenAPI document, whole: FastAPI leaves out every null on the way, also those inside of examples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel


def describe_examples(app: FastAPI, models: Iterable[type[BaseModel]]) -> None:
    """Let the OpenAPI document of `app` show the examples of `models` as they were written."""
    generate = app.openapi
    examples = {model.__name__: model.model_json_schema()["examples"] for model in models}

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document["components"]["schemas"]
        for name, written in examples.items():
            schemas[name]["examples"] = written
        return document

    app.openapi = openapi  # type: ignore[method-assign]
