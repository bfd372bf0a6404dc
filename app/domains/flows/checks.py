"""What can be said of a flow before it runs: what is wrong with it, and where, as JSON pointers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from app.domains.flows.models import MAX_NODES, Node
from app.domains.flows.references import Place, fill, form_of, name_of, places
from app.engine.registry import Catalogue
from app.engine.submissions import validated
from app.engine.waits import MAX_CHILDREN
from app.errors import InvalidInput, TooLarge, UnknownTask

MAX_DEPTH = 8
"""Of nodes within nodes."""

Fault = tuple[str, str]


def check(node: Node, at: str, *, inputs: Collection[str] = (), catalogue: Catalogue | None = None) -> None:
    """Raise `InvalidInput` with all that is wrong with a flow that stands at the pointer `at`; `UnknownTask` and
    `TooLarge` with the first place.

    `inputs` are references that are answered from outside. Without a catalogue tasks and parameters are not looked at.
    """
    faults = list(_Check(inputs, catalogue).node(node, at, frozenset(), 1))
    if faults:
        pointer, message = faults[0]
        rest = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InvalidInput(f"{pointer[1:]}: {message}{rest}", pointer=pointer, faults=tuple(faults))


class _Check:
    """One walk through a flow. `names` are the outputs that a node may refer to."""

    def __init__(self, inputs: Collection[str], catalogue: Catalogue | None) -> None:
        self._inputs = inputs
        self._catalogue = catalogue
        self._count = 0

    def node(self, node: Node, at: str, names: frozenset[str], depth: int) -> Iterator[Fault]:
        """What is wrong with a node and all below it; `at` is its JSON pointer."""
        self._count += 1
        if self._count > MAX_NODES:
            raise InvalidInput(f"{at[1:]}: expected at most {MAX_NODES} nodes in all", pointer=at)
        if depth > MAX_DEPTH:
            yield at, f"expected at most {MAX_DEPTH} levels of nodes"
            return
        yield from self._templates(node, at, names)
        if node.task is not None:
            yield from self._task(node, node.task, at)
        if node.each is not None:
            yield from self._taken(node.item, names, f"{at}/as" if node.as_ else f"{at}/map", hint="; choose with 'as'")
            names |= {node.item}
        for step, child in node.children():
            yield from self.node(child, at + step, names, depth + 1)
            if child.name is None:
                continue
            if node.sequence is None:
                yield f"{at}{step}/name", "expected a name only in a sequence"
            else:
                yield from self._taken(child.name, names, f"{at}{step}/name")
                names |= {child.name}

    def _taken(self, name: str, names: frozenset[str], at: str, hint: str = "") -> Iterator[Fault]:
        if name in names:
            yield at, f"{name!r} is the name of something else already{hint}"

    def _templates(self, node: Node, at: str, names: frozenset[str]) -> Iterator[Fault]:
        for place in (*places(node.params, f"{at}/params"), *places(node.map, f"{at}/map")):
            if place.fault:
                yield place.pointer, place.fault
            elif name_of(place.ref) not in names and place.ref not in self._inputs:
                known = ", ".join(sorted(names)) or "none"
                yield place.pointer, f"no output {name_of(place.ref)!r} comes before; there are: {known}"
        if isinstance(node.map, list) and len(node.map) > MAX_CHILDREN:
            yield f"{at}/map", f"expected at most {MAX_CHILDREN} items, got {len(node.map)}"
        if isinstance(node.map, dict) and form_of(node.map) not in ("$from", "$value"):
            yield f"{at}/map", 'expected a list or {"$from": …}'

    def _task(self, node: Node, name: str, at: str) -> Iterator[Fault]:
        found = list(places(node.params, "/params"))
        if self._catalogue is None or any(place.fault for place in found):
            return
        try:
            spec = self._catalogue[name].spec
            params = fill(node.params or {}, lambda ref: None)
            if isinstance(params, dict):
                validated(spec, params)
            elif not (node.params and form_of(node.params) == "$from"):
                yield f"{at}/params", "expected an object"
        except (TooLarge, UnknownTask) as error:
            error.move(at)
            raise
        except InvalidInput as error:
            yield from ((at + pointer, text) for pointer, text in error.faults if not _depends(pointer, found))


def _depends(pointer: str, found: Collection[Place]) -> bool:
    """Whether what is at the pointer is a parameter with references in it, or may depend on one."""
    # Below that, pydantic's locations name branches of unions, which cannot be told from members.
    parameter = pointer.split("/")[2:3]
    return bool(found) and (not parameter or any(place.pointer.split("/")[2:3] == parameter for place in found))


def fault_of(value: Any) -> str | None:
    """What is wrong with the value of a `map`'s reference; None: it is a list that can be run."""
    if not isinstance(value, list):
        return f"expected a list, got {type(value).__name__}"
    return f"expected at most {MAX_CHILDREN} items, got {len(value)}" if len(value) > MAX_CHILDREN else None
