"""What the schema of a pydantic type refuses, so does the check of edits, at the same place."""

from __future__ import annotations

from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.engine.edit_schema import MAX_FAULTS, faults_of


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = Field(ge=1, lt=10)
    share: float | None = None


class Edits(BaseModel):
    title: str = Field(min_length=2, max_length=5, pattern=r"^[a-z]+$")
    inner: Inner | None = None
    rows: list[Inner] = Field([], max_length=2)
    pair: tuple[int, str] = (1, "a")
    by_name: dict[str, Inner] = {}
    colour: Colour = Colour.RED
    kind: Literal["a", 1] = "a"
    day: date | None = None
    at: datetime | None = None
    id: UUID | None = None
    flag: bool = False
    either: Annotated[int | str, Field(description="one of two")] = 1
    parent: Edits | None = None


SCHEMA = TypeAdapter(Edits).json_schema()
OK = {"title": "abc"}
INNER = {"count": 3}

ACCEPTED: list[dict[str, Any]] = [
    OK,
    {**OK, "inner": None},
    {**OK, "inner": {"count": 9, "share": 0.5}, "rows": [INNER, INNER], "by_name": {"x/y": INNER}},
    {**OK, "inner": {"count": 3.0, "share": 1}, "pair": [2, "b"], "colour": "blue", "kind": 1, "either": "s"},
    {**OK, "day": "2026-11-21", "at": "2026-11-21T20:15:00Z", "id": "5f0c1d2e-3b4a-4968-8766-554433221100"},
    {**OK, "parent": {"title": "abc", "parent": {"title": "abc"}}, "unknown": 1},
]
REFUSED: list[tuple[Any, str]] = [
    ({}, "/title"),
    ({"title": 1}, "/title"),
    ({"title": "a"}, "/title"),
    ({"title": "abcdef"}, "/title"),
    ({"title": "ABC"}, "/title"),
    ({**OK, "inner": {}}, "/inner/count"),
    ({**OK, "inner": {"count": 0}}, "/inner/count"),
    ({**OK, "inner": {"count": 10}}, "/inner/count"),
    ({**OK, "inner": {"count": 1.5}}, "/inner/count"),
    ({**OK, "inner": {"count": 3, "a~/b": 1}}, "/inner/a~0~1b"),
    ({**OK, "rows": [INNER, {"count": 0}]}, "/rows/1/count"),
    ({**OK, "rows": [INNER] * 3}, "/rows"),
    ({**OK, "rows": {}}, "/rows"),
    ({**OK, "pair": [1]}, "/pair"),
    ({**OK, "pair": [1, "a", 2]}, "/pair"),
    ({**OK, "pair": ["x", "a"]}, "/pair/0"),
    ({**OK, "by_name": {"x/y": {"count": 0}}}, "/by_name/x~1y/count"),
    ({**OK, "colour": "green"}, "/colour"),
    ({**OK, "kind": "b"}, "/kind"),
    ({**OK, "day": "soon"}, "/day"),
    ({**OK, "at": "soon"}, "/at"),
    ({**OK, "id": "soon"}, "/id"),
    ({**OK, "flag": "maybe"}, "/flag"),
    ({**OK, "either": []}, "/either"),
    ({**OK, "parent": {"title": "abc", "parent": {"title": 7}}}, "/parent/parent/title"),
    ([], ""),
]


@pytest.mark.parametrize("edits", ACCEPTED, ids=str)
def test_what_the_type_accepts_is_accepted(edits: dict[str, Any]) -> None:
    assert faults_of(SCHEMA, edits) == []
    Edits.model_validate(edits)


@pytest.mark.parametrize(("edits", "pointer"), REFUSED, ids=str)
def test_what_the_type_refuses_is_refused_with_its_place(edits: Any, pointer: str) -> None:
    assert pointer in [place for place, _ in faults_of(SCHEMA, edits)]
    with pytest.raises(ValidationError):
        Edits.model_validate(edits)


def test_faults_are_bounded() -> None:
    assert len(faults_of({"items": {"type": "integer"}}, ["x"] * 1_000)) == MAX_FAULTS
