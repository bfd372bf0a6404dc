"""What is documented of events is what the engine sends."""

from __future__ import annotations

import re
from pathlib import Path

from app.api.event_types import EVENT_TYPES, events_description
from app.engine.events import FINAL_TYPES
from app.main import create_app
from tests.support import settings_for

APP = Path(__file__).parents[2] / "app"
LUA = "\n".join(path.read_text("utf8") for path in (APP / "store" / "lua").glob("*.lua"))
PYTHON = "\n".join(path.read_text("utf8") for path in (APP / "engine").glob("*.py"))


def test_every_type_that_the_scripts_send_is_documented() -> None:
    sent = set(re.findall(r"\bemit\(.*?'([a-z]+_[a-z]+)'", LUA))
    assert "task_waiting" in sent
    assert sent | FINAL_TYPES <= set(EVENT_TYPES)


def test_no_type_is_documented_that_nobody_sends() -> None:
    assert {name for name in EVENT_TYPES if not re.search(f"['\"]{name}['\"]", LUA + PYTHON)} == set()


def test_the_documentation_of_the_api_lists_them() -> None:
    document = create_app(settings_for("redis://127.0.0.1:1")).openapi()
    (tag,) = [tag for tag in document["tags"] if tag["name"] == "events"]
    assert tag["description"] == events_description()
    assert all(f"| `{name}` |" in tag["description"] for name in EVENT_TYPES)


def test_every_operation_has_a_summary_that_was_written_for_it() -> None:
    document = create_app(settings_for("redis://127.0.0.1:1")).openapi()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    # FastAPI's own are the words of the function's name, each with a capital letter.
    assert [one["summary"] for one in operations if re.fullmatch(r"([A-Z]\w* )+[A-Z]\w*", one["summary"])] == []
