"""`nightshift` against the real API: what is printed, for people and for programs, and the exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from pydantic import BaseModel

from app import cli
from app.cli_arguments import Held
from app.cli_tasks import BadArgument, read_values
from app.cli_views import print_json, print_table
from app.client import ApiClient, open_api
from app.domains.flows import tasks as flow_tasks
from app.domains.system import tasks as system
from app.engine.approvals import ApprovalRequest
from app.engine.context import TaskContext
from app.engine.gates import OnBusy
from app.engine.registry import task
from app.engine.timetable import Schedule
from app.errors import RemoteStatus
from app.settings import settings
from app.store import keys as store_keys
from tests.acceptance.machine import Machine, url_of
from tests.api.live import Live, live_on
from tests.fakes.model_server import ModelServer
from tests.support import PATIENCE_S

ROOT = Path(__file__).parents[1]


@task("test.talk")
async def talk(ctx: TaskContext, params: system.Echo) -> None:
    """Say something as a model does."""
    await ctx.emit("stream_start", {"attempt": 1, "model": "m"})
    for text in ("Hello\x1b[2J\nth", "ere", "!"):
        await ctx.emit("text_chunk", {"text": text})
    await ctx.emit("stream_end", {"characters": 17})


class Stumble(BaseModel):
    value: str
    note: str = ""


@task("test.stumble")
async def stumble(ctx: TaskContext, params: Stumble) -> Stumble:
    """Fail behind a step, unless the value is good."""

    async def nothing() -> None:
        pass

    await ctx.step("first", nothing)
    if params.value != "good":
        raise ValueError(f"{params.value} is not good")
    return params


class Asked(BaseModel):
    deciders: tuple[str, ...] = ()


@task("test.ask")
async def ask(ctx: TaskContext, params: Asked) -> list[Any]:
    """Wait for a payment and then for a person."""
    paid = await ctx.wait_event("paid")
    decision = await ctx.approval(ApprovalRequest("Publish it?", {"to": "all"}, params.deciders))
    return [paid, decision.approved, decision.notes, decision.edits]


TASKS = (system.echo, system.sleep, system.fail, talk, stumble, ask, flow_tasks.run)
SCHEDULES = (Schedule("nightly", "system.echo", cron="0 3 * * *", params={"value": 1}, timezone="Asia/Tokyo"),)


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it printed."""

    code: int | str | None
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Awaitable[Done]]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory without `.env`, and no settings but those that a test makes."""
    for name in [name for name in os.environ if name.startswith("NIGHTSHIFT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a thread: it has an event loop of its own."""

    def in_thread(arguments: tuple[str, ...]) -> int | str | None:
        settings.cache_clear()
        try:
            cli.main(arguments)
        except SystemExit as ended:
            return ended.code
        raise AssertionError("a command ends the process")

    async def run(*arguments: str) -> Done:
        capsys.readouterr()
        code = await asyncio.to_thread(in_thread, arguments)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture
