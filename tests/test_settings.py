"""Settings that are more than one value: what they are read from, and what is refused."""

from __future__ import annotations

import pytest

from app.errors import SettingsError
from app.settings import load_settings


def weights(text: str) -> tuple[tuple[str, float], ...]:
    return load_settings(_env_file=None, user_weights=text).user_weights


def test_weights_are_read_by_user() -> None:
    assert weights("ada=4, bob@x.org=0.5,,") == (("ada", 4.0), ("bob@x.org", 0.5))
    assert weights("") == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ada", "'ada': expected user=weight"),
        ("=4", "'=4': expected user=weight"),
        ("ada=much", "'ada=much': expected user=weight"),
        ("ada=0", "ada=0: expected a weight of 0.01 to 1000"),
        ("ada=-1", "ada=-1: expected"),
        ("ada=nan", "ada=nan: expected"),
        ("ada=1001", "ada=1001: expected"),
        ("ada=2,ada=3", "ada: expected one weight"),
        ("arq=2", "tasks of stock clients weigh 1"),
        (",".join(f"u{n}=2" for n in range(1_001)), "1001 users: expected at most 1000"),
    ],
)
def test_a_wrong_weight_is_refused_by_name(text: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match="NIGHTSHIFT_USER_WEIGHTS=") as caught:
        weights(text)
    assert complaint in str(caught.value)
