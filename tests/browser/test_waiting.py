"""How the dashboard shows a task that waits, in a real browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.registry import task
from tests.api.live import Live, live_on
from tests.browser.chromium import PHONE, WIDE, Page
from tests.browser.test_dashboard import HOSTILE, devtools, opened, page, posted
from tests.support import event_of

__all__ = ["devtools", "page"]


class Nothing(BaseModel):
    """No parameters."""


async def one() -> int:
    return 1


@task("test.paid")
async def paid(ctx: TaskContext, params: Nothing) -> int:
    """A step, and a wait for an event."""
    await ctx.step(HOSTILE[:100], one)
    await ctx.wait_event("paid", timeout=timedelta(hours=1))
    return 2


@pytest.fixture
async def live(redis_url: str) -> AsyncIterator[Live]:
    async with live_on(redis_url, (paid,)) as running:
        yield running


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
async def test_what_a_task_waits_for_is_said_in_words(page: Page, live: Live, size: tuple[int, int]) -> None:
    task_id = await posted(live, "test.paid", params={})
    await event_of(live.engine, task_id, "task_waiting")
    await page.look(size)
    await opened(page, live)
    await page.until_text("for the event paid", "tbody")
    await page.click("test.paid")
    await page.until_text("the event paid until")
    await page.until_text("for the event paid · until", "[role=log]")
    assert '"kind"' not in await page.text("main")
    assert await page.value("document.documentElement.scrollWidth") <= size[0]


async def test_the_steps_of_a_task_are_shown_with_how_long_they_took(page: Page, live: Live) -> None:
    task_id = await posted(live, "test.paid", params={})
    await event_of(live.engine, task_id, "task_waiting")
    await opened(page, live, where=f"#/tasks/{task_id}")
    await page.until_text("<img src=x", "section[aria-labelledby=steps]")
    assert " ms" in await page.text("section[aria-labelledby=steps]")
    await live.engine.inbox.deliver(task_id, "paid", None, user_id="ada")
    await page.until_text("event paid", "section[aria-labelledby=steps]")
    assert await page.value("typeof pwned") == "undefined"
