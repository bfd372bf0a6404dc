from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.telemetry import (
    EMPTY_CONTEXT,
    LogContext,
    bind_context,
    clean_correlation_id,
    current_context,
    current_correlation_id,
    new_correlation_id,
    reset_context,
    set_context,
)


@pytest.fixture(autouse=True)
def nothing_bound() -> Iterator[None]:
    token = set_context(EMPTY_CONTEXT)
    yield
    reset_context(token)


def test_binding_adds_to_what_is_bound_and_resetting_takes_it_back() -> None:
    outer = bind_context(correlation_id="c", user_id="u")
    inner = bind_context(task_id="t", user_id="v")
    assert current_context() == LogContext(task_id="t", user_id="v", correlation_id="c")
    reset_context(inner)
    assert current_context() == LogContext(user_id="u", correlation_id="c")
    reset_context(outer)
    assert current_context() == EMPTY_CONTEXT


def test_setting_replaces_everything() -> None:
    bind_context(correlation_id="c")
    set_context(LogContext(task="a.b"))
    assert current_context() == LogContext(task="a.b")
    assert current_correlation_id() is None


async def test_an_asyncio_task_inherits_its_makers_fields_and_keeps_its_own() -> None:
    bind_context(correlation_id="c")

    async def child() -> str | None:
        inherited = current_correlation_id()
        bind_context(correlation_id="of the child")
        return inherited

    assert await asyncio.create_task(child()) == "c"
    assert current_correlation_id() == "c"


@pytest.mark.parametrize("value", ["a", "A-1_b.c:d", "x" * 128])
def test_a_proper_correlation_id_is_kept(value: str) -> None:
    assert clean_correlation_id(value) == value


@pytest.mark.parametrize("value", [None, "", "x" * 129, "a b", "a\n", "a\r\nSet-Cookie: x", "é", "a/b", "a;b", "\x00"])
def test_an_improper_correlation_id_is_replaced(value: str | None) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", clean_correlation_id(value))


@given(st.text())
def test_whatever_comes_in_a_clean_correlation_id_comes_out(value: str) -> None:
    cleaned = clean_correlation_id(value)
    assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", cleaned)
    assert clean_correlation_id(cleaned) == cleaned


def test_new_correlation_ids_differ() -> None:
    assert len({new_correlation_id() for _ in range(100)}) == 100
