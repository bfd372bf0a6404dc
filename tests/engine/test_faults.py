"""Faults of a value are told without the value."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.engine.faults import SHOWN, faults_of


class Payment(BaseModel):
    amount: int
    card: list[int]


def fault(kind: object, value: object) -> str:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    return faults_of(caught.value)


def test_places_are_named_and_values_are_not() -> None:
    told = fault(Payment, {"amount": "c0nfidential", "card": [1, "c0nfidential"]})
    assert told.startswith("amount: Input should be a valid integer")
    assert "; card.1: Input should be" in told
    assert "c0nfidential" not in told


def test_a_plain_value_has_no_place() -> None:
    assert fault(int, "x") == "Input should be a valid integer, unable to parse string as an integer"


def test_of_many_the_first_are_told() -> None:
    told = fault(list[int], ["x"] * 9)
    assert told.count("Input should be") == SHOWN
    assert told.endswith("; and 4 more")


def test_another_error_speaks_for_itself() -> None:
    assert faults_of(ValueError("what it is")) == "what it is"
