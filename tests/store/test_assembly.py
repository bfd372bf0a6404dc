"""A script holds what it uses and nothing else, with keys and limits written out."""

from __future__ import annotations

import re

import pytest

from app.store.assembly import INCLUDES, LIBRARIES, LUA_DIR, assemble, assemble_text
from app.store.scripts import limits

NO_SCRIPTS = {"lib", *(name for names in LIBRARIES.values() for name in names)}
NAMES = sorted(path.stem for path in LUA_DIR.glob("*.lua") if path.stem not in NO_SCRIPTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_defines_no_function_that_it_does_not_use(name: str) -> None:
    text = assemble(name, limits())
    for function in re.findall(r"^local function (\w+)", text, re.MULTILINE):
        assert len(re.findall(rf"\b{function}\b", text)) > 1, function


@pytest.mark.parametrize("name", NAMES)
def test_no_table_of_keys_or_limits_is_left(name: str) -> None:
    assert not re.search(r"\b[KL]\.", assemble(name, limits()))


def test_what_a_used_function_uses_is_there_before_it() -> None:
    text = assemble_text("return queue_key(ARGV[1]) .. iso(now())", limits())
    assert text.index("local function now") < text.index("local function iso") < text.index("return queue_key(ARGV")
    assert "local function publish" not in text
    text = assemble_text("settle()", limits())
    assert text.index("local noted") < text.index("local function later(") < text.index("local function settle(")


def test_a_name_that_is_not_there_is_an_error_and_no_empty_key() -> None:
    with pytest.raises(KeyError, match="tsak"):
        assemble_text("return K.tsak", limits())


@pytest.mark.parametrize(("outer", "inner"), [(outer, inner) for outer, names in INCLUDES.items() for inner in names])
def test_an_included_script_is_a_function(outer: str, inner: str) -> None:
    assert f"local function {inner}(ARGV)" in assemble(outer, limits())


def test_enqueuing_a_plain_task_defines_nothing_of_keys() -> None:
    assert "local function look_under_key" in assemble("enqueue_keyed", limits())
    assert not re.search(r"local function (look_under_key|cancel_all|may_pass)", assemble("enqueue", limits()))
