"""The JSON form of a flow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StrictInt,
    StringConstraints,
    model_serializer,
    model_validator,
)

from app.domains.flows.references import NAME, name_of, places
from app.engine.registry import MAX_NAME_LENGTH
from app.engine.submissions import HIGHEST_PRIORITY
from app.engine.waits import MAX_CHILDREN, OnError

MAX_NODES = 1_000
"""Of a flow, those of all levels."""
ITEM = "item"
"""What the item of a map is called where the map does not say."""

Kind = Literal["task", "sequence", "parallel", "map"]
KINDS: tuple[Kind, ...] = ("task", "sequence", "parallel", "map")
ONLY_WITH: dict[str, tuple[Kind, ...]] = {
    "params": ("task",),
    "each": ("map",),
    "as": ("map",),
    "limit": ("parallel", "map"),
    "on_error": ("parallel", "map"),
}
"""The members that belong to some kinds of nodes only."""

Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]


class Node(BaseModel):
    """A part of a flow, of one of four kinds: `task`, `sequence`, `parallel` or `map`.

    In `params` and in `map` an object `{"$from": "name.member.0"}` stands for (a part of) the output of that name.
    """

    model_config = ConfigDict(extra="forbid", validate_by_name=False)

    name: Name | None = Field(None, description="In a sequence: what later nodes call its output.")
    task: str | None = Field(None, min_length=1, max_length=MAX_NAME_LENGTH, description="A task to run.")
    params: dict[str, Any] | None = Field(None, description="Of the task, as its own schema wants them.")
    sequence: list[Node] | None = Field(
        None,
        min_length=1,
        max_length=MAX_NODES,
        description="Nodes, one after the other; its output is that of the last one.",
    )
    parallel: dict[Name, Node] | None = Field(
        None,
        min_length=1,
        max_length=MAX_NODES,
        description="Nodes that run at once; its output is an object of theirs.",
    )
    map: list[Any] | dict[str, Any] | None = Field(
        None,
        description="A list, or a reference to one: for each item a node runs; its output is a list of theirs.",
    )
    each: Node | None = Field(None, description="The node of a `map`, which refers to the item by name.")
    as_: Name | None = Field(None, alias="as", description=f"The name of the item; `{ITEM}` by default.")
    limit: StrictInt | None = Field(None, ge=1, le=MAX_CHILDREN, description="How many run at once, at most; else all.")
    on_error: OnError | None = Field(
        None,
        description="When one fails: `fail_fast` (the default) cancels the rest and fails, `finish` lets all end and "
        'then fails, `collect` puts `{"error": {...}}` in the place of its output.',
    )

    @property
    def kind(self) -> Kind:
        """Which kind of node it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def item(self) -> str:
        """What a map calls its item."""
        return self.as_ or ITEM

    def children(self) -> Iterator[tuple[str, Node]]:
        """The nodes inside of it, each with its JSON pointer."""
        for index, child in enumerate(self.sequence or ()):
            yield f"/sequence/{index}", child
        for name, child in (self.parallel or {}).items():
            yield f"/parallel/{name}", child
        if self.each is not None:
            yield "/each", self.each

    def refs(self) -> frozenset[str]:
        """The references in it to what is outside of it."""
        own = {place.ref for place in (*places(self.params), *places(self.map)) if not place.fault}
        bound = {self.item} if self.each is not None else set()
        for _, child in self.children():
            own |= {ref for ref in child.refs() if name_of(ref) not in bound}
            if self.sequence is not None and child.name is not None:
                bound.add(child.name)
        return frozenset(own)

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none"
            raise ValueError(f"expected one of {', '.join(KINDS)}, got {found}")
        for member, owners in ONLY_WITH.items():
            if self._has(member) and kinds[0] not in owners:
                raise ValueError(f"expected {member!r} only with {' or '.join(owners)}, not with {kinds[0]}")
        if kinds == ["map"] and self.each is None:
            raise ValueError("expected 'each', the node that runs for each item")
        return self

    def _has(self, member: str) -> bool:
        return getattr(self, "as_" if member == "as" else member) is not None

    @model_serializer(mode="wrap")
    def _without_nulls(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # There are thousands of them in the parameters of a large flow.
        return {member: value for member, value in handler(self).items() if value is not None}


class FlowRun(BaseModel):
    """A flow, or a part of one, with what its references to the rest stand for."""

    model_config = ConfigDict(extra="forbid")

    node: Node
    inputs: dict[str, Any] = Field(default_factory=dict, description="Values by reference.")
    priority: int = Field(0, ge=0, le=HIGHEST_PRIORITY, description="Of all its tasks.")
