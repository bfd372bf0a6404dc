"""The dashboard as people use it: in a real browser, on a real service."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from app.engine.approvals import ApprovalRequest
from app.engine.context import TaskContext
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.errors import PermanentError, RetryableError
from tests.acceptance.processes import api, free_port, worker
from tests.api.live import Live, live_on
from tests.browser.chromium import PHONE, WIDE, Page, browser, page_in, quoted
from tests.support import event_of, finished

HOSTILE = (
    """<img src=x onerror="pwned=1">"><script>pwned=1</script><svg onload=pwned=1>"""
    """javascript:pwned=1 &lt;b&gt; \u202egnp"""
)
STEPS = 30


class Story(BaseModel):
    """What to tell."""

    text: str = Field(min_length=2, max_length=100, description="the words")
    times: int = Field(1, ge=1, le=5)
    mood: str | None = None
    extra: Any = None


gate = asyncio.Event()
"""Opened by a test when a task may go on; the worker runs in the test's own process."""


@task("test.tell")
async def tell(ctx: TaskContext, params: Story) -> Story:
    """Tell it, wait for the listener, and tell the rest."""
    await ctx.progress(1, 4, f"begun: {params.text}")
    await ctx.emit("stream_start", {"attempt": ctx.attempt})
    for word in (params.text, " and"):
        await ctx.emit("text_chunk", {"text": word})
    await ctx.emit("noted", {"what": params.text})
    await gate.wait()
    await ctx.emit("text_chunk", {"text": " so on"})
    await ctx.progress(4, 4, "told")
    return params


@task("test.break", queue="other", retry=RetryPolicy(max_retries=1, base_s=0.01, jitter=False))
async def break_(ctx: TaskContext, params: Story) -> Story:
    """Fail, unless the story is good."""
    if params.text == "good":
        return params
    raise (RetryableError if ctx.attempt == 1 else PermanentError)(f"attempt {ctx.attempt}: {params.text}")


class Question(BaseModel):
    subject: str = "Publish it?"
    deciders: tuple[str, ...] = ()


@task("test.ask")
async def ask(ctx: TaskContext, params: Question) -> list[Any]:
    """Ask whether to go on."""
    decision = await ctx.approval(ApprovalRequest(params.subject, {"what": params.subject}, params.deciders))
    return [decision.approved, decision.notes, decision.edits]


@pytest.fixture(scope="module")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with browser(tmp_path_factory.mktemp("chromium")) as url:
        yield url


@pytest.fixture
async def page(devtools: str) -> AsyncIterator[Page]:
    async with page_in(devtools) as opened:
        yield opened


@pytest.fixture
async def live(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    monkeypatch.setitem(globals(), "gate", asyncio.Event())
    async with live_on(redis_url, (tell, break_, ask)) as running:
        yield running


async def opened(page: Page, live: Live, user: str = "ada", where: str = "") -> None:
    """Open the dashboard and sign in."""
    await page.open(f"http://{live.address}/dashboard{where}")
    await page.fill("#key", live.keys[user])
    await page.click("Sign in")
    await page.until_text("live", "#live")


async def posted(live: Live, name: str, user: str = "ada", **fields: Any) -> str:
    async with live.http(user) as client:
        answer = await client.post("/api/tasks", json={"task": name, **fields})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])


async def go(page: Page, where: str) -> None:
    await page.value(f"location.hash = {quoted(where)}")


