"""Templates: what is found in them, what they are filled with, and that data is never taken for a template."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domains.flows.references import FORMS, MAX_LEVELS, fill, follow, places
from app.errors import InvalidInput

OUTPUT = {"a": [{"b": 1}, "two"], "n": None, "1": "one", "$from": "x"}


@pytest.mark.parametrize(
    ("ref", "value"),
    [
        ("out", OUTPUT),
        ("out.a", OUTPUT["a"]),
        ("out.a.0.b", 1),
        ("out.a.1", "two"),
        ("out.n", None),
        ("out.1", "one"),
        ("out.$from", "x"),
    ],
)
def test_a_reference_leads_to_a_value(ref: str, value: Any) -> None:
    assert follow(ref, OUTPUT) == value


@pytest.mark.parametrize(
    ("ref", "told"),
    [
        ("out.b", "expected 'b' in 'out', which is an object with $from, 1, a, n"),
        ("out.a.2", "expected '2' in 'out.a', which is a list of 2"),
        ("out.a.-1", "expected '-1' in 'out.a'"),
        ("out.a.²", "expected '²' in 'out.a'"),
        ("out.a.١", "expected '١' in 'out.a'"),
        ("out.n.x", "expected 'x' in 'out.n', which is null"),
        ("out.a.1.0", "expected '0' in 'out.a.1', which is a str"),
    ],
)
def test_a_reference_that_leads_nowhere_says_where_it_ends(ref: str, told: str) -> None:
    with pytest.raises(InvalidInput, match="reference") as caught:
        follow(ref, OUTPUT)
    assert told in caught.value.detail


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ({"$from": "x"}, "<x>"),
        ({"a": [{"$from": "x.1"}, 2]}, {"a": ["<x.1>", 2]}),
        ({"$join": ["a ", {"$from": "x"}, 1, None, {"b": [{"$from": "y"}]}]}, 'a <x>1null{"b":["<y>"]}'),
        ({"$join": []}, ""),
        ({"$value": {"$from": "x", "more": 1}}, {"$from": "x", "more": 1}),
        ({"a": {"$value": None}}, {"a": None}),
        ("$from", "$from"),
        ({"a$from": 1}, {"a$from": 1}),
    ],
)
def test_a_template_is_filled(template: Any, filled: Any) -> None:
    assert [place for place in places(template) if place.fault] == []
    assert fill(template, lambda ref: f"<{ref}>") == filled


def test_what_comes_in_is_not_looked_into() -> None:
    assert fill([{"$from": "x"}], lambda ref: {"$from": "secret"}) == [{"$from": "secret"}]


@pytest.mark.parametrize(
    ("template", "pointer", "fault"),
    [
        ({"a": {"$from": 1}}, "/a/$from", "expected a reference"),
        ({"$from": ""}, "/$from", "expected a reference"),
        ({"$from": "a..b"}, "/$from", "expected a reference"),
        ({"$from": "1a"}, "/$from", "expected a reference"),
        ({"$from": "a\n"}, "/$from", "expected a reference"),
        ({"$from": "a", "b": 1}, "", "alone in its object"),
        ({"b": 1, "$value": "a"}, "", "alone in its object"),
        ({"$item": ""}, "", "'$item': expected one of $from, $join, $value"),
        ([{"$join": "a"}], "/0/$join", "expected a list"),
        ({"$join": ["a", {"$rf": 1}]}, "/$join/1", "'$rf'"),
        ({"a/b": {"c~": {"$x": 1}}}, "/a~1b/c~0", "'$x'"),
    ],
)
def test_what_is_wrong_with_a_template_is_told_with_its_place(template: Any, pointer: str, fault: str) -> None:
    (found,) = places(template)
    assert found.pointer == pointer
    assert fault in found.fault


def test_a_template_that_is_too_deep_is_a_fault() -> None:
    deep: Any = 1
    for _ in range(MAX_LEVELS + 1):
        deep = [deep]
    assert ["levels" in place.fault for place in places(deep)] == [True]
    assert list(places(deep[0])) == []


KEYS = st.one_of(st.sampled_from(FORMS), st.text(max_size=3))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.sampled_from(["x", "x.a", "y.0"])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=20,
)


@given(JSON, JSON)
def test_any_json_without_faults_can_be_filled(template: Any, value: Any) -> None:
    found = list(places(template))
    if any(place.fault for place in found):
        return
    asked: list[str] = []

    def look_up(ref: str) -> Any:
        asked.append(ref)
        return follow(ref, value)

    try:
        fill(template, look_up)
    except InvalidInput as error:
        assert asked[-1] in error.detail
    else:
        assert asked == [place.ref for place in found]


@given(JSON)
def test_the_pointer_of_a_place_leads_to_it(template: Any) -> None:
    for place in places(template):
        value = template
        for step in place.pointer.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            value = value[int(key)] if isinstance(value, list) else value[key]
        if not place.fault:
            assert value == {"$from": place.ref}
