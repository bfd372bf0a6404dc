"""A task asks a person: it is asked once, decided once, announced once, and ends at its deadline or with its task."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, Field
from redis.asyncio import Redis

from app.engine.approval_desk import AlreadyDecided, Approval, Verdict
from app.engine.approvals import ApprovalRequest, ApprovalStatus, approval_id_of
from app.engine.context import TaskContext
from app.engine.events import Event
from app.engine.job import Status, TaskRecord
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.errors import (
    ApprovalExpired,
    ApprovalWithdrawn,
    Forbidden,
    Gone,
    InvalidInput,
    NotFound,
    PermanentError,
    RetryableError,
    TooLarge,
)
from app.store import keys
from tests.api.running import everything
from tests.support import engine_on, event_of, finished

effects: Counter[str] = Counter()


@dataclass(frozen=True)
class Someone:
    user_id: str
    scopes: frozenset[str] = frozenset()
    is_admin: bool = False


ADA, EVE, BOB = Someone("ada"), Someone("eve"), Someone("bob")
EDITOR, ROOT = Someone("kim", frozenset({"editor", "other"})), Someone("root", is_admin=True)
YES, NO = Verdict(approved=True), Verdict(approved=False, notes="too long")


class Ask(BaseModel):
    subject: str = "Publish?"
    payload: dict[str, Any] = {}
    deciders: tuple[str, ...] = ()
    scope: str | None = None
    expires_s: float = 3_600
    then: str = ""


class Title(BaseModel):
    title: str = Field(max_length=10)


@pytest.fixture(autouse=True)
def no_effects() -> None:
    effects.clear()


@task("test.ask", retry=RetryPolicy(max_retries=2, base_s=0.01))
async def ask(ctx: TaskContext, params: Ask) -> dict[str, Any]:
    effects["entered"] += 1
    request = ApprovalRequest(params.subject, params.payload, params.deciders, params.scope)
    decision = await ctx.approval(request, timedelta(seconds=params.expires_s))
    effects["decided"] += 1
    if params.then == "retry" and ctx.attempt == 1:
        raise RetryableError("after the decision")
    if params.then == "fail":
        raise PermanentError("after the decision")
    return {"approved": decision.approved, "notes": decision.notes, "by": decision.decided_by, "edits": decision.edits}


@task("test.edit")
async def edit(ctx: TaskContext, params: Ask) -> str:
    decision = await ctx.approval(ApprovalRequest("Which title?", Title(title="old")), edits=Title)
    assert decision.edits is None or isinstance(decision.edits, Title)
    return "none" if decision.edits is None else decision.edits.title


@task("test.caught")
async def caught(ctx: TaskContext, params: Ask) -> str:
    try:
        await ctx.approval(ApprovalRequest(params.subject), timedelta(seconds=params.expires_s))
    except (ApprovalExpired, ApprovalWithdrawn) as error:
        return type(error).__name__
    return "decided"


@task("test.stop_asking", retry=RetryPolicy(max_retries=0))
async def stop_asking(ctx: TaskContext, params: Ask) -> str:
    """Ask, and fail when entered again."""
    if effects["entered"]:
        raise PermanentError("I do not ask any more")
    effects["entered"] += 1
    await ctx.approval(ApprovalRequest(params.subject))
    return "answered"


@task("test.fails_once_behind", retry=RetryPolicy(max_retries=0))
async def fails_once_behind(ctx: TaskContext, params: Ask) -> str:
    """Ask, and fail the first time behind the answer."""
    decision = await ctx.approval(ApprovalRequest(params.subject))
    effects["behind"] += 1
    if effects["behind"] == 1:
        raise PermanentError("once")
    return decision.approval_id


TASKS = (ask, edit, caught, stop_asking, fails_once_behind)


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with engine_on(redis_url, TASKS) as running:
        yield running


async def put(engine: Engine, name: str = "test.ask", **params: Any) -> str:
    return (await engine.tasks.enqueue(Submission(task=name, params=params), user_id="ada")).task_id


async def asked(engine: Engine, name: str = "test.ask", **params: Any) -> tuple[str, str]:
    """A task that waits for its approval, and the id of that."""
    task_id = await put(engine, name, **params)
    waiting = await event_of(engine, task_id, "task_waiting")
    return task_id, waiting["waiting_for"]["approval_id"]


async def ended(engine: Engine, task_id: str) -> TaskRecord:
    await finished(engine, task_id)
    return await engine.tasks.get(task_id, user_id="ada", with_result=True)


async def told(engine: Engine, channel: str, kind: str) -> list[dict[str, Any]]:
    events: list[Event] = await engine.events.read(channel, channel)
    return [event.data() for event in events if event.type == kind]


async def open_keys(redis: Redis) -> list[bytes]:
    """What there is of approvals that are pending."""
    prefixes = (keys.approvals(pending=True), keys.PREFIXES["approval_deadlines"])
    return [key async for key in redis.scan_iter() if key.decode().startswith(prefixes)]


async def pass_deadline(redis: Redis, approval_id: str) -> None:
    """Let the deadline of an approval be over, as when nobody has looked since. The wait of its task goes on."""
    await redis.hset(keys.approval(approval_id), "expires_at", 1)
    await redis.zadd(keys.PREFIXES["approval_deadlines"], {approval_id: 1}, xx=True)


# Deciding.


@pytest.mark.parametrize("approved", [True, False])
async def test_the_task_goes_on_with_the_answer_and_costs_no_try(engine: Engine, redis: Redis, approved: bool) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine, payload={"url": "u"})
        record = await engine.tasks.get(task_id, user_id="ada")
        seen = await engine.approvals.get(approval_id, ADA)
        decided = await engine.approvals.decide(approval_id, Verdict(approved, "well", {"title": "T"}), ADA)
        done = await ended(engine, task_id)
    assert record.status is Status.WAITING
    assert record.waiting_for is not None
    assert (record.waiting_for["kind"], record.waiting_for["approval_id"]) == ("approval", approval_id)
    assert record.waiting_for["until"] == seen.expires_at
    assert (seen.status, seen.subject, seen.payload, seen.task_id) == ("PENDING", "Publish?", {"url": "u"}, task_id)
    assert seen.expires_at - seen.created_at == timedelta(hours=1)
    assert done.result == {"approved": approved, "notes": "well", "by": "ada", "edits": {"title": "T"}}
    assert (done.attempt, effects) == (1, {"entered": 2, "decided": 1})
    assert [step.name for step in done.steps] == ["approval"]
    assert (decided.status, decided.decided_by) == ("APPROVED" if approved else "REJECTED", "ada")
    assert await open_keys(redis) == []
    assert await told(engine, f"task:{task_id}", "hitl_pending") == [
        {"approval_id": approval_id, "subject": "Publish?", "expires_at": iso(seen.expires_at)}
    ]
    assert await told(engine, f"task:{task_id}", "approval_decided") == [
        {
            "approval_id": approval_id,
            "subject": "Publish?",
            "status": decided.status,
            "approved": approved,
            "decided_by": "ada",
            "notes": "well",
            "edits": {"title": "T"},
        }
    ]


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def test_a_decision_that_comes_before_the_wait_is_found(engine: Engine) -> None:
    task_id = await put(engine)
    real = engine.scripts.suspend
    approval_id = approval_id_of(task_id, 0)

    async def decide_first(*args: Any) -> list[int]:
        if effects["slow"] == 0:
            effects["slow"] = 1
            await engine.approvals.decide(approval_id, YES, ADA)
        return await real(*args)

    engine.scripts.suspend = decide_first  # type: ignore[method-assign]
    async with engine.worker():
        done = await ended(engine, task_id)
    assert done.result["approved"]
    assert await told(engine, f"task:{task_id}", "task_waiting") == []


async def test_a_retry_behind_a_decision_does_not_ask_again(engine: Engine) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine, then="retry")
        await engine.approvals.decide(approval_id, YES, ADA)
        done = await ended(engine, task_id)
    assert (done.attempt, done.result["approved"]) == (2, True)
    assert len(await told(engine, f"task:{task_id}", "hitl_pending")) == 1


async def test_a_replay_names_the_approval_that_the_old_task_asked_for(engine: Engine) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine, "test.fails_once_behind")
        await engine.approvals.decide(approval_id, YES, ADA)
        assert (await ended(engine, task_id)).status is Status.FAILURE
        again = await engine.dead_letters.replay(task_id, user_id="ada")
        assert (await ended(engine, again.task_id)).result == approval_id


async def test_another_worker_finds_what_was_asked(engine: Engine) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine)
    await engine.approvals.decide(approval_id, NO, ADA)
    async with engine.worker():
        done = await ended(engine, task_id)
    assert done.result["notes"] == "too long"
    assert len(await told(engine, f"task:{task_id}", "hitl_pending")) == 1


async def test_of_decisions_at_once_one_wins_and_the_others_are_told_whose(engine: Engine) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine, deciders=("eve", "bob"))
        verdicts = [engine.approvals.decide(approval_id, Verdict(by is EVE), by) for by in (EVE, BOB) * 10]
        outcomes = await asyncio.gather(*verdicts, return_exceptions=True)
        done = await ended(engine, task_id)
    (won,) = [outcome for outcome in outcomes if isinstance(outcome, Approval)]
    lost = [outcome for outcome in outcomes if isinstance(outcome, AlreadyDecided)]
    assert len(lost) == 19
    assert {(error.status, error.decided_by) for error in lost} == {(won.status, won.decided_by)}
    assert done.result["by"] == won.decided_by
    assert len(await told(engine, f"task:{task_id}", "approval_decided")) == 1


async def test_the_same_decision_under_the_same_key_is_answered_again(engine: Engine) -> None:
    async with engine.worker():
        _, approval_id = await asked(engine)
        keyed = Verdict(approved=True, notes="n", key="k1")
        first = await engine.approvals.decide(approval_id, keyed, ADA)
        assert await engine.approvals.decide(approval_id, keyed, ADA) == first
        for other, by in ((Verdict(approved=False, notes="n", key="k1"), ADA), (YES, ADA), (keyed, ROOT)):
            with pytest.raises(AlreadyDecided, match="APPROVED already, by ada"):
                await engine.approvals.decide(approval_id, other, by)


# Who may.


@pytest.mark.parametrize(
    ("asked_of", "deciding", "reading"),
    [
        ({}, {"ada"}, {"ada"}),
        ({"deciders": ("eve",)}, {"eve"}, {"ada", "eve"}),
        ({"deciders": ("eve", "ada")}, {"ada", "eve"}, {"ada", "eve"}),
        ({"scope": "editor"}, {"kim"}, {"ada", "kim"}),
        ({"scope": "editor", "deciders": ("bob",)}, {"kim", "bob"}, {"ada", "kim", "bob"}),
    ],
)
async def test_who_may_decide_and_who_may_know(
    engine: Engine, redis: Redis, asked_of: dict[str, Any], deciding: set[str], reading: set[str]
) -> None:
    people = (ADA, EVE, BOB, EDITOR)
    async with engine.worker():
        _, approval_id = await asked(engine, **asked_of)
    before = await everything(redis)
    for person in people:
        listed = [item.approval_id for item in (await engine.approvals.page(person)).items]
        assert listed == ([approval_id] if person.user_id in reading else [])
        if person.user_id in deciding:
            assert (await engine.approvals.get(approval_id, person)).may_be_decided_by(person)
            continue
        refusal = Forbidden if person.user_id in reading else NotFound
        with pytest.raises(refusal):
            await engine.approvals.decide(approval_id, YES, person)
        if person is not ADA:
            with pytest.raises(refusal):
                await engine.approvals.withdraw(approval_id, person)
    assert await everything(redis) == before
    assert (await engine.approvals.page(ROOT)).items[0].approval_id == approval_id
    decider = next(person for person in people if person.user_id in deciding)
    assert (await engine.approvals.decide(approval_id, YES, decider)).decided_by == decider.user_id


async def test_named_deciders_hear_of_it_once_and_nobody_else_does(engine: Engine) -> None:
    async with engine.worker():
        _, approval_id = await asked(engine, deciders=("eve", "ada", "eve"))
    await engine.approvals.decide(approval_id, YES, EVE)
    for user, count in (("ada", 1), ("eve", 1), ("bob", 0)):
        for kind in ("hitl_pending", "approval_decided"):
            assert len(await told(engine, f"user:{user}", kind)) == count


async def test_an_admin_may_always(engine: Engine) -> None:
    async with engine.worker():
        _, approval_id = await asked(engine, deciders=("eve",))
        assert (await engine.approvals.decide(approval_id, NO, ROOT)).decided_by == "root"


# Edits.


async def test_edits_come_as_the_type_that_was_asked_for(engine: Engine) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine, "test.edit")
        wrong = [({"title": "far too long"}, "/edits/title"), ({}, "/edits/title"), ({"title": 7}, "/edits/title")]
        for edits, pointer in wrong:
            with pytest.raises(InvalidInput) as refused:
                await engine.approvals.decide(approval_id, Verdict(approved=True, edits=edits), ADA)
            assert refused.value.pointer == pointer
        assert (await engine.approvals.get(approval_id, ADA)).status is ApprovalStatus.PENDING
        await engine.approvals.decide(approval_id, Verdict(approved=True, edits={"title": "new"}), ADA)
        assert (await ended(engine, task_id)).result == "new"


async def test_where_no_edits_are_sent_there_are_none(engine: Engine) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine, "test.edit")
        await engine.approvals.decide(approval_id, YES, ADA)
        assert (await ended(engine, task_id)).result == "none"


# Expiry.


async def test_it_expires_while_its_task_waits(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine, expires_s=0.2)
        done = await ended(engine, task_id)
        seen = await engine.approvals.get(approval_id, ADA)
        with pytest.raises(Gone):
            await engine.approvals.decide(approval_id, YES, ADA)
        with pytest.raises(Gone):
            await engine.approvals.withdraw(approval_id, ADA)
    assert (done.status, done.error and done.error.type) == (Status.FAILURE, "ApprovalExpired")
    assert (seen.status, seen.decided_by) == (ApprovalStatus.EXPIRED, None)
    assert seen.decided_at is not None
    assert seen.decided_at >= seen.expires_at
    assert await told(engine, f"task:{task_id}", "approval_decided") == [
        {"approval_id": approval_id, "subject": "Publish?", "status": "EXPIRED"}
    ]
    assert await open_keys(redis) == []


async def test_a_heartbeat_of_any_worker_ends_it_and_resumes_its_task(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine, "test.caught")
    await pass_deadline(redis, approval_id)
    await engine.scripts.heartbeat("of-another-queue", b"{}", 1_000)
    assert len(await told(engine, f"task:{task_id}", "approval_decided")) == 1
    assert (await engine.tasks.get(task_id, user_id="ada")).status is Status.PENDING
    async with engine.worker():
        assert (await ended(engine, task_id)).result == "ApprovalExpired"
    assert len(await told(engine, f"task:{task_id}", "approval_decided")) == 1


async def test_it_expires_where_no_worker_lives(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine, "test.caught")
    await pass_deadline(redis, approval_id)
    async with engine.expiring():
        assert (await event_of(engine, task_id, "approval_decided"))["status"] == "EXPIRED"
    assert (await engine.approvals.get(approval_id, ADA)).status is ApprovalStatus.EXPIRED


async def test_a_decision_behind_the_deadline_finds_it_expired_though_nobody_has_looked(
    engine: Engine, redis: Redis
) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine, "test.caught")
    await pass_deadline(redis, approval_id)
    with pytest.raises(Gone):
        await engine.approvals.decide(approval_id, YES, ADA)
    assert [event["status"] for event in await told(engine, f"task:{task_id}", "approval_decided")] == ["EXPIRED"]
    assert await engine.approvals.expire() == 0


async def test_many_expire_in_pieces(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        _, approval_id = await asked(engine)
    stale = {f"gone-{number}": 1 for number in range(250)}
    await redis.zadd(keys.PREFIXES["approval_deadlines"], stale)
    # Entries whose record somebody took away stop nobody.
    assert [await engine.approvals.expire() for _ in range(3)] == [200, 50, 0]
    assert (await engine.approvals.get(approval_id, ADA)).status is ApprovalStatus.PENDING


@pytest.mark.parametrize("decided", [True, False], ids=["rejected", "expired"])
async def test_a_replay_takes_over_an_answer_and_asks_anew_where_none_came(
    engine: Engine, redis: Redis, decided: bool
) -> None:
    async with engine.worker():
        old, approval_id = await asked(engine, then="fail")
        if decided:
            await engine.approvals.decide(approval_id, NO, ADA)
        else:
            await pass_deadline(redis, approval_id)
            await engine.approvals.expire()
        assert (await ended(engine, old)).status is Status.FAILURE
        again = (await engine.dead_letters.replay(old, user_id="ada")).task_id
        if not decided:
            waiting = await event_of(engine, again, "task_waiting")
            other = waiting["waiting_for"]["approval_id"]
            assert other != approval_id
            await engine.approvals.decide(other, YES, ADA)
        await ended(engine, again)
    assert len(await told(engine, f"task:{again}", "hitl_pending")) == (0 if decided else 1)


# Withdrawal.


async def test_the_user_of_the_task_withdraws_it_and_the_task_is_told(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine, "test.caught")
        await engine.approvals.withdraw(approval_id, ADA)
        await engine.approvals.withdraw(approval_id, ADA)
        assert (await ended(engine, task_id)).result == "ApprovalWithdrawn"
        with pytest.raises(AlreadyDecided, match="WITHDRAWN already, by ada"):
            await engine.approvals.decide(approval_id, YES, ADA)
    assert [event["decided_by"] for event in await told(engine, f"task:{task_id}", "approval_decided")] == ["ada"]
    assert await open_keys(redis) == []


async def test_what_is_decided_cannot_be_withdrawn(engine: Engine) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine)
        await engine.approvals.decide(approval_id, YES, ADA)
        with pytest.raises(AlreadyDecided):
            await engine.approvals.withdraw(approval_id, ADA)
        assert (await ended(engine, task_id)).result["approved"]


async def test_a_cancelled_task_withdraws_what_it_asked(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine)
        await engine.tasks.cancel(task_id, user_id="ada")
    assert (await engine.approvals.get(approval_id, ADA)).status is ApprovalStatus.WITHDRAWN
    assert await told(engine, f"task:{task_id}", "approval_decided") == [
        {"approval_id": approval_id, "subject": "Publish?", "status": "WITHDRAWN"}
    ]
    events = await engine.events.read(f"task:{task_id}", f"task:{task_id}")
    assert events[-1].type == "task_cancelled"
    assert await open_keys(redis) == []


async def test_a_task_that_ends_without_the_answer_withdraws_what_it_asked(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        task_id, approval_id = await asked(engine, "test.stop_asking")
        # Resumed for nothing, it fails.
        await redis.zadd(keys.queue("default"), {task_id: 1_000_000_000_000})
        assert (await ended(engine, task_id)).status is Status.FAILURE
    assert (await engine.approvals.get(approval_id, ADA)).status is ApprovalStatus.WITHDRAWN
    assert len(await told(engine, f"task:{task_id}", "approval_decided")) == 1
    events = await engine.events.read(f"task:{task_id}", f"task:{task_id}")
    assert events[-1].type == "task_failed"
    assert await open_keys(redis) == []


async def test_an_approval_is_forgotten_with_its_task(redis_url: str, redis: Redis) -> None:
    async with engine_on(redis_url, TASKS, result_ttl_s=1) as engine, engine.worker():
        task_id, approval_id = await asked(engine, deciders=("eve",), scope="editor")
        await engine.approvals.decide(approval_id, YES, EVE)
        await ended(engine, task_id)
        await redis.zadd(keys.PREFIXES["finished"], {task_id: 1})
        await engine.sweep()
        with pytest.raises(NotFound):
            await engine.approvals.get(approval_id, EVE)
    left = [key.decode() async for key in redis.scan_iter()]
    assert [key for key in left if "approval" in key] == []


# What cannot be asked, and what cannot be decided.


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"subject": ""}, InvalidInput),
        ({"subject": "two\nlines"}, InvalidInput),
        ({"subject": "s" * 201}, TooLarge),
        ({"payload": {"text": "p" * 65_536}}, TooLarge),
        ({"deciders": tuple(f"u{number}" for number in range(21))}, TooLarge),
        ({"deciders": ("a\nb",)}, InvalidInput),
        ({"deciders": ("",)}, InvalidInput),
        ({"scope": ""}, InvalidInput),
        ({"expires_s": 0}, InvalidInput),
        ({"expires_s": 3.2e8}, InvalidInput),
    ],
    ids=str,
)
async def test_what_cannot_be_asked_fails_the_task_and_asks_nothing(
    engine: Engine, redis: Redis, wrong: dict[str, Any], error: type[Exception]
) -> None:
    async with engine.worker():
        done = await ended(engine, await put(engine, **wrong))
    assert done.error is not None
    assert done.error.type == error.__name__
    assert [key async for key in redis.scan_iter() if b"approval" in key] == []


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (Verdict(approved=True, notes="n" * 4_001), TooLarge),
        (Verdict(approved=True, edits={"text": "e" * 32_768}), TooLarge),
        (Verdict(approved=True, key="a\nb"), InvalidInput),
    ],
    ids=["notes", "edits", "key"],
)
async def test_what_cannot_be_decided_changes_nothing(
    engine: Engine, redis: Redis, wrong: Verdict, error: type[Exception]
) -> None:
    async with engine.worker():
        _, approval_id = await asked(engine)
    before = await everything(redis)
    with pytest.raises(error):
        await engine.approvals.decide(approval_id, wrong, ADA)
    assert await everything(redis) == before


async def test_the_largest_decision_fits_into_an_event(engine: Engine) -> None:
    async with engine.worker():
        _, approval_id = await asked(engine, deciders=("eve",))
    largest = Verdict(approved=True, notes="\x01" * 4_000, edits={"t": "e" * 32_760})
    await engine.approvals.decide(approval_id, largest, EVE)
    (event,) = (event for event in await engine.events.read("user:eve", "user:eve") if event.type == "approval_decided")
    assert event.data()["notes"] == largest.notes
    assert len(event.payload) < 65_536


# Lists.


async def test_a_list_is_paged_over_several_indices_without_holes_and_doubles(engine: Engine) -> None:
    async with engine.worker():
        ids = []
        for number in range(9):
            who = ({"deciders": ("kim",), "scope": "editor"}, {"scope": "other"}, {"deciders": ("kim", "eve")})[
                number % 3
            ]
            ids.append((await asked(engine, **who))[1])
    await engine.approvals.decide(ids[4], YES, EDITOR)
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await engine.approvals.page(EDITOR, cursor=cursor, limit=2)
        found += [item.approval_id for item in page.items]
        cursor = page.next_cursor
    created = {item.approval_id: item.created_at for item in (await engine.approvals.page(ROOT)).items}
    assert sorted(found) == sorted(ids)
    assert [created[found_id] for found_id in found] == sorted(created.values(), reverse=True)
    by_status = {
        status: [item.approval_id for item in (await engine.approvals.page(EDITOR, status=status)).items]
        for status in ApprovalStatus
    }
    assert by_status.pop(ApprovalStatus.APPROVED) == [ids[4]]
    assert sorted(by_status.pop(ApprovalStatus.PENDING)) == sorted(set(ids) - {ids[4]})
    assert set(map(tuple, by_status.values())) == {()}


async def test_a_list_goes_no_further_than_what_it_knows_of_each_index(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three entries of each of the indices of kim and of two scopes.
    monkeypatch.setattr("app.store.approval_scripts.SCAN_BOUND", 9)
    async with engine.worker():
        ids = [(await asked(engine, deciders=("kim",)))[1]]
        ids += [(await asked(engine, scope="editor"))[1] for _ in range(5)]
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await engine.approvals.page(EDITOR, cursor=cursor)
        found += [item.approval_id for item in page.items]
        cursor = page.next_cursor
    assert sorted(found) == sorted(ids)
    assert found[-1] == ids[0]


async def test_a_list_that_looks_at_its_bound_says_where_to_go_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.approval_scripts.SCAN_BOUND", 6)
    async with engine.worker():
        ids = [(await asked(engine, scope="editor", deciders=("kim",)))[1] for _ in range(5)]
    await engine.approvals.decide(ids[0], YES, EDITOR)
    found: list[str] = []
    cursor, pages = "", 0
    while True:
        page = await engine.approvals.page(EDITOR, status=ApprovalStatus.APPROVED, cursor=cursor)
        found += [item.approval_id for item in page.items]
        pages += 1
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    assert (found, pages > 1) == ([ids[0]], True)