async def test_a_task_is_posted_and_followed_to_its_result(page: Page, live: Live) -> None:
    await opened(page, live)
    await page.click("Post a task")
    await page.choose("select[name=task]", "test.tell")
    await page.until_text("Tell it, wait for the listener")
    await page.fill("textarea[name=text], input[name=text]", "Once")
    await page.fill("[name=times]", "2")
    await page.fill("[name=extra]", '{"id": 12345678901234567890}')
    await page.click("Project, tags, delay, priority")
    await page.fill("[name=tags]", "bedtime, long")
    await page.click("Post")
    await page.until_text("begun: Once", ".progress-label")
    await page.until_text("started", "h1")
    await page.until_text("Once and", ".stream")
    await page.until_text("what Once", ".log")
    assert await page.value("document.querySelector('main progress').value") == 25
    gate.set()
    await page.until_text("success", "h1")
    await page.until_text("Once and so on", ".stream")
    # Digit for digit: no browser's number can hold it.
    await page.until_text('"id": 12345678901234567890', "[aria-label=Result] pre")
    assert '"times": 2' in await page.text("[aria-label=Result] pre")
    assert await page.value("[...document.querySelectorAll('.log code')].map((node) => node.innerText).join(' ')") == (
        "task_queued task_started task_progress stream_start text_chunk noted text_chunk task_progress task_complete"
    )
    await page.click("Tasks", "nav a")
    await page.until_text("long", "tbody tr .tags")
    assert "success" in await page.text("tbody tr")


async def test_the_list_of_tasks_is_live(page: Page, live: Live) -> None:
    await opened(page, live)
    await page.until_text("There are no such tasks.")
    task_id = await posted(live, "test.tell", params={"text": "row"}, project_id="apollo")
    await page.until_text("begun: row", "tbody tr")
    assert await page.value("document.querySelector('tbody progress').value") == 25
    gate.set()
    await page.until_text("success", "tbody tr")
    await posted(live, "test.break", params={"text": "good"}, tags=["other"])
    await page.until("document.querySelectorAll('tbody tr').length === 2")
    assert "test.break" in await page.text("tbody tr")
    await page.choose("[name=queue]", "default")
    await page.until("document.querySelectorAll('tbody tr').length === 1")
    await page.click("test.tell", "tbody a")
    await page.until_text(task_id, ".facts")


async def test_the_filter_keeps_the_focus(page: Page, live: Live) -> None:
    await posted(live, "test.break", params={"text": "good"}, project_id="apollo")
    await opened(page, live)
    await page.until_text("apollo")
    await page.fill("[name=project_id]", "gemini")
    await page.press("Enter")
    await page.until_text("There are no such tasks.")
    assert await page.value("document.activeElement.name") == "project_id"
    assert await page.value("location.hash") == "#/tasks?project_id=gemini"


async def test_an_admin_sees_the_tasks_of_others_move(page: Page, live: Live) -> None:
    task_id = await posted(live, "test.tell", params={"text": "of bob"}, user="bob")
    await event_of(live.engine, task_id, "noted")
    await opened(page, live, "root")
    await page.until_text("bob", "tbody tr")
    gate.set()
    await page.until_text("success", "tbody tr")


async def test_what_is_wrong_is_said_at_the_field(page: Page, live: Live) -> None:
    await opened(page, live, where="#/new?task=test.tell")
    await page.fill("[name=text]", "x")
    await page.fill("[name=times]", "many")
    await page.fill("[name=extra]", "{")
    await page.click("Post")
    await page.until_text("Expected JSON")
    await page.fill("[name=extra]", "1")
    await page.click("Post")
    await page.until("document.activeElement.name === 'text' && document.activeElement.ariaInvalid === 'true'")
    told = "document.getElementById(document.activeElement.getAttribute('aria-describedby').split(' ')[1]).innerText"
    assert (await page.value(told)).startswith("String should have at least 2 characters")
    await page.fill("[name=text]", "xy")
    await page.click("Post")
    await page.until("document.activeElement.name === 'times' && document.activeElement.ariaInvalid === 'true'")
    wrong = "[...document.querySelectorAll('[aria-invalid]')].map((node) => node.name).join(' ')"
    assert await page.value(wrong) == "times"
    await page.fill("[name=times]", "1")
    await page.click("Project, tags, delay, priority")
    await page.fill("[name=priority]", "-1")
    await page.click("Project, tags, delay, priority")  # folded again: it opens for the field
    await page.click("Post")
    await page.until("document.activeElement.name === 'priority'")
    await page.until(f"{wrong} === 'priority'")