async def live(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    async with live_on(redis_url, TASKS, schedules=SCHEDULES) as running:
        monkeypatch.setenv("NIGHTSHIFT_URL", f"http://{running.address}")
        monkeypatch.setenv("NIGHTSHIFT_API_KEY", running.keys["ada"])
        yield running


async def first_heartbeat(url: str, key: str | None = None) -> None:
    """Wait until a worker of the service has said that it lives."""
    async with asyncio.timeout(PATIENCE_S), open_api(url, key) as api:
        while not await api.items("/api/workers"):
            await asyncio.sleep(0)


@pytest.fixture
def as_admin(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_API_KEY", live.keys["root"])


# What tasks wait for.


async def waits_for(api: ApiClient, task_id: str, kind: str) -> dict[str, Any]:
    """Wait until the task waits for this."""
    async with asyncio.timeout(PATIENCE_S), aclosing(api.watch(task_id)) as events:
        async for event in events:
            if event.type == "task_waiting" and event.payload["waiting_for"]["kind"] == kind:
                return dict(event.payload["waiting_for"])
    raise AssertionError("the task has ended")


async def test_a_task_is_sent_an_event_and_then_approved(live: Live, run: Run) -> None:
    task_id = (await run("submit", "test.ask", "--json")).json()["task_id"]
    async with open_api(f"http://{live.address}", live.keys["ada"]) as api:
        await waits_for(api, task_id, "event")
        shown = await run("show", task_id)
        assert re.search(r"^waits for +event paid until 20\d\d-", shown.out, re.MULTILINE)
        sent = await run("send", task_id, "paid", '{"amount": 3}', "--idempotency-key", "k")
        assert (sent.code, sent.out) == (0, f"{task_id}  paid  delivered\n")
        again = await run("send", task_id, "paid", "--idempotency-key", "k")
        assert again.out == f"{task_id}  paid  delivered before\n"
        approval_id = (await waits_for(api, task_id, "approval"))["approval_id"]
    assert (await run("approvals", "--status", "rejected")).out == "No approvals.\n"
    listed = await run("approvals", "--status", "pending")
    assert re.search(rf"^{approval_id} +PENDING +Publish it\? +test\.ask +ada ", listed.out, re.MULTILINE)
    assert (await run("approvals", "--json")).json()[0]["approval_id"] == approval_id
    shown = await run("approvals", "show", approval_id)
    assert re.search(rf"^task +test\.ask {task_id}$", shown.out, re.MULTILINE)
    assert json.loads(shown.out.partition("payload\n")[2]) == {"to": "all"}
    wrong = await run("approve", approval_id, "--edits", "[1]")
    assert (wrong.code, "expected a JSON object" in wrong.err) == (2, True)
    done = await run("approve", approval_id, "--notes", "fine", "--edits", '{"to": "few"}')
    assert (done.code, done.out) == (0, f"{approval_id}  APPROVED\n")
    watched = await run("watch", task_id)
    assert watched.code == 0
    assert re.search(r" task_waiting +event paid until ", watched.out)
    assert re.search(r" event_delivered +paid$", watched.out, re.MULTILINE)
    assert re.search(rf" hitl_pending +Publish it\? \(approval {approval_id}, until 20", watched.out)
    assert re.search(rf" task_waiting +approval {approval_id} until ", watched.out)
    assert re.search(r" approval_decided +APPROVED by ada: fine$", watched.out, re.MULTILINE)
    assert json.loads(watched.out.partition("result\n")[2]) == [{"amount": 3}, True, "fine", {"to": "few"}]
    refused = await run("reject", approval_id)
    assert (refused.code, "is APPROVED already, by ada" in refused.err) == (1, True)
    shown = await run("approvals", "show", approval_id)
    assert re.search(r"^by +ada$", shown.out, re.MULTILINE)
    assert '"few"' in shown.out.partition("edits\n")[2]


async def test_a_task_is_rejected_by_whom_it_asks(live: Live, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id = (await run("submit", "test.ask", 'deciders=["bob"]', "--json")).json()["task_id"]
    await run("send", task_id, "paid", "in cash")
    async with open_api(f"http://{live.address}", live.keys["ada"]) as api:
        approval_id = (await waits_for(api, task_id, "approval"))["approval_id"]
    assert (await run("reject", approval_id)).code == 1
    monkeypatch.setenv("NIGHTSHIFT_API_KEY", live.keys["bob"])
    assert (await run("reject", approval_id, "--notes", "no", "--json")).json()["decided_by"] == "bob"
    monkeypatch.setenv("NIGHTSHIFT_API_KEY", live.keys["ada"])
    assert (await run("watch", task_id, "--json")).code == 0
    assert (await run("show", task_id, "--json")).json()["result"] == ["in cash", False, "no", None]


async def test_what_is_asked_is_taken_back(live: Live, run: Run) -> None:
    task_id = (await run("submit", "test.ask", "--json")).json()["task_id"]
    await run("send", task_id, "paid")
    async with open_api(f"http://{live.address}", live.keys["ada"]) as api:
        approval_id = (await waits_for(api, task_id, "approval"))["approval_id"]
    assert (await run("withdraw", approval_id)).out == f"{approval_id}  WITHDRAWN\n"
    watched = await run("watch", task_id)
    assert (watched.code, "ApprovalWithdrawn" in watched.out) == (1, True)
    assert (await run("withdraw", "nothing")).code == 1


# Tasks.


async def test_a_task_is_submitted_and_shown(live: Live, run: Run) -> None:
    submitted = await run(
        "submit", "system.echo", "value=5", "--project", "apollo", "--tag", "a", "--tag", "b", "--json"
    )
    assert submitted.code == 0
    task_id = submitted.json()["task_id"]
    watched = await run("watch", task_id)
    assert watched.code == 0
    shown = await run("show", task_id)
    assert shown.code == 0
    assert re.search(rf"^task +system\.echo {task_id}$", shown.out, re.MULTILINE)
    assert re.search(r"^status +SUCCESS$", shown.out, re.MULTILINE)
    assert re.search(r"^project +apollo$", shown.out, re.MULTILINE)
    assert re.search(r"^tags +a, b$", shown.out, re.MULTILINE)
    assert json.loads(shown.out.partition("result\n")[2]) == {"value": 5}
    assert (await run("show", task_id, "--json")).json()["result"] == {"value": 5}


async def test_watching_shows_every_event_in_plain_lines(live: Live, run: Run) -> None:
    done = await run("submit", "system.sleep", "seconds=0", "steps=2", "--watch")
    assert done.code == 0
    lines = [line.split(maxsplit=1)[1] for line in done.out.partition("\n\n")[0].splitlines()]
    assert lines[1:] == [
        "task_started     attempt 1",
        "task_progress    50 % slept 1 of 2",
        "task_progress    100 % slept 2 of 2",
        "task_complete",
    ]
    assert "\x1b" not in done.out


async def test_watching_as_json_is_a_line_for_each_event_and_nothing_else(live: Live, run: Run) -> None:
    done = await run("submit", "system.echo", "value=1", "--watch", "--json")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [event["type"] for event in events] == ["task_queued", "task_started", "task_complete"]
    assert all(event["at"].endswith("Z") for event in events)


async def test_a_watched_task_that_fails_is_exit_code_1_with_its_error(live: Live, run: Run) -> None:
    done = await run("submit", "system.fail", "retryable=false", "--watch")
    assert done.code == 1
    assert "task_failed      PermanentError: attempt 1 fails as it was asked to (always)" in done.out
    assert re.search(r"^error +PermanentError: attempt 1 fails", done.out, re.MULTILINE)


async def test_a_task_is_cancelled_and_run_again(live: Live, run: Run) -> None:
    task_id = (await run("submit", "system.sleep", "seconds=60", "--json")).json()["task_id"]
    assert (await run("cancel", task_id)).code == 0
    watched = await run("watch", task_id)
    assert (watched.code, "CANCELLED" in watched.out) == (1, True)
    again = await run("retry", task_id, "seconds=0", "--watch")
    assert again.code == 0
    assert re.search(rf"^retry of +{task_id}$", again.out, re.MULTILINE)
    refused = await run("cancel", task_id)
    assert (refused.code, refused.out) == (1, "")
    assert task_id in refused.err


async def test_tasks_are_listed_newest_first_with_filters(live: Live, run: Run) -> None:
    assert (await run("ls")).out == "No tasks.\n"
    first = (await run("submit", "system.echo", "value=1", "--tag", "x", "--json")).json()["task_id"]
    second = (await run("submit", "system.sleep", "seconds=0", "--delay", "3600", "--json")).json()["task_id"]
    await run("watch", first)
    listed = (await run("ls")).out.splitlines()
    assert listed[0].split() == ["id", "task", "status", "progress", "queue", "attempt", "enqueued"]
    assert [line.split()[0] for line in listed[1:]] == [second, first]
    assert [task["task_id"] for task in (await run("ls", "--tag", "x", "--json")).json()] == [first]
    assert [task["task_id"] for task in (await run("ls", "--limit", "1", "--json")).json()] == [second]
    assert (await run("ls", "--task", "system.fail", "--json")).json() == []


async def test_what_holds_a_task_back_is_said_by_flags(live: Live, run: Run) -> None:
    keyed = ("submit", "system.echo", "value=1", "--json", "--key", "page:7")
    first = (await run(*keyed, "--debounce", "3600", "--debounce-max", "7200")).json()["task_id"]
    assert (await run(*keyed, "--debounce", "3600")).json()["task_id"] == first
    assert (await run(*keyed, "--on-busy", "join")).json()["task_id"] == first
    refused = await run(*keyed, "--on-busy", "reject")
    assert (refused.code, f"has an unfinished task, {first}" in refused.err) == (1, True)
    second = (await run(*keyed)).json()["task_id"]
    shown = await run("show", second)
    assert re.search(r"^key +page:7$", shown.out, re.MULTILINE)
    assert re.search(r"^behind +1 unfinished$", shown.out, re.MULTILINE)
    paced = ("--key", "mail", "--on-busy", "parallel", "--throttle", "3600", "--throttle-burst", "2")
    starts = [(await run("submit", "system.echo", "value=1", *paced, "--json")).json() for _ in range(3)]
    assert [task["next_attempt_at"] is not None for task in starts] == [False, False, True]
    last = (await run("submit", "system.echo", "value=1", "--after", first, "--after", second, "--json")).json()
    assert last["waiting_for"]["count"] == 2


def test_the_flag_knows_all_that_a_busy_key_may_do() -> None:
    assert set(get_args(get_args(get_type_hints(Held)["on_busy"])[0])) == {choice.value for choice in OnBusy}


async def test_the_text_of_a_model_is_shown_as_text_that_cannot_act_on_the_terminal(live: Live, run: Run) -> None:
    done = await run("submit", "test.talk", "value=1", "--watch")
    assert "\nHello [2J\nthere!\n" in done.out
    assert "text_chunk" not in done.out


# Operation.


# Flows and trees.

FLOW = {
    "sequence": [
        {"name": "first", "task": "system.echo", "params": {"value": ["a\x1b[2J", "bad"]}},
        {
            "map": {"$from": "first.value"},
            "each": {"task": "test.stumble", "params": {"value": {"$from": "item"}}},
            "on_error": "collect",
        },
    ]
}


async def test_a_flow_is_posted_followed_and_shown_as_a_tree(live: Live, run: Run) -> None:
    Path("flow.json").write_text(json.dumps(FLOW))
    done = await run("flow", "flow.json", "--watch", "--project", "apollo", "--tag", "a", "--priority", "2")
    assert done.code == 0
    assert re.search(r"^project +apollo$", done.out, re.MULTILINE)
    assert [item["error"]["type"] for item in json.loads(done.out.partition("result\n")[2])] == ["ValueError"] * 2
    task_id = re.search(r"^task +flows.run (\w+)$", done.out, re.MULTILINE)
    assert task_id is not None
    tree = (await run("tree", task_id[1])).out
    assert [re.sub(r"  \w{32}$", "", line) for line in tree.splitlines()] == [
        "flows.run  SUCCESS",
        "  first  system.echo  SUCCESS",
        "  2  flows.run  SUCCESS",
        "    0  test.stumble  FAILURE  ValueError: a [2J is not good",
        "    1  test.stumble  FAILURE  ValueError: bad is not good",
    ]
    assert (await run("tree", task_id[1], "--limit", "2")).out.splitlines()[-1] == "  … 1 more"
    as_json = (await run("tree", task_id[1], "--depth", "1", "--json")).json()
    assert (as_json["count"], as_json["truncated"]) == (3, True)


async def test_a_flow_that_cannot_be_read_is_exit_code_2(run: Run) -> None:
    Path("list.json").write_text("[]")
    Path("text.json").write_text("{")
    for file, told in (
        ("no.json", "cannot be read"),
        ("list.json", "expected an object"),
        ("text.json", "expected JSON"),
    ):
        done = await run("flow", file)
        assert (done.code, done.out, told in done.err) == (2, "", True)


async def test_a_flow_that_is_refused_names_the_place(live: Live, run: Run) -> None:
    Path("flow.json").write_text(json.dumps({"sequence": [{"task": "system.echo", "params": {"valeu": 1}}]}))
    done = await run("flow", "flow.json")
    assert (done.code, done.out) == (1, "")
    assert "flow/sequence/0/params/valeu" in done.err


async def test_task_types_are_listed_with_their_parameters(live: Live, run: Run) -> None:
    done = await run("tasks")
    (row,) = [line for line in done.out.splitlines() if line.startswith("system.sleep")]
    assert "seconds [steps]" in row
    assert "Sleep, and report progress after each of the steps." in row
    assert {item["task"] for item in (await run("tasks", "--json")).json()} == {task.name for task in TASKS}


async def test_quotas_are_listed_with_their_use(redis_url: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async with live_on(redis_url, TASKS, llm_requests_per_minute=60, quotas="web=/500/2") as running:
        monkeypatch.setenv("NIGHTSHIFT_URL", f"http://{running.address}")
        monkeypatch.setenv("NIGHTSHIFT_API_KEY", running.keys["ada"])
        quotas = running.app.state.engine.quotas
        async with quotas.hold("web", tokens=40):
            rows = [re.split(r" {2,}", line) for line in (await run("quotas")).out.splitlines()]
            assert {item["key"] for item in (await run("quotas", "--json")).json()} == {"llm", "web"}
        with pytest.raises(RemoteStatus):
            async with quotas.hold("llm"):
                raise RemoteStatus("slow down", remote_status=429)
        assert "50% until 20" in (await run("quotas")).out
    assert rows[1:] == [["llm", "0 of 60", "0", "0", "0"], ["web", "1", "40 of 500", "1 of 2", "0"]]


@pytest.mark.usefixtures("live")
async def test_where_no_quotas_are_set_none_are_listed(run: Run) -> None:
    assert (await run("quotas")).out == "No quotas are set.\n"


@pytest.mark.usefixtures("as_admin")
async def test_queues_are_listed_paused_and_resumed(run: Run) -> None:
    assert (await run("queues", "pause", "other")).out == "other: paused\n"
    rows = {line.split()[0]: line for line in (await run("queues")).out.splitlines()}
    assert rows["other"].endswith("paused")
    assert not rows["default"].endswith("paused")
    assert rows["queue"].split()[1:6] == ["ready", "delayed", "running", "waiting", "dead"]
    assert (await run("queues", "resume", "other")).out == "other: running\n"
    assert not any(queue["paused"] for queue in (await run("queues", "--json")).json())
    unknown = await run("queues", "pause", "nosuch")
    assert (unknown.code, unknown.out) == (1, "")
    assert "nosuch" in unknown.err


@pytest.mark.usefixtures("as_admin")
async def test_schedules_are_listed_shown_paused_and_resumed(run: Run) -> None:
    row = (await run("schedules")).out.splitlines()[1]
    assert re.match(r"nightly +system\.echo +0 3 \* \* \* +Asia/Tokyo +\S+ 18:00:00Z$", row)
    assert (await run("schedules", "pause", "nightly")).out == "nightly: paused\n"
    assert "  paused" in (await run("schedules")).out
    assert (await run("schedules", "--json")).json()[0]["paused"]
    assert re.match(r"nightly: running, next \S+ 18:00:00Z$", (await run("schedules", "resume", "nightly")).out)
    shown = await run("schedules", "show", "nightly")
    assert re.search(r"^cron +0 3 \* \* \* \(Asia/Tokyo\)$", shown.out, re.MULTILINE)
    assert json.loads(shown.out.partition("params\n")[2]) == {"value": 1}
    assert (await run("schedules", "show", "nightly", "--json")).json()["name"] == "nightly"
    unknown = await run("schedules", "trigger", "nosuch")
    assert (unknown.code, unknown.out) == (1, "")
    assert "nosuch" in unknown.err


@pytest.mark.usefixtures("as_admin")
async def test_a_triggered_schedule_prints_the_task_that_can_be_watched(run: Run) -> None:
    task_id = (await run("schedules", "trigger", "nightly")).out.strip()
    assert (await run("watch", task_id)).code == 0
    assert "SUCCESS" in (await run("schedules")).out
    assert task_id in (await run("schedules", "show", "nightly")).out


async def test_schedules_are_changed_by_admins_only(live: Live, run: Run) -> None:
    assert (await run("schedules")).out == "No schedules.\n"
    refused = await run("schedules", "trigger", "nightly")
    assert (refused.code, refused.out) == (1, "")
    assert "admin" in refused.err


@pytest.mark.usefixtures("as_admin")
async def test_workers_are_listed(live: Live, run: Run) -> None:
    await first_heartbeat(f"http://{live.address}", live.keys["root"])
    done = await run("workers", "--json")
    assert [worker["pid"] for worker in done.json()] == [os.getpid()]
    assert str(os.getpid()) in (await run("workers")).out


async def test_what_is_for_admins_is_refused_to_others(live: Live, run: Run) -> None:
    done = await run("workers")
    assert (done.code, done.out) == (1, "")
    assert "admin" in done.err


async def test_dead_letters_are_listed_and_shown_with_all_attempts(live: Live, run: Run) -> None:
    assert (await run("dead-letters")).out == "No dead letters.\n"
    task_id = (await run("submit", "system.fail", "retryable=false", "--json")).json()["task_id"]
    await run("watch", task_id)
    assert f"{task_id}  system.fail  1" in (await run("dead-letters")).out
    assert (await run("dead-letters", "--task", "system.echo")).out == "No dead letters.\n"
    shown = await run("dead-letters", "show", task_id)
    assert re.search(r"^attempt 1 +PermanentError: attempt 1 fails", shown.out, re.MULTILINE)
    assert '"retryable": false' in shown.out
    assert "Traceback (most recent call last):" in shown.out
    assert (await run("dead-letters", "show", task_id, "--json")).json()["params"]["retryable"] is False


async def dead_letter(run: Run, *arguments: str) -> str:
    """A task that failed for good; its id."""
    done = await run("submit", *arguments, "--json")
    await run("watch", done.json()["task_id"])
    return str(done.json()["task_id"])


async def test_a_dead_letter_is_replayed_and_some_of_its_parameters_changed(live: Live, run: Run) -> None:
    old = await dead_letter(run, "test.stumble", "value=bad", "note=kept")
    assert re.search(r"^steps done +first$", (await run("dead-letters", "show", old)).out, re.MULTILINE)
    replayed = await run("dead-letters", "replay", old, "value=good", "--watch")
    assert replayed.code == 0
    assert re.search(rf"^retry of +{old}$", replayed.out, re.MULTILINE)
    assert json.loads(replayed.out.partition("result\n")[2]) == {"value": "good", "note": "kept"}
    again = await run("dead-letters", "replay", old)
    assert (again.code, again.out) == (1, "")
    assert "was replayed already, as task" in again.err


async def test_dead_letters_are_narrowed_replayed_and_discarded_in_bulk(live: Live, run: Run) -> None:
    first, second = [await dead_letter(run, "test.stumble", "value=bad", "--project", name) for name in "ab"]
    third = await dead_letter(run, "system.fail", "retryable=false")
    for options, found in (
        (("--error", "PermanentError"), {third}),
        (("--project", "a"), {first}),
        (("--tag", "x"), set()),
        (("--failed-after", "2001-01-01T00:00:00Z"), {first, second, third}),
        (("--failed-before", "2001-01-01T00:00:00Z"), set()),
    ):
        assert {item["task_id"] for item in (await run("dead-letters", *options, "--json")).json()} == found
    replayed = await run("dead-letters", "replay", "--task", "test.stumble", "--project", "a", "--all", "--json")
    assert [one["task_id"] for one in replayed.json()["replayed"]] == [first]
    await run("watch", replayed.json()["replayed"][0]["replayed_as"])
    assert (await run("dead-letters", "discard", third)).out == f"{third}  discarded\n"
    assert (await run("dead-letters", "discard", "--task", "system.fail")).out == "0 discarded\n"
    assert (await run("dead-letters", "discard", "--all")).out == "2 discarded\n"
    assert (await run("dead-letters")).out == "No dead letters.\n"


async def test_what_cannot_be_replayed_is_told_with_exit_code_1(live: Live, run: Run) -> None:
    old = await dead_letter(run, "test.stumble", "value=bad")
    await live.engine.redis.hset(store_keys.dead_letter(old), "task", "test.forgotten")
    done = await run("dead-letters", "replay", "--all")
    assert done.code == 1
    assert re.search(rf"^{old}  .*no task is called 'test.forgotten' any more$", done.out, re.MULTILINE)


@pytest.mark.parametrize("action", ["replay", "discard"])
async def test_what_is_meant_in_bulk_must_be_said(run: Run, action: str) -> None:
    for arguments in ((), ("t1", "--all"), ("t1", "--queue", "default")):
        done = await run("dead-letters", action, *arguments)
        assert (done.code, done.out) == (2, "")
        assert "expected either the id of a task" in done.err


# Keys.


async def test_a_key_is_shown_once_listed_without_its_hash_and_revoked(run: Run) -> None:
    made = await run("keys", "create", "ada", "--scope", "admin", "--days", "2")
    assert made.code == 0
    assert re.fullmatch(r"ns_[0-9a-f]{16}_\S{40,}\n", made.out)
    assert "not shown again" in made.err
    (listed,) = (await run("keys", "list", "--json")).json()
    assert (listed["user_id"], listed["scopes"], listed["revoked"]) == ("ada", ["admin"], False)
    assert "hash" not in listed
    secret = made.out.strip().rpartition("_")[2]
    assert secret not in (await run("keys", "list")).out
    assert (await run("keys", "revoke", listed["id"])).code == 0
    assert (await run("keys", "list")).out.splitlines()[1].endswith("revoked")
    assert (await run("keys", "revoke", "nosuch")).code == 1


async def test_a_key_that_was_made_here_opens_the_service(
    redis_url: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with live_on(redis_url, TASKS) as live:
        monkeypatch.setenv("NIGHTSHIFT_URL", f"http://{live.address}")
        monkeypatch.setenv("NIGHTSHIFT_API_KEYS_FILE", str(live.app.state.settings.api_keys_file))
        refused = await run("ls")
        key = (await run("keys", "create", "ada")).out.strip()
        monkeypatch.setenv("NIGHTSHIFT_API_KEY", key)
        allowed = await run("ls")
    assert (refused.code, allowed.code) == (1, 0)


# Wrong use.


async def test_a_service_that_is_not_there_is_said_with_what_to_do(
    run: Run, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_URL", f"http://127.0.0.1:{unused_tcp_port}")
    for command in (("ls",), ("watch", "t1"), ("submit", "system.echo", "value=1")):
        done = await run(*command)
        assert (done.code, done.out) == (1, "")
        assert re.match(rf"the service at \S+127\.0\.0\.1:{unused_tcp_port}\S* cannot be reached: ", done.err)
        assert "nightshift serve" in done.err


@pytest.mark.parametrize(
    "arguments",
    [("nosuch",), ("show",), ("ls", "--limit", "many"), ("submit", "system.echo", "no-value"), ("keys", "lend")],
)
async def test_wrong_use_is_exit_code_2(run: Run, arguments: tuple[str, ...]) -> None:
    done = await run(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.out + done.err


async def test_wrong_settings_are_one_line_and_exit_code_2(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_PORT", "many")
    done = await run("ls")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "NIGHTSHIFT_PORT='many'" in done.err


async def test_what_the_service_refuses_is_exit_code_1_and_its_words(live: Live, run: Run) -> None:
    done = await run("submit", "system.sleep", "secs=1")
    assert (done.code, done.out) == (1, "")
    assert "seconds" in done.err


# Values.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-1.5", -1.5),
        ("true", True),
        ("null", None),
        ('"5"', "5"),
        ("[1, 2]", [1, 2]),
        ('{"a": {}}', {"a": {}}),
        ("hello world", "hello world"),
        ("", ""),
        ("https://host/x?a=b", "https://host/x?a=b"),
        ("[not json", "[not json"),
    ],
)
def test_a_value_is_json_where_it_is_json_else_text(text: str, value: Any) -> None:
    assert read_values([f"key={text}"]) == {"key": value}


def test_a_value_may_be_the_text_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("5", "utf-8")
    assert read_values([f"prompt=@{tmp_path / 'prompt.txt'}"]) == {"prompt": "5"}


@pytest.mark.parametrize("item", ["novalue", "=5", "key=@/nowhere/at/all"])
def test_a_value_that_cannot_be_read_is_named(item: str) -> None:
    with pytest.raises(BadArgument, match=re.escape(item)):
        read_values([item])


# Printing.


def test_columns_are_as_wide_as_what_stands_in_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "long header"), [("wide cell", 1), (None, "x\x1b[31my")], nothing="")
    assert capsys.readouterr().out == "a          long header\nwide cell  1\n           x [31my\n"


def test_json_is_plain_ascii_where_the_terminal_has_no_utf8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="latin-1") as out:
        monkeypatch.setattr(sys, "stdout", out)
        print_json({"a": "ü€"})
    assert json.loads((tmp_path / "out").read_bytes()) == {"a": "ü€"}


# The process, and the doctor.


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`nightshift ARGUMENTS` as a process of its own."""
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "app.cli", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_command_and_needs_no_service() -> None:
    done = process("--help", COLUMNS="200")
    assert (done.returncode, done.stderr) == (0, "")
    commands = set(re.findall(r"^│ ([a-z-]+) ", done.stdout, re.MULTILINE))
    assert {"serve", "submit", "watch", "show", "ls", "cancel", "retry", "tasks"} <= commands
    assert {"dead-letters", "queues", "schedules", "workers", "keys", "doctor"} <= commands
    assert "NIGHTSHIFT_URL" in done.stdout


def test_help_loads_none_of_the_service() -> None:
    heavy = ("pydantic", "httpx", "redis", "fastapi", "uvicorn", "websockets", "loguru")
    code = f"import app.cli, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def findings(done: Done) -> dict[str, str]:
    """The doctor's verdict on each thing."""
    rows = (line.split() for line in done.out.splitlines() if line.startswith(("ok ", "PROBLEM ")))
    return {row[1]: row[0] for row in rows}


@pytest.mark.acceptance
async def test_the_doctor_finds_all_well_beside_a_running_service(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, tmp_path / "data")
    async with machine.start("serve", port=0) as service:
        monkeypatch.setenv("NIGHTSHIFT_URL", url := await url_of(service))
        await first_heartbeat(url)
        monkeypatch.setenv("NIGHTSHIFT_DATA_DIR", str(tmp_path / "data"))
        done = await run("doctor")
        as_json = await run("doctor", "--json")
    assert done.code == 0, done.out
    assert done.out.endswith("All is well.\n")
    names = {"Redis", "workers", "events", "clocks", "API", "credentials", "model", "git"}
    assert findings(done) == dict.fromkeys(names, "ok")
    assert {finding["name"] for finding in as_json.json()} == names


async def test_the_doctor_says_what_to_do_where_nothing_runs(
    run: Run, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_URL", f"http://127.0.0.1:{unused_tcp_port}")
    done = await run("doctor")
    assert done.code == 1
    problems = {"Redis": "PROBLEM", "API": "PROBLEM"}
    assert findings(done) == {**problems, "credentials": "ok", "model": "ok", "git": "ok"}
    assert "-> start the service: `nightshift serve`" in done.out
    assert not Path(".nightshift").exists() or not list(Path(".nightshift").rglob("*.sock"))


async def test_the_doctor_names_the_queues_that_no_worker_serves(
    live: Live, redis_url: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", redis_url)
    await first_heartbeat(f"http://{live.address}", live.keys["root"])
    done = await run("doctor")
    assert (done.code, findings(done)["workers"]) == (1, "PROBLEM")
    (line,) = [line for line in done.out.splitlines() if line.startswith("PROBLEM  workers")]
    # The test's worker serves `default` alone of the service's queues.
    assert "1 alive, none for agent, analyst" in line
    assert "default" not in line
    assert {findings(done)[name] for name in ("Redis", "events", "clocks", "API")} == {"ok"}


@pytest.mark.parametrize(
    ("api_key", "code", "words"),
    [("right", "ok", "fake-model answers"), ("wrong-one", "PROBLEM", "refused the credentials")],
)
async def test_the_doctor_asks_the_model(
    live: Live, run: Run, monkeypatch: pytest.MonkeyPatch, api_key: str, code: str, words: str
) -> None:
    async with ModelServer(api_key="right") as server:
        monkeypatch.setenv("NIGHTSHIFT_LLM_BASE_URL", server.base_url)
        monkeypatch.setenv("NIGHTSHIFT_LLM_MODEL", server.model)
        monkeypatch.setenv("NIGHTSHIFT_LLM_API_KEY", api_key)
        done = await run("doctor")
    assert findings(done)["model"] == code
    assert words in done.out
    assert "wrong-one" not in done.out


async def test_the_doctor_looks_at_the_credentials(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys_file = tmp_path / "keys.json"
    monkeypatch.setenv("NIGHTSHIFT_API_KEYS_FILE", str(keys_file))
    monkeypatch.setenv("NIGHTSHIFT_AUTH", "keys")
    assert findings(await run("doctor"))["credentials"] == "PROBLEM"
    await run("keys", "create", "ada")
    assert findings(await run("doctor"))["credentials"] == "ok"
    keys_file.chmod(0o666)
    done = await run("doctor")
    assert findings(done)["credentials"] == "PROBLEM"
    assert "chmod 600" in done.out


async def test_the_doctor_misses_git(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert findings(await run("doctor"))["git"] == "PROBLEM"
