"""The dashboard's page of schedules, in a real browser."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app.domains.system import tasks as system
from app.engine.timetable import Schedule
from tests.api.live import Live, live_on
from tests.browser.chromium import PHONE, WIDE, Page
from tests.browser.test_dashboard import devtools, opened, page

__all__ = ["devtools", "page"]

NIGHTLY = Schedule("nightly", "system.echo", cron="0 3 * * *", params={"value": 1}, timezone="Asia/Tokyo")
ADAS = Schedule("of.ada." + "w" * 80, "system.echo", cron="0 4 * * *", params={"value": 2}, user_id="ada")


@pytest.fixture
async def live(redis_url: str) -> AsyncIterator[Live]:
    async with live_on(redis_url, (system.echo,), schedules=(NIGHTLY, ADAS)) as running:
        yield running


async def test_an_admin_triggers_pauses_and_resumes(page: Page, live: Live) -> None:
    await opened(page, live, "root", where="#/schedules")
    await page.until_text("0 3 * * * (Asia/Tokyo)", "tbody tr:first-child")
    await page.click("Trigger", "tr:first-child button")
    await page.until_text("success", "tbody tr:first-child")
    await page.click("Pause", "tr:first-child button")
    await page.until_text("paused", "tbody tr:first-child")
    assert (await live.engine.schedules.get("nightly", user_id=None)).paused
    await page.click("Resume", "tr:first-child button")
    await page.until_text("runs", "tbody tr:first-child")
    assert not (await live.engine.schedules.get("nightly", user_id=None)).paused


async def test_a_user_sees_the_own_ones_and_no_buttons(page: Page, live: Live) -> None:
    await opened(page, live, "ada", where="#/schedules")
    await page.until_text(ADAS.name)
    assert "nightly" not in await page.text("main")
    shown = "[...document.querySelectorAll('main button')].filter((one) => one.checkVisibility()).length"
    assert await page.value(shown) == 0


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
async def test_the_page_is_not_wider_than_the_screen(page: Page, live: Live, size: tuple[int, int]) -> None:
    await page.look(size)
    await opened(page, live, "root", where="#/schedules")
    await page.until_text("nightly")
    assert await page.value("document.documentElement.scrollWidth") <= size[0]