async def test_what_others_wrote_is_text(page: Page, live: Live) -> None:
    told = await posted(
        live, "test.tell", params={"text": HOSTILE[:100], "extra": HOSTILE}, tags=["<b>tag</b>", HOSTILE]
    )
    broken = await posted(live, "test.break", params={"text": HOSTILE[:100]}, project_id="<i>project</i>")
    await event_of(live.engine, told, "noted")
    await opened(page, live)
    await page.until_text(HOSTILE[:60])
    await page.until_text("<b>tag</b>")
    await go(page, f"#/tasks/{told}")
    await page.until_text(HOSTILE[:60], ".log")
    await page.until_text(HOSTILE[:60], ".stream")
    gate.set()
    await page.until_text("<script>", "[aria-label=Result] pre")
    await finished(live.engine, broken)
    await go(page, "#/dead")
    await page.until_text(HOSTILE[:60])
    await go(page, f"#/dead/{broken}")
    await page.until_text(HOSTILE[:60], "[aria-label='Traceback']")
    _, question = await asked(live, subject=HOSTILE.replace("\u202e", ""))
    await go(page, "#/approvals")
    await page.until_text(HOSTILE[:60])
    await go(page, question)
    await page.until_text("<script>", "[aria-label='What to know'] pre")
    for where in (
        "#/approvals/%22%3E",
        "#/tasks/<img src=x onerror=pwned=1>",
        "#/tasks/%",
        "#/tasks?queue=<script>pwned=1</script>",
        "#/dead/%22%3E",
    ):
        await go(page, where)
        await page.until("document.querySelector('.notice:not([hidden]), .empty:not([hidden])') !== null")
    assert await page.value("typeof pwned") == "undefined"
    # No element but ours came to be, and nothing was asked for that is not ours.
    assert await page.value("document.querySelectorAll('main :is(img, script, iframe, b, i, svg[onload])').length") == 0
    own = (f"http://{live.address}/", f"ws://{live.address}/ws?ticket=")
    assert [url for url in page.requests if not url.startswith(own)] == []


async def test_a_policy_that_is_broken_is_noticed(devtools: str, live: Live) -> None:
    # The tests above rely on it.
    with pytest.raises(AssertionError, match="TrustedHTML"):
        async with page_in(devtools) as page:
            await page.open(f"http://{live.address}/dashboard")
            await page.until("document.querySelector('h1') !== null")
            await page.value("setTimeout(() => { document.body.innerHTML = '<img src=x onerror=pwned=1>' })")
            await page.until_fault()


async def test_a_task_is_cancelled_after_a_question_and_run_again(page: Page, live: Live) -> None:
    task_id = await posted(live, "test.tell", params={"text": "long"})
    await opened(page, live, where=f"#/tasks/{task_id}")
    await page.until_text("begun: long")
    await page.click("Cancel")
    assert await page.text("h1") == "test.tell started"
    await page.click("Cancel it and its children?")
    await page.until_text("cancelled", "h1")
    gate.set()
    await page.click("Run again")
    await page.until_text("success", "h1")
    assert task_id in await page.text(".facts")


async def test_a_dead_letter_tells_why_and_is_replayed_with_other_parameters(page: Page, live: Live) -> None:
    task_id = await posted(live, "test.break", params={"text": "bad"})
    await opened(page, live)
    await page.until_text("failure")
    await page.click("Dead letters", "nav a")
    await page.click("test.break", "tbody a")
    await page.until_text("attempt 1: bad", ".log")
    assert "PermanentError: attempt 2: bad" in await page.text("[aria-label='Traceback']")
    await page.click("With other parameters")
    await page.fill("textarea", '{"text": ')
    await page.click("Replay with these")
    await page.until_text("no JSON")
    await page.fill("textarea", '{"text": "good"}')
    await page.click("Replay with these")
    await page.until_text("success", "h1")
    assert task_id in await page.text(".facts")


