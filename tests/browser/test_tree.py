"""The tree of tasks on a task's page, in a real browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.domains.flows import tasks as flow_tasks
from app.domains.system import tasks as system
from tests.api.live import Live, live_on
from tests.browser.chromium import PHONE, WIDE, Page
from tests.browser.test_dashboard import devtools, go, opened, page
from tests.support import finished

__all__ = ["devtools", "page"]

SLEEP: dict[str, Any] = {"task": "system.sleep", "params": {"seconds": 60}}
FAIL: dict[str, Any] = {"task": "system.fail", "params": {"retryable": False}}
FLOW = {"sequence": [{"parallel": {"w" * 64: FAIL}, "on_error": "collect"}, {"name": "held", "parallel": {"x": SLEEP}}]}


@pytest.fixture
async def live(redis_url: str) -> AsyncIterator[Live]:
    async with live_on(redis_url, (flow_tasks.run, system.sleep, system.fail)) as running:
        yield running


async def flow(live: Live, form: dict[str, Any]) -> str:
    async with live.http("ada") as client:
        return str((await client.post("/api/flows", json={"flow": form})).json()["task_id"])


async def test_what_a_task_has_started_is_shown_and_kept_fresh(page: Page, live: Live) -> None:
    await opened(page, live)
    task_id = await flow(live, FLOW)
    await go(page, f"#/tasks/{task_id}")
    await page.until_text("held · flows.run", ".tree")
    await page.until_text("x · system.sleep", ".tree")
    shown = await page.text(".tree")
    assert "PermanentError: attempt 1 fails" in shown
    await page.until_text("waits for call system.sleep", ".tree")
    await page.click("Cancel")
    await page.click("Cancel it and its children?")
    await page.until("document.querySelectorAll('.tree .badge.cancelled').length === 2")
    await page.click("x · system.sleep", ".tree a")
    await page.until_text("system.sleep", "h1")
    assert not await page.value("document.querySelector('.tree').checkVisibility()")


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
async def test_the_page_is_not_wider_than_the_screen(page: Page, live: Live, size: tuple[int, int]) -> None:
    form: dict[str, Any] = FAIL
    for _ in range(6):
        form = {"parallel": {"w" * 64: form}, "on_error": "collect"}
    task_id = await flow(live, form)
    await finished(live.engine, task_id)
    await page.look(size)
    await opened(page, live, where=f"#/tasks/{task_id}")
    await page.until_text("PermanentError", ".tree")
    assert await page.value("document.documentElement.scrollWidth") <= size[0]
