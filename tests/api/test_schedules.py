"""Schedules over HTTP: seen, triggered, paused and resumed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
from pydantic import BaseModel

from app.api.schedules import ScheduleList, ScheduleView
from app.engine.context import TaskContext
from app.engine.registry import task
from app.engine.timetable import Schedule
from app.errors import SettingsError
from tests.api.running import Api, api_on, app_on
from tests.support import finished


class Days(BaseModel):
    days: int = 1


@task("test.consolidate")
async def consolidate(ctx: TaskContext, params: Days) -> Days:
    return params


NIGHTLY = Schedule(
    "nightly", "test.consolidate", cron="0 3 * * *", params={"days": 2}, timezone="Europe/Berlin", jitter_s=60
)
ADAS = Schedule("of.ada", "test.consolidate", cron="*/5 * * * *", catch_up="once", overlap=True, user_id="ada")


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with api_on(redis_url, (consolidate,), schedules=(NIGHTLY, ADAS)) as running:
        yield running


async def test_schedules_are_listed_with_their_next_firing(api: Api) -> None:
    page = (await api.root.get("/api/schedules")).json()
    ScheduleList.model_validate(page)
    assert page["next_cursor"] is None
    assert [item["name"] for item in page["items"]] == ["nightly", "of.ada"]
    nightly = page["items"][0]
    next_at = datetime.fromisoformat(nightly.pop("next_firing_at"))
    assert (next_at.minute, next_at.second) == (0, 0)
    assert next_at.hour in (1, 2)  # three o'clock in Berlin
    assert nightly == {
        "name": "nightly",
        "task": "test.consolidate",
        "params": {"days": 2},
        "cron": "0 3 * * *",
        "timezone": "Europe/Berlin",
        "jitter_s": 60,
        "overlap": False,
        "catch_up": "skip",
        "user_id": "schedules",
        "paused": False,
        "last_tick_at": None,
        "last_outcome": None,
        "last_firing_at": None,
        "last_task_id": None,
        "last_task_status": None,
    }


async def test_a_schedule_that_names_no_zone_is_shown_in_that_of_the_settings(redis_url: str) -> None:
    async with api_on(redis_url, (consolidate,), schedules=(ADAS,), timezone="Asia/Tokyo") as api:
        assert (await api.ada.get("/api/schedules/of.ada")).json()["timezone"] == "Asia/Tokyo"


async def test_a_triggered_schedule_answers_with_its_task(api: Api) -> None:
    answer = await api.root.post("/api/schedules/nightly/trigger")
    triggered = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/api/tasks/{triggered['task_id']}"
    assert (triggered["task"], triggered["status"], triggered["user_id"]) == (
        *("test.consolidate", "PENDING"),
        "schedules",
    )
    assert triggered["tags"] == ["schedule:nightly"]
    again = await api.root.post("/api/schedules/nightly/trigger")
    assert (again.status_code, triggered["task_id"] in again.json()["detail"]) == (409, True)
    async with api.engine.worker():
        record = await finished(api.engine, triggered["task_id"])
    assert record.result == {"days": 2}
    shown = (await api.root.get("/api/schedules/nightly")).json()
    ScheduleView.model_validate(shown)
    assert (shown["last_task_id"], shown["last_task_status"]) == (triggered["task_id"], "SUCCESS")
    assert shown["last_firing_at"] is not None
    assert (await api.root.post("/api/schedules/nightly/trigger")).status_code == 202


async def test_the_owner_of_its_tasks_reads_what_was_triggered(api: Api) -> None:
    task_id = (await api.root.post("/api/schedules/of.ada/trigger")).json()["task_id"]
    assert (await api.ada.get(f"/api/tasks/{task_id}")).status_code == 200
    assert (await api.bob.get(f"/api/tasks/{task_id}")).status_code == 404
    assert (await api.ada.post("/api/schedules/of.ada/trigger")).status_code == 403


async def test_a_schedule_is_paused_and_resumed(api: Api) -> None:
    for _ in range(2):
        paused = (await api.root.post("/api/schedules/nightly/pause")).json()
        assert (paused["paused"], paused["next_firing_at"]) == (True, None)
    assert (await api.root.get("/api/schedules")).json()["items"][0]["paused"]
    for _ in range(2):
        resumed = (await api.root.post("/api/schedules/nightly/resume")).json()
        ScheduleView.model_validate(resumed)
        assert not resumed["paused"]
        assert resumed["next_firing_at"] is not None


@pytest.mark.parametrize("action", ["trigger", "pause", "resume"])
async def test_an_unknown_schedule_does_not_exist(api: Api, action: str) -> None:
    assert (await api.root.post(f"/api/schedules/nothing/{action}")).status_code == 404


def test_an_application_with_a_wrong_schedule_does_not_start() -> None:
    wrong = Schedule("wrong", "test.nothing", cron="0 3 * * *")
    with pytest.raises(SettingsError, match="schedule 'wrong'"):
        app_on("redis://127.0.0.1:1", Path("no-such-file"), (consolidate,), schedules=(wrong,))
