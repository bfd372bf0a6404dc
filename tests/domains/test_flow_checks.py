"""What is wrong with a flow is said before it runs, with JSON pointers into it."""

from __future__ import annotations

import json
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.domains.flows.checks import MAX_DEPTH, check
from app.domains.flows.models import MAX_NODES, FlowRun, Node
from app.engine.context import TaskContext
from app.engine.registry import Catalogue, task
from app.errors import InvalidInput, TooLarge, UnknownTask


class Page(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: str
    depth: int = Field(1, ge=1)
    tags: list[str] = []
    size: int | list[int] | None = None

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.tags == ["sized"] and self.size is None:
            raise ValueError("expected a size")
        return self


@task("test.page")
async def page(ctx: TaskContext, params: Page) -> Page:
    return params


CATALOGUE = Catalogue([page], ["default"])
A = {"name": "a", "task": "test.page", "params": {"url": "u"}}
REF = {"$from": "a.url"}


def leaf(**params: Any) -> dict[str, Any]:
    return {"task": "test.page", "params": {"url": "u", **params}}


GOOD = [
    leaf(),
    {"sequence": [A, leaf(url=REF)]},
    {
        "sequence": [
            A,
            {"parallel": {"x": leaf(url=REF), "y": {"sequence": [{**A, "name": "b"}, leaf(url={"$from": "b"})]}}},
        ]
    },
    {
        "sequence": [
            A,
            {"name": "m", "map": {"$from": "a.tags"}, "each": leaf(url={"$from": "item"})},
            leaf(tags={"$from": "m"}),
        ]
    },
    {
        "map": [1, 2],
        "as": "n",
        "each": {"map": [{"$from": "n"}], "each": leaf(tags=[{"$from": "n"}, {"$from": "item.x"}])},
    },
    {"parallel": {"x": {"sequence": [A]}, "y": {"sequence": [A, leaf(url=REF)]}}, "limit": 1, "on_error": "collect"},
    {"sequence": [A, {"task": "test.page", "params": {"$from": "a"}}]},
    {"task": "test.page", "params": {"$value": {"url": "$from"}}},
    leaf(url={"$join": ["http://", 1]}),
    {"sequence": [A, leaf(size=[1, REF])]},
    {"sequence": [A, leaf(tags=["sized"], size=REF)]},
]


@pytest.mark.parametrize("form", GOOD, ids=json.dumps)
def test_a_flow_that_can_run_is_accepted(form: Any) -> None:
    node = Node.model_validate(form)
    check(node, "/flow", catalogue=CATALOGUE)
    stored = json.loads(FlowRun(node=node).model_dump_json(by_alias=True))
    assert stored["node"] == form
    assert Node.model_validate(stored["node"]) == node


WRONG = [
    ({"sequence": [leaf(url=REF), A]}, "/f/sequence/0/params/url", "no output 'a' comes before; there are: none"),
    ({"sequence": [{**A, "params": {"url": REF}}]}, "/f/sequence/0/params/url", "no output 'a'"),
    ({"sequence": [A, leaf(url={"$from": "b"})]}, "/f/sequence/1/params/url", "there are: a"),
    ({"parallel": {"a": leaf(), "b": leaf(url=REF)}}, "/f/parallel/b/params/url", "no output 'a'"),
    (
        {"sequence": [{"parallel": {"x": {"sequence": [A]}}}, leaf(url=REF)]},
        "/f/sequence/1/params/url",
        "no output 'a'",
    ),
    ({"sequence": [A, A]}, "/f/sequence/1/name", "'a' is the name of something else already"),
    ({"sequence": [A, {"sequence": [A]}]}, "/f/sequence/1/sequence/0/name", "already"),
    ({"map": [1], "as": "a", "each": {"sequence": [A]}}, "/f/each/sequence/0/name", "already"),
    ({"sequence": [A, {"map": [1], "as": "a", "each": leaf()}]}, "/f/sequence/1/as", "already"),
    ({"map": [1], "each": {"map": [2], "each": leaf()}}, "/f/each/map", "choose with 'as'"),
    ({"map": [1], "each": leaf(), "as": "x", "on_error": "collect", "name": "x"}, None, ""),
    ({"parallel": {"x": A}}, "/f/parallel/x/name", "expected a name only in a sequence"),
    ({"map": [1], "each": A}, "/f/each/name", "expected a name only in a sequence"),
    ({"map": [{"$from": "item"}], "each": leaf()}, "/f/map/0", "no output 'item'"),
    ({"map": {"a": 1}, "each": leaf()}, "/f/map", "expected a list or"),
    ({"map": {"$join": []}, "each": leaf()}, "/f/map", "expected a list or"),
    ({"map": [0] * 10_001, "each": leaf()}, "/f/map", "expected at most 10000 items, got 10001"),
    (leaf(depth=0), "/f/params/depth", "greater than or equal to 1"),
    (leaf(tags=["sized"]), "/f/params", "expected a size"),
    ({"sequence": [A, leaf(url=REF, tags=[1])]}, "/f/sequence/1/params/tags/0", "valid string"),
    (leaf(dpeth=1), "/f/params/dpeth", "Extra inputs"),
    ({"task": "test.page"}, "/f/params/url", "Field required"),
    ({"task": "test.page", "params": {"$value": [1]}}, "/f/params", "expected an object"),
    ({"task": "test.page", "params": {"$join": ["a"]}}, "/f/params", "expected an object"),
    ({"sequence": [A, leaf(url=REF, dpeth=1)]}, "/f/sequence/1/params/dpeth", "Extra inputs"),
    ({"sequence": [A, {"task": "test.page", "params": {"tags": [REF]}}]}, "/f/sequence/1/params/url", "Field required"),
    (leaf(tags=["x", {"$rf": "a"}]), "/f/params/tags/1", "expected one of $from"),
]


@pytest.mark.parametrize(("form", "pointer", "told"), WRONG, ids=[json.dumps(row[0])[:80] for row in WRONG])
def test_what_is_wrong_is_told_with_a_pointer(form: Any, pointer: str | None, told: str) -> None:
    node = Node.model_validate(form)
    if pointer is None:
        check(node, "/f", catalogue=CATALOGUE)
        return
    with pytest.raises(InvalidInput) as caught:
        check(node, "/f", catalogue=CATALOGUE)
    assert (caught.value.pointer, len(caught.value.faults)) == (pointer, 1)
    assert told in caught.value.detail


def test_all_that_is_wrong_is_told_at_once() -> None:
    node = Node.model_validate({"sequence": [leaf(depth=0), leaf(url=REF), {"parallel": {"x": A}}]})
    with pytest.raises(InvalidInput, match="and 2 more") as caught:
        check(node, "/f", catalogue=CATALOGUE)
    assert [pointer for pointer, _ in caught.value.faults] == [
        "/f/sequence/0/params/depth",
        "/f/sequence/1/params/url",
        "/f/sequence/2/parallel/x/name",
    ]


def test_an_unknown_task_is_told_with_a_pointer() -> None:
    with pytest.raises(UnknownTask, match=r"test\.nothing") as caught:
        check(Node.model_validate({"sequence": [A, {"task": "test.nothing"}]}), "/f", catalogue=CATALOGUE)
    assert caught.value.pointer == "/f/sequence/1/task"


def test_parameters_over_their_bound_are_told_with_a_pointer() -> None:
    with pytest.raises(TooLarge, match="1048576") as caught:
        check(Node.model_validate(leaf(url="x" * 1_048_577)), "/f", catalogue=CATALOGUE)
    assert caught.value.pointer == "/f/params"


def nested(levels: int) -> dict[str, Any]:
    form = leaf()
    for _ in range(levels - 1):
        form = {"sequence": [form]}
    return form


def test_depth_and_number_of_nodes_are_bounded() -> None:
    check(Node.model_validate(nested(MAX_DEPTH)), "/f")
    with pytest.raises(InvalidInput, match="at most 8 levels of nodes") as caught:
        check(Node.model_validate(nested(MAX_DEPTH + 1)), "/f")
    assert caught.value.pointer == "/f" + "/sequence/0" * MAX_DEPTH
    check(Node.model_validate({"sequence": [leaf()] * (MAX_NODES - 1)}), "/f")
    with pytest.raises(InvalidInput, match="at most 1000 nodes"):
        check(Node.model_validate({"sequence": [leaf()] * MAX_NODES}), "/f")


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({}, "expected one of task, sequence, parallel, map, got none"),
        ({"task": "a", "sequence": [A]}, "got task and sequence"),
        ({"map": [1]}, "expected 'each'"),
        ({"task": "a", "each": A}, "expected 'each' only with map, not with task"),
        ({"task": "a", "on_error": "finish"}, "expected 'on_error' only with parallel or map"),
        ({"sequence": [A], "on_error": "finish"}, "expected 'on_error' only with"),
        ({"sequence": [A], "params": {}}, "expected 'params' only with task"),
        ({"parallel": {"a": A}, "as": "b"}, "expected 'as' only with map"),
        ({"sequence": []}, "at least 1"),
        ({"parallel": {}}, "at least 1"),
        ({"parallel": {"a.b": A}}, "pattern"),
        ({"task": "a", "name": "1"}, "pattern"),
        ({"task": "a", "limit": 1}, "expected 'limit' only with parallel or map"),
        ({"map": [1], "each": A, "limit": 0}, "greater than or equal"),
        ({"map": [1], "each": A, "limit": 1.0}, "valid integer"),
        ({"map": "a", "each": A}, "valid list"),
        ({"map": [1], "each": A, "as_": "x"}, "Extra inputs"),
    ],
)
def test_a_node_is_of_one_kind(form: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Node.model_validate(form)


def test_what_a_part_needs_from_outside_is_what_it_does_not_make_itself() -> None:
    part = {
        "sequence": [
            {"name": "b", "task": "t", "params": {"x": {"$from": "a.x"}, "y": {"$join": [{"$from": "c"}]}}},
            {"name": "m", "map": {"$from": "b.l"}, "as": "i", "each": leaf(url={"$from": "i"}, tags=[{"$from": "d"}])},
            {"map": {"$from": "item"}, "each": leaf(url={"$from": "item.0"})},
            leaf(url={"$from": "m.0"}),
        ]
    }
    assert Node.model_validate(part).refs() == {"a.x", "c", "d", "item"}


NAMES = st.sampled_from(["a", "b", "item"])
VALUES = st.one_of(st.integers(), st.builds(lambda name: {"$from": name}, NAMES), st.just({"$x": 1}))


def nodes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.builds(lambda node, name: {**node, **({"name": name} if name else {})}, inner, st.none() | NAMES)
    return st.one_of(
        st.fixed_dictionaries({"sequence": st.lists(named, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"parallel": st.dictionaries(NAMES, named, min_size=1, max_size=2)}),
        st.fixed_dictionaries(
            {"map": st.lists(VALUES, max_size=2) | VALUES.filter(lambda v: isinstance(v, dict)), "each": inner}
        ),
    )


LEAVES = st.builds(lambda value: {"task": "test.page", "params": {"url": value}}, VALUES)
FORMS = st.recursive(LEAVES, nodes, max_leaves=8)


@given(FORMS)
def test_any_form_is_accepted_or_refused_with_pointers_that_exist(form: Any) -> None:
    node = Node.model_validate(form)
    try:
        check(node, "", catalogue=CATALOGUE)
    except InvalidInput as error:
        for pointer, _ in error.faults:
            value: Any = form
            for step in pointer.split("/")[1:]:
                value = value[int(step)] if isinstance(value, list) else value[step]
        return
    # Whatever is accepted needs nothing from outside.
    assert node.refs() == frozenset()
