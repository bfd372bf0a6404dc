from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from app.api.openapi import describe_problems, problem_responses
from app.api.problems import problem_response
from app.errors import InvalidInput

PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


class Order(BaseModel):
    name: str


@pytest.fixture
def document() -> dict[str, Any]:
    app = FastAPI()
    describe_problems(app)

    @app.post("/orders", responses=problem_responses(401, 409))
    async def order(body: Order) -> Order:
        return body

    @app.get("/plain", responses={422: {"description": "ours", "content": {"text/plain": {}}}})
    async def plain(limit: int = 1) -> int:
        return limit

    @app.get("/nothing")
    async def nothing() -> None:
        return None

    return app.openapi()


def test_declared_problems_have_their_media_type(document: dict[str, Any]) -> None:
    responses = document["paths"]["/orders"]["post"]["responses"]
    assert responses["401"] == {"description": "Unauthorized", "content": PROBLEM}
    assert responses["409"] == {"description": "Conflict", "content": PROBLEM}
    assert responses["200"]["content"].keys() == {"application/json"}


def test_the_errors_of_fastapi_do_not_appear(document: dict[str, Any]) -> None:
    assert document["paths"]["/orders"]["post"]["responses"]["422"]["content"] == PROBLEM
    assert "ValidationError" not in json.dumps(document)


def test_what_a_route_says_of_itself_stays(document: dict[str, Any]) -> None:
    assert document["paths"]["/plain"]["get"]["responses"]["422"]["description"] == "ours"


def test_every_operation_may_answer_with_a_problem(document: dict[str, Any]) -> None:
    assert document["paths"]["/nothing"]["get"]["responses"]["default"]["content"] == PROBLEM


def test_the_schema_fits_the_documents_that_are_sent(document: dict[str, Any]) -> None:
    answer = problem_response({"type": "http", "path": "/x", "headers": []}, InvalidInput("no", pointer="/a"))
    schema = {**document["components"]["schemas"]["Problem"], "components": document["components"]}
    validator = jsonschema_rs.validator_for(schema)
    validator.validate(json.loads(bytes(answer.body)))
    assert not validator.is_valid({"type": "x"})


def test_the_document_is_made_once(document: dict[str, Any]) -> None:
    app = FastAPI()
    describe_problems(app)
    assert app.openapi() is app.openapi()