async def test_dead_letters_are_discarded_and_replayed(page: Page, live: Live) -> None:
    first, second, third = [await posted(live, "test.break", params={"text": text}) for text in ("one", "two", "three")]
    for task_id in (first, second, third):
        await finished(live.engine, task_id)
    await opened(page, live, where=f"#/dead/{first}")
    await page.click("Discard")
    await page.click("Discard it for good?")
    await page.until_text("Dead letters", "h1")
    await page.until("document.querySelectorAll('main tbody tr').length === 2")
    await go(page, f"#/dead/{second}")
    await page.until_text("attempt 2: two")
    await page.click("Replay")
    await page.until_text("failure", "h1")
    assert second in await page.text(".facts")
    await go(page, "#/dead?task=test.break")
    await page.until("document.querySelectorAll('main tbody tr').length === 2")
    await page.click("Replay all")
    await page.click("Replay all of these?")
    await page.until_text("2 replayed.")
    await page.click("Discard all")
    await page.click("Discard all of these for good?")
    await page.until_text("discarded.")


async def asked(live: Live, **params: Any) -> tuple[str, str]:
    """A task of ada that waits for a person, and the page of what it asks."""
    task_id = await posted(live, "test.ask", params=params)
    waiting = await event_of(live.engine, task_id, "task_waiting")
    return task_id, f"#/approvals/{waiting['waiting_for']['approval_id']}"


async def test_what_a_task_asks_is_seen_at_once_and_approved_with_notes_and_edits(page: Page, live: Live) -> None:
    await opened(page, live, where="#/approvals")
    await page.until_text("Nobody is asked anything now.")
    task_id, _ = await asked(live)
    await page.click("Publish it?", "tbody a")
    await page.until_text("What to know")
    await page.fill("[name=notes]", "fine")
    await page.click("With edits")
    await page.fill("[name=edits]", '{"n": ')
    await page.click("Approve")
    await page.until_text("The edits are no JSON")
    await page.fill("[name=edits]", '{"n": 12345678901234567890}')
    await page.click("Approve")
    await page.until_text("approved", ".facts")
    assert await page.value("document.querySelector('[aria-label=Answer]') === null")
    assert (await finished(live.engine, task_id)).result == [True, "fine", {"n": 12345678901234567890}]
    await go(page, "#/approvals")
    await page.until_text("Nobody is asked anything now.")
    await page.click("Decided ones too")
    await page.until_text("approved", "tbody")


async def test_whom_a_task_asks_rejects_and_whose_it_is_takes_it_back(page: Page, live: Live) -> None:
    first, where = await asked(live, deciders=("bob",))
    second, other = await asked(live, subject="And this?", deciders=("bob",))
    await opened(page, live, "bob", where=where)
    await page.until_text("What to know")
    assert "Withdraw" not in await page.text("main")
    await page.click("Reject")
    await page.until_text("rejected", ".facts")
    assert (await finished(live.engine, first)).result == [False, "", None]
    await page.value("document.getElementById('forget').click()")
    # The page loads anew by itself, and would do so again under the next one.
    await page.until("document.getElementById('forget').hidden && document.querySelector('#key') !== null")
    await opened(page, live, "ada", where=f"#/tasks/{second}")
    await page.click("an approval", ".facts a")
    await page.until_text("Others decide on this.")
    await page.click("Withdraw")
    await page.click("Take the question back?")
    await page.until_text("withdrawn", ".facts")
    assert (await finished(live.engine, second)).status == "FAILURE"
    assert other.startswith("#/approvals/")


async def test_an_admin_sees_workers_and_pauses_a_queue(page: Page, live: Live) -> None:
    await opened(page, live, "root", where="#/queues")
    await page.until_text("other 0/2", "section")
    await page.click("Pause", "tr:nth-child(2) button")
    await page.until_text("paused", "tbody tr:nth-child(2)")
    assert await paused(live) == ["other"]
    await page.click("Resume", "tr:nth-child(2) button")
    await page.until_text("open", "tbody tr:nth-child(2)")
    assert await paused(live) == []


async def paused(live: Live) -> list[str]:
    return [queue.name for queue in await live.engine.queues.stats() if queue.paused]


