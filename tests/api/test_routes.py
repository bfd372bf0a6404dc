"""OpenAPI tells everything of every route: what it is for, what it answers, and its problems."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from app.api.problems import PROBLEM_JSON
from tests.api.running import Operation, documented, operations

PROBLEM = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
TAGS = {tag["name"] for tag in documented()["tags"]}
CONTRACT = {
    "POST /api/tasks": 202,
    "POST /api/tasks/batch": 202,
    "GET /api/tasks": 200,
    "GET /api/tasks/{task_id}": 200,
    "POST /api/tasks/{task_id}/cancel": 202,
    "POST /api/tasks/{task_id}/retry": 202,
    "GET /api/tasks/{task_id}/result": 200,
    "GET /api/tasks/{task_id}/tree": 200,
    "POST /api/flows": 202,
    "GET /api/task-types": 200,
    "GET /api/dead-letters": 200,
    "GET /api/dead-letters/{task_id}": 200,
    "POST /api/dead-letters/{task_id}/replay": 202,
    "DELETE /api/dead-letters/{task_id}": 204,
    "POST /api/dead-letters/replay": 200,
    "POST /api/dead-letters/discard": 200,
    "GET /api/queues": 200,
    "POST /api/queues/{name}/pause": 200,
    "POST /api/queues/{name}/resume": 200,
    "GET /api/schedules": 200,
    "GET /api/schedules/{name}": 200,
    "POST /api/schedules/{name}/trigger": 202,
    "POST /api/schedules/{name}/pause": 200,
    "POST /api/schedules/{name}/resume": 200,
    "GET /api/workers": 200,
    "GET /api/quotas": 200,
    "POST /api/tickets": 201,
    "GET /healthz": 200,
    "GET /readyz": 200,
    "GET /metrics": 200,
    "GET /jobs/{task_id}": 200,
}


@pytest.mark.parametrize("name", CONTRACT)
def test_the_contract_is_served(name: str) -> None:
    (operation,) = [one for one in operations() if str(one) == name]
    assert str(CONTRACT[name]) in operation.spec["responses"]


@pytest.mark.parametrize("operation", operations(), ids=str)
def test_a_route_says_what_it_is_for(operation: Operation) -> None:
    assert operation.spec["summary"]
    assert operation.spec["description"]
    assert set(operation.spec["tags"]) <= TAGS
    assert len(operation.spec["tags"]) == 1


@pytest.mark.parametrize("operation", operations(), ids=str)
def test_a_route_documents_its_problems(operation: Operation) -> None:
    responses = operation.spec["responses"]
    parameters = operation.spec.get("parameters", [])
    expected = {"default"}
    if not operation.is_open:
        assert operation.spec["security"] == [{"bearer": []}]
        expected |= {"401", "403"}
    if "{" in operation.path:
        expected |= {"404"}
    if parameters or "requestBody" in operation.spec:
        expected |= {"422"}
    if "requestBody" in operation.spec:
        expected |= {"413"}
    assert expected <= set(responses)
    for status, answer in responses.items():
        if status == "default" or int(status) >= 400:
            assert answer["content"] == PROBLEM


@pytest.mark.parametrize("operation", operations(), ids=str)
def test_what_a_route_answers_has_a_schema_and_an_example(operation: Operation) -> None:
    for status, answer in operation.spec["responses"].items():
        if status[0] == "2" and "application/json" in answer.get("content", {}):
            schema = answer["content"]["application/json"]["schema"]
            if operation.path.endswith("/result"):
                continue  # what a task returns: any JSON
            assert examples_of(schema)


def examples_of(schema: dict[str, Any]) -> list[Any]:
    """The examples of a schema; of a list, those of its items."""
    model = resolved(schema)
    if "items" in model.get("properties", {}):
        return examples_of(model["properties"]["items"]["items"])
    return list(model.get("examples", []))


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    return dict(documented()["components"]["schemas"][schema["$ref"].rpartition("/")[2]])


MODELS = [name for name, model in documented()["components"]["schemas"].items() if "examples" in model]


@pytest.mark.parametrize("name", MODELS)
def test_an_example_fits_its_schema(name: str) -> None:
    schema = documented()["components"]["schemas"][name]
    validator = jsonschema_rs.validator_for({**schema, "components": documented()["components"]})
    for example in schema["examples"]:
        validator.validate(example)


def test_the_security_scheme_is_bearer() -> None:
    scheme = documented()["components"]["securitySchemes"]["bearer"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
