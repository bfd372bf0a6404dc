"""`nightshift doctor`: is everything there that the service needs, and if not, what to do.

It looks from where it runs, with the settings that it finds there: run it with the environment, and in the directory,
of the service.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any

from redis.exceptions import RedisError

from app.api.api_keys import list_keys
from app.api.auth import make_authenticator
from app.catalogue import LANES, catalogue
from app.cli_views import print_json
from app.client import open_api
from app.clients.git import GitClient
from app.clients.llm import OFFLINE_MODEL, Message, open_model
from app.engine import checks
from app.engine.queues import QueueStats
from app.engine.service import Engine, open_engine
from app.errors import ClientError, NightshiftError
from app.settings import Settings, settings
from app.store.embedded import EmbeddedServer

MAX_DRIFT_S = 1.0
"""Leases and due times follow Redis's clock alone; what suffers from drift are the times in logs and results."""
MODEL_TIMEOUT_S = 30.0
LYING_S = 30.0
"""Workers look at every queue once a second; a task that is ready for so long while they have room is not seen."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice` says what to do about a problem."""

    name: str
    ok: bool
    detail: str
    advice: str = ""


def doctor(*, as_json: bool) -> int:
    """Look at everything; the exit code."""
    findings = asyncio.run(_collect(settings(), quiet=as_json))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    problems = [finding for finding in findings if not finding.ok]
    if not as_json:
        print(f"\n{len(problems)} problems." if len(problems) > 1 else "\n1 problem." if problems else "\nAll is well.")
    return 1 if problems else 0


async def _collect(chosen: Settings, *, quiet: bool) -> list[Finding]:
    findings = []
    async for finding in examine(chosen):
        findings.append(finding)
        if not quiet:
            _print(finding)
    return findings


def _print(finding: Finding) -> None:
    print(f"{'ok' if finding.ok else 'PROBLEM':<8} {finding.name:<12} {finding.detail}", flush=True)
    if not finding.ok and finding.advice:
        print(f"{'':<21} -> {finding.advice}")


async def examine(chosen: Settings) -> AsyncIterator[Finding]:
    """The findings, one after the other; a check that depends on another one which failed is left out."""
    async with AsyncExitStack() as stack:
        engine = None
        yield (store := await _guard("Redis", lambda: _store(chosen), STORE_ADVICE))
        if store.ok:
            engine = await stack.enter_async_context(open_engine(chosen, catalogue(), LANES))
        if engine is not None:
            for name, check, advice in _store_checks(engine):
                yield await _guard(name, check, advice)
    yield await _guard("API", lambda: _api(chosen), "start it with `nightshift serve`, or set NIGHTSHIFT_URL")
    yield await _guard("credentials", lambda: _credentials(chosen), "see the detail; `nightshift keys --help`")
    yield await _guard("model", lambda: _model(chosen), "check NIGHTSHIFT_LLM_BASE_URL, _LLM_MODEL and _LLM_API_KEY")
    yield await _guard("git", lambda: _git(chosen), "install git 2.31 or newer, and let it be on the PATH")


Check = Callable[[], Awaitable[Finding]]
STORE_ADVICE = "start Redis, or set NIGHTSHIFT_REDIS_URL to where it is; without it, `nightshift serve` brings its own"


async def _guard(name: str, check: Check, advice: str) -> Finding:
    try:
        return await check()
    except (NightshiftError, RedisError, OSError) as error:
        return Finding(name, False, str(error) or type(error).__name__, advice)


def _store_checks(engine: Engine) -> tuple[tuple[str, Check, str], ...]:
    return (
        ("workers", lambda: _workers(engine), "start a worker: `arq worker.WorkerSettings` or `nightshift serve`"),
        ("events", lambda: _events(engine), "see whether a proxy or an ACL rule of Redis forbids PUBLISH or SUBSCRIBE"),
        ("clocks", lambda: _clocks(engine), "let both machines take their time from NTP"),
    )


async def _store(chosen: Settings) -> Finding:
    if chosen.redis_url is None:
        embedded = EmbeddedServer(chosen.data_dir)
        if embedded.pid is None:
            detail = f"no embedded server runs in {chosen.data_dir.absolute()}"
            return Finding("Redis", False, detail, "start the service: `nightshift serve` or ./run serve")
    async with open_engine(chosen, catalogue(), LANES) as engine:
        version = await checks.server_version(engine.redis)
    where = "the embedded server" if chosen.redis_url is None else "as configured"
    return Finding("Redis", True, f"{version}, {where}")