async def test_a_user_sees_queues_but_neither_workers_nor_buttons(page: Page, live: Live) -> None:
    await opened(page, live, "ada", where="#/queues")
    await page.until_text("other")
    # One round before the key, and two behind it: a caller who was refused once does not ask again.
    await page.until("performance.getEntriesByName(new URL('api/queues', location).href).length >= 3")
    assert "Workers" not in (await page.text("main")).splitlines()
    assert (
        await page.value("[...document.querySelectorAll('main button')].filter((one) => one.checkVisibility()).length")
        == 0
    )
    assert sum(url.endswith("/api/workers") for url in page.requests) == 2


async def test_the_key_stays_in_the_tab_and_in_headers(page: Page, live: Live) -> None:
    await page.open(f"http://{live.address}/dashboard#/queues")
    await page.fill("#key", "ns_wrong")
    await page.click("Sign in")
    await page.until_text("That was not accepted")
    await page.fill("#key", live.keys["ada"])
    await page.press("Enter")
    await page.until_text("other")  # what was wanted before
    await page.until_text("live", "#live")
    assert await page.value("Object.keys(localStorage).length + document.cookie.length") == 0
    assert [url for url in page.requests if live.keys["ada"] in url] == []
    await page.reload()
    await page.until_text("other")
    await page.click("Forget the key")
    await page.until_text("Sign in", "h1")
    assert await page.value("sessionStorage.length") == 0


async def test_it_is_used_without_a_mouse(page: Page, live: Live) -> None:
    await posted(live, "test.break", params={"text": "good"})
    await opened(page, live)
    await page.until_text("test.break")
    await page.reload()
    await page.until_text("test.break")
    await page.press("Tab")
    assert await page.value("document.activeElement.id") == "skip"
    await page.press("Enter")
    assert await page.value("document.activeElement.id") == "main"
    for _ in range(40):
        await page.press("Tab")
        if await page.value(
            "document.activeElement.innerText === 'test.break' && document.activeElement.tagName === 'A'"
        ):
            break
    await page.press("Enter")
    await page.until_text("success", "h1")
    assert await page.value("document.activeElement.id") == "main"


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
async def test_no_page_is_wider_than_the_screen(page: Page, live: Live, size: tuple[int, int]) -> None:
    broken = await posted(live, "test.break", params={"text": "w" * 100}, tags=["w" * 128], project_id="p" * 128)
    await finished(live.engine, broken)
    _, question = await asked(live, subject="w" * 200, deciders=("d" * 128, "e" * 128))
    await page.look(size)
    await opened(page, live, "root")
    pages = {
        "#/tasks": "failure",
        f"#/tasks/{broken}": "task_failed",
        "#/queues": "process",
        "#/approvals": "www",
        question: "What to know",
        "#/dead": "www",
        f"#/dead/{broken}": "Traceback",
        "#/new?task=test.tell": "the words",
    }
    for where, text in pages.items():
        await go(page, where)
        await page.until_text(text)
        assert await page.value("document.documentElement.scrollWidth") <= size[0], where


async def test_it_goes_on_when_the_service_restarts(page: Page, redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    seen = f"(n) => document.querySelector('.log').innerText.includes(`slept ${{n}} of {STEPS}`)"
    async with worker("worker", tmp_path, redis_url, module="worker"):
        async with api("first", tmp_path, redis_url, port) as first:
            # Without credentials: on this machine none are needed.
            await page.open(f"http://127.0.0.1:{port}/")
            await page.click("Post a task")
            await page.choose("select[name=task]", "system.sleep")
            await page.fill("[name=seconds]", "3")
            await page.fill("[name=steps]", str(STEPS))
            await page.click("Post")
            await page.until(f"({seen})(5)")
            first.send(signal.SIGKILL)
            await first.exit_code()
            await page.until_text("reconnecting", "#live")
        async with api("second", tmp_path, redis_url, port):
            await page.until_text("success", "h1")
            await page.until_text("live", "#live")
            await page.until_text("task_complete", ".log")
            lines = (await page.text(".log")).splitlines()
            told = [line.rpartition("slept ")[2] for line in lines if "slept" in line]
            assert told == [f"{step} of {STEPS}" for step in range(1, STEPS + 1)]
