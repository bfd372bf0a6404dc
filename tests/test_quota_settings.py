"""Settings with a grammar of their own: what they mean, and what is said of wrong ones."""

from __future__ import annotations

import pytest

from app.errors import SettingsError
from app.settings import QuotaLimits, load_settings

LLM = {"llm_requests_per_minute": None, "llm_tokens_per_minute": None, "llm_concurrency": None}


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("", {}),
        ("web=120", {"web": QuotaLimits(120)}),
        (
            "llm:gpt-x=60/100000/8, web=/5",
            {"llm:gpt-x": QuotaLimits(60, 100_000, 8), "web": QuotaLimits(None, 5)},
        ),
        ("a/b.c:d=//1,", {"a/b.c:d": QuotaLimits(None, None, 1)}),
    ],
)
def test_quotas_name_keys_and_their_limits(text: str, limits: dict[str, QuotaLimits]) -> None:
    assert load_settings(_env_file=None, quotas=text, **LLM).quota_limits == limits


def test_the_limits_of_the_model_have_settings_of_their_own() -> None:
    loaded = load_settings(_env_file=None, quotas="llm:x=1", **LLM | {"llm_tokens_per_minute": 500})
    assert loaded.quota_limits == {"llm": QuotaLimits(None, 500, None), "llm:x": QuotaLimits(1)}


@pytest.mark.parametrize(
    "text",
    [
        "web",
        "web=",
        "web=//",
        "=5",
        "web=0",
        "web=-1",
        "web=1.5",
        "web=1/2/3/4",
        "we b=1",
        "web=٣",
        "web=1,web=2",
        "llm=5",
    ],
)
def test_wrong_quotas_are_refused_by_name_and_value(text: str) -> None:
    with pytest.raises(SettingsError, match=r"NIGHTSHIFT_QUOTAS=(?!.*Value error).*expected"):
        load_settings(_env_file=None, quotas=text, **LLM)


@pytest.mark.parametrize("name", LLM)
def test_limits_are_at_least_1(name: str) -> None:
    with pytest.raises(SettingsError, match=f"NIGHTSHIFT_{name.upper()}=0"):
        load_settings(_env_file=None, **LLM | {name: 0})


def test_there_is_a_bound_on_keys() -> None:
    with pytest.raises(SettingsError, match="101 keys: expected at most 100"):
        load_settings(_env_file=None, quotas=",".join(f"k{number}=1" for number in range(101)), **LLM)
