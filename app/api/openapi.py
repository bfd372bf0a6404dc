"""What OpenAPI says about errors: problem documents, under their own media type, at every route."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from app.api.problems import PROBLEM_JSON, FieldError, Problem

_REFERENCE = "#/components/schemas/{model}"
_FASTAPI_ERRORS = ("HTTPValidationError", "ValidationError")


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route, a router or the application that answers so with problem documents."""
    return {status: _response(HTTPStatus(status).phrase) for status in statuses}


def describe_problems(app: FastAPI) -> None:
    """Let the OpenAPI document of `app` name our problem document wherever FastAPI would name its own error shape.

    Every operation also gets a `default` response: a problem can always come.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_problems(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _response(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {PROBLEM_JSON: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}},
    }


def _with_problems(document: dict[str, Any]) -> dict[str, Any]:
    for path in document.get("paths", {}).values():
        for operation in path.values():
            _repair(operation["responses"])
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in _FASTAPI_ERRORS:
        schemas.pop(name, None)
    for model in (Problem, FieldError):
        schemas[model.__name__] = _schema(model)
    return document


def _repair(responses: dict[str, Any]) -> None:
    invalid = responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if invalid.get("$ref") == _REFERENCE.format(model="HTTPValidationError"):
        responses["422"] = _response(HTTPStatus(422).phrase)
    responses.setdefault("default", _response("Any other problem"))


def _schema(model: type[Problem] | type[FieldError]) -> dict[str, Any]:
    schema = model.model_json_schema(mode="serialization", ref_template=_REFERENCE)
    schema.pop("$defs", None)
    return schema
