"""Side by side with the peers: drain, pickup from idle, enqueue, memory.

Everybody gets a fresh server of the same kind over TCP, uvloop, the library's own defaults for serialization and for
how long results are kept, concurrency 32 and a log at WARNING. A run goes round all contestants before the next one
begins, so that what disturbs the machine meets them alike; each figure is the median of the runs.

Drain: the tasks are enqueued, then a worker process is started. Its time runs from the first line of the first task
until the end of every task is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.bench.environments import OURS, PEERS, Contestant, prepare
from tests.bench.plan import Plan
from tests.bench.processes import BenchError, Child, child
from tests.bench.rows import Aim, Better, Row, compared, percentile
from tests.bench.server import FAILURES, Server, fresh_server
from tests.bench.watch import Watch

DRAIN_S = 120.0
MIN_TASKS = 500
"""Fewer may all be taken with the first look at the queue."""
MEMORY_TASKS = 1_000
"""With fewer, what a library stores once would count as theirs."""
Runs = dict[str, dict[str, list[float]]]

AIMS = {
    "drain": Aim("at least 5 times the fastest peer", "ratio", "least", 5.0),
    "drain_file": Aim("at least 5 times the fastest peer", "ratio", "least", 5.0),
    "pickup_p50": Aim("below the fastest peer", "ratio", "most", 1.0),
    "enqueue_sequential": Aim("above the fastest peer", "ratio", "least", 1.0),
    "enqueue_concurrent": Aim("above the fastest peer", "ratio", "least", 1.0),
    "enqueue_batches": Aim("above the fastest peer", "ratio", "least", 1.0),
}
FIGURES: dict[str, tuple[str, str, Better]] = {
    "drain": ("drain, file off", "tasks/s", "higher"),
    "drain_file": ("drain, file on", "tasks/s", "higher"),
    "worker_us": ("CPU of the worker a task", "us", "lower"),
    "server_us": ("CPU of the server a task", "us", "lower"),
    "queued_bytes": ("memory of a queued task", "bytes", "lower"),
    "finished_bytes": ("memory of a finished task", "bytes", "lower"),
    "pickup_p50": ("pickup from idle, p50", "ms", "lower"),
    "pickup_p99": ("pickup from idle, p99", "ms", "lower"),
    "enqueue_sequential": ("enqueue, one at a time", "tasks/s", "higher"),
    "enqueue_concurrent": ("enqueue, 32 at a time", "tasks/s", "higher"),
    "enqueue_batches": ("enqueue, batches of 1,000", "tasks/s", "higher"),
}
PARTS = {"drain": "drain", "drain_file": "drain", "worker_us": "drain", "server_us": "drain", "queued_bytes": "drain",
         "finished_bytes": "drain", "pickup_p50": "pickup", "pickup_p99": "pickup"}  # fmt: skip


async def contest(plan: Plan, parts: Sequence[str], watch: Watch, *, reserve_s: float) -> list[Row]:
    """The rows of the parts `drain`, `pickup` and `enqueue`; fewer runs where `reserve_s` would not be left."""
    contestants, problems = await _ready(plan, watch)
    took_s = 0.0
    runs: Runs = defaultdict(lambda: {item.name: [] for item in contestants})
    for number in range(plan.runs):
        if number and watch.left_s - reserve_s < took_s:
            problems.append(f"{number} of {plan.runs} runs: there was no time for more.")
            break
        began_s = watch.took_s
        for item in contestants:
            watch.say(f"run {number + 1} of {plan.runs}: {item.name}")
            try:
                await _session(plan, item, parts, runs, seed=number)
            except FAILURES as error:
                problems.append(f"{item.name}: {error}")
        took_s = watch.took_s - began_s
    note = " ".join(problems)
    wanted = [key for key in FIGURES if PARTS.get(key, "enqueue") in parts and key in runs]
    return [_row(key, runs[key], note) for key in wanted]


def _row(key: str, runs: dict[str, list[float]], note: str) -> Row:
    figure, unit, better = FIGURES[key]
    return compared(key, figure, unit, runs, ours=OURS.name, better=better, aim=AIMS.get(key), note=note)


async def _ready(plan: Plan, watch: Watch) -> tuple[list[Contestant], list[str]]:
    """Who can take part, and why others cannot."""
    contestants, problems = [OURS], []
    for peer in PEERS if plan.peers else ():
        try:
            if peer.environment:
                await prepare(peer.environment, watch.say)
            contestants.append(peer)
        except BenchError as error:
            problems.append(f"{peer.name}: {error}")
    return contestants, problems


async def _session(plan: Plan, item: Contestant, parts: Sequence[str], runs: Runs, *, seed: int) -> None:
    def note(key: str, value: float | None) -> None:
        if value is not None:
            runs[key][item.name].append(value)

    async with fresh_server(file=False) as server, _client(item, server) as client:
        if "drain" in parts or "pickup" in parts:
            tasks = _tasks(plan, item) if "drain" in parts else 1
            for key, value in (await _drain(plan, item, server, client, tasks, parts, seed)).items():
                note(key, value)
        if "enqueue" in parts and not item.env:  # The poll delay of a worker does not matter here.
            for mode in ("sequential", "concurrent", "batches"):
                answer = await client.ask("enqueue", mode=mode, seconds=plan.enqueue_s)
                note(f"enqueue_{mode}", answer["per_s"])
    if "drain" in parts and plan.with_file:
        async with fresh_server(file=True) as server, _client(item, server) as client:
            figures = await _drain(plan, item, server, client, _tasks(plan, item), ("drain",), seed)
            note("drain_file", figures["drain"])


def _tasks(plan: Plan, item: Contestant) -> int:
    return max(MIN_TASKS, int(item.tasks * plan.scale))


async def _drain(
    plan: Plan, item: Contestant, server: Server, client: Child, tasks: int, parts: Sequence[str], seed: int
) -> dict[str, float]:
    """Drain, then, with the worker idle, measure the pickup."""
    before_bytes = await server.memory_bytes()
    await client.ask("fill", count=tasks)
    full_bytes = await server.memory_bytes()
    before_s = await server.cpu_s()
    async with _worker(plan, item, server, tasks) as worker:
        done = await worker.read("done", timeout_s=DRAIN_S)
        empty = await client.ask("await_empty")
        server_s = await server.cpu_s() - before_s
        finished_bytes = await server.memory_bytes()
        figures = {}
        if "drain" in parts:
            figures = {
                "drain": tasks / ((max(done["last_ns"], empty["at_ns"]) - done["first_ns"]) / 1e9),
                "worker_us": (done["cpu_s"] - done["first_cpu_s"]) / tasks * 1e6,
                "server_us": server_s / tasks * 1e6,
            }
        if "drain" in parts and tasks >= MEMORY_TASKS:
            figures |= {
                "queued_bytes": (full_bytes - before_bytes) / tasks,
                "finished_bytes": (finished_bytes - before_bytes) / tasks,
            }
        if "pickup" in parts:
            figures |= await _pickup(plan, client, worker, seed)
        return figures


async def _pickup(plan: Plan, client: Child, worker: Child, seed: int) -> dict[str, float]:
    await client.ask("pickup", samples=plan.pickup_samples, gap_s=plan.pickup_gap_s, seed=seed)
    await client.ask("await_empty")
    latencies_ms = [value / 1e6 for value in (await worker.report())["latencies_ns"]]
    if len(latencies_ms) != plan.pickup_samples:
        raise BenchError(f"{len(latencies_ms)} of {plan.pickup_samples} tasks were picked up")
    return {"pickup_p50": percentile(latencies_ms, 0.5), "pickup_p99": percentile(latencies_ms, 0.99)}


@asynccontextmanager
async def _client(item: Contestant, server: Server) -> AsyncIterator[Child]:
    async with _process(item, "client", server.url) as client:
        await client.read("ready")
        yield client


def _worker(plan: Plan, item: Contestant, server: Server, expect: int) -> AbstractAsyncContextManager[Child]:
    return _process(item, "worker", server.url, str(plan.concurrency), str(expect))


def _process(item: Contestant, *arguments: str) -> AbstractAsyncContextManager[Child]:
    module = f"tests.bench.peers.{item.module}"
    return child(item.python, "-m", module, *arguments, name=item.name, env=item.env)