async def _workers(engine: Engine) -> Finding:
    alive = await engine.workers()
    served = {queue for worker in alive for queue in worker["lanes"]}
    missing = sorted(set(LANES) - served)
    if missing:
        advice = "start a worker: `arq worker.WorkerSettings` or `nightshift serve`; NIGHTSHIFT_QUEUES chooses queues"
        return Finding("workers", False, f"{len(alive)} alive, none for {', '.join(missing)}", advice)
    stuck = left_lying(await engine.queues.stats(), alive)
    if stuck:
        advice = "restart the workers, and keep their logs: they have room and take nothing"
        return Finding("workers", False, f"ready for over {LYING_S:g} s, with room: {', '.join(stuck)}", advice)
    return Finding("workers", True, f"{len(alive)} alive, together for all {len(LANES)} queues")


def left_lying(queues: Iterable[QueueStats], workers: Iterable[Mapping[str, Any]]) -> list[str]:
    """Queues in which a task has been ready for long although a living worker has room for it."""
    room: Counter[str] = Counter()
    for worker in workers:
        if worker["running"] < worker["capacity"]:
            for name, lane in worker["lanes"].items():
                room[name] += max(0, lane["concurrency"] - lane["running"])
    return [
        queue.name
        for queue in queues
        if not queue.paused and room[queue.name] > 0 and (queue.oldest_ready_age_s or 0) > LYING_S
    ]


async def _events(engine: Engine) -> Finding:
    delay_s = await checks.event_delay_s(engine.redis)
    return Finding("events", True, f"published and received in {delay_s * 1000:.1f} ms")


async def _clocks(engine: Engine) -> Finding:
    drift_s = await checks.clock_drift_s(engine.redis)
    detail = f"Redis is {abs(drift_s):.3f} s {'ahead of' if drift_s > 0 else 'behind'} this machine"
    return Finding("clocks", abs(drift_s) <= MAX_DRIFT_S, detail, "let both machines take their time from NTP")


async def _api(chosen: Settings) -> Finding:
    async with open_api(chosen.url, chosen.api_key.get_secret_value() if chosen.api_key else None) as api:
        await api.read("/healthz")
        try:
            await api.tasks(limit=1)
        except ClientError as error:
            return Finding("API", False, str(error), "set NIGHTSHIFT_API_KEY; `nightshift keys create NAME` makes one")
    return Finding("API", True, f"answers at {chosen.url}")


async def _credentials(chosen: Settings) -> Finding:
    mode = chosen.auth_mode
    authenticator = make_authenticator(chosen)
    await authenticator.aclose()
    if mode == "off":
        return Finding("credentials", True, f"none are asked for: only this machine reaches {chosen.host}")
    if mode == "jwt":
        return Finding("credentials", True, "JSON Web Tokens")
    usable = [record for record in await asyncio.to_thread(list_keys, chosen.keys_file) if not record.revoked]
    detail = f"{len(usable)} keys in {chosen.keys_file}"
    return Finding("credentials", bool(usable), detail, "make one: `nightshift keys create NAME`")


async def _model(chosen: Settings) -> Finding:
    model = open_model(chosen)
    try:
        if model.name == OFFLINE_MODEL:
            return Finding("model", True, "offline: NIGHTSHIFT_LLM_BASE_URL is not set, so answers are quotes")
        async with asyncio.timeout(MODEL_TIMEOUT_S):
            reply = await model.complete([Message.user("Answer with the word: ready")], max_tokens=16)
    except TimeoutError:
        return Finding(
            "model", False, f"no answer within {MODEL_TIMEOUT_S:g} s", "see whether the server is overloaded"
        )
    finally:
        await model.aclose()
    return Finding("model", True, f"{reply.model or model.name} answers")


async def _git(chosen: Settings) -> Finding:
    GitClient.from_settings(chosen)
    process = await asyncio.create_subprocess_exec("git", "--version", stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(10):
        output, _ = await process.communicate()
    version = output.decode(errors="replace").strip()
    return Finding("git", _is_new_enough(version), version)


def _is_new_enough(version: str) -> bool:
    words: Any = next((word for word in version.split() if word[:1].isdigit()), "0.0").split(".")
    return tuple(int(word) for word in words[:2] if word.isdigit()) >= (2, 31)
