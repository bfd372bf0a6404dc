"""A task is declared once, in its decorator; what is wrong with it is said at import."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr

from app.engine.context import TaskContext
from app.engine.policy import RetryPolicy
from app.engine.registry import Catalogue, task
from app.errors import SettingsError, UnknownTask


class Params(BaseModel):
    value: str = ""


@task("test.good", queue="other", timeout=timedelta(minutes=10), retry=RetryPolicy(max_retries=1))
async def good(ctx: TaskContext, params: Params) -> Params:
    """Do what is
    asked for.

    And more.
    """
    return params


def test_a_declaration_holds_the_whole_policy() -> None:
    spec = good.spec
    assert (spec.name, spec.queue, spec.params, spec.retry.max_attempts) == ("test.good", "other", Params, 2)
    assert (spec.limits.soft_s, spec.limits.hard_s) == (540, 600)
    assert spec.summary == "Do what is asked for."
    assert spec.result.validate_python({"value": "x"}) == Params(value="x")
    assert (good.name, repr(good)) == ("test.good", "<Task test.good>")


async def test_a_task_is_called_like_its_function() -> None:
    assert await good(None, Params(value="x")) == Params(value="x")  # type: ignore[arg-type]


async def fine(ctx: TaskContext, params: Params) -> None: ...


def not_async(ctx: TaskContext, params: Params) -> None: ...


async def no_params(ctx: TaskContext) -> None: ...


async def too_many(ctx: TaskContext, params: Params, more: Params) -> None: ...


async def no_model(ctx: TaskContext, params: dict[str, str]) -> None: ...


async def no_annotation(ctx, params) -> None: ...  # type: ignore[no-untyped-def]


async def no_result(ctx: TaskContext, params: Params): ...  # type: ignore[no-untyped-def]


class TwoNames(BaseModel):
    value: str = Field(validation_alias="in", serialization_alias="out")


async def two_names(ctx: TaskContext, params: TwoNames) -> None: ...


@pytest.mark.parametrize(
    ("function", "options", "text"),
    [
        (fine, {"name": "nodot"}, "domain.verb"),
        (fine, {"name": "Test.upper"}, "domain.verb"),
        (fine, {"name": "test."}, "domain.verb"),
        (fine, {"name": "test.x:y"}, "domain.verb"),
        (fine, {"name": "test." + "x" * 100}, "at most 100"),
        (fine, {"queue": "With Blank"}, "queue name in lower case, got 'With Blank'"),
        (fine, {"queue": "a:b"}, "queue name in lower case"),
        (fine, {"queue": ""}, "queue name in lower case"),
        (fine, {"timeout": timedelta()}, "0 < soft limit < timeout"),
        (fine, {"timeout": timedelta(1), "soft_limit": timedelta(2)}, "0 < soft limit < timeout"),
        (not_async, {}, "coroutine function"),
        (no_params, {}, "pydantic model"),
        (too_many, {}, "pydantic model"),
        (no_model, {}, "pydantic model"),
        (no_annotation, {}, "pydantic model"),
        (no_result, {}, "annotated result"),
        (two_names, {}, "'value' to have one alias"),
    ],
)
def test_a_wrong_declaration_is_refused_with_what_is_expected(
    function: Callable[..., Any], options: dict[str, Any], text: str
) -> None:
    options = {"name": "test.wrong", **options}
    with pytest.raises(SettingsError, match=text) as caught:
        task(**options)(function)
    assert repr(options["name"]) in str(caught.value)


def test_a_catalogue_finds_tasks_by_name_and_lists_them_in_order() -> None:
    first = task("test.a")(fine)
    catalogue = Catalogue([good, first], ["default", "other"])
    assert catalogue["test.good"] is good
    assert catalogue.get("test.nobody") is None
    assert [item.name for item in catalogue] == ["test.a", "test.good"]
    assert len(catalogue) == 2
    with pytest.raises(UnknownTask, match=r"'test\.nobody'; known are test\.a, test\.good") as caught:
        catalogue["test.nobody"]
    assert caught.value.pointer == "/task"


def test_a_catalogue_is_collected_from_modules() -> None:
    module = ModuleType("tasks")
    module.good, module.other = good, "no task"  # type: ignore[attr-defined]
    assert [item.name for item in Catalogue.of_modules([module], ["other"])] == ["test.good"]


class Opaque:
    pass


class NoSchema(BaseModel, arbitrary_types_allowed=True):
    value: Opaque


async def no_schema(ctx: TaskContext, params: NoSchema) -> None: ...


def test_a_catalogue_is_checked_when_it_is_made() -> None:
    with pytest.raises(SettingsError, match=r"'test\.good' is declared twice"):
        Catalogue([good, good], ["other"])
    with pytest.raises(SettingsError, match=r"queue 'other' has no lane; expected default"):
        Catalogue([good], ["default"])
    with pytest.raises(SettingsError, match="no JSON schema"):
        Catalogue([task("test.no_schema")(no_schema)], ["default"])


class WithSecret(BaseModel):
    password: SecretStr


async def with_secret(ctx: TaskContext, params: WithSecret) -> None: ...


def test_a_secret_cannot_be_a_parameter() -> None:
    with pytest.raises(SettingsError, match="a parameter is a secret"):
        Catalogue([task("test.with_secret")(with_secret)], ["default"])
