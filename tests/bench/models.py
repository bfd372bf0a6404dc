"""Many model calls streamed at once in one process, against one of them alone."""

from __future__ import annotations

import asyncio
import re
import resource
import sys
import time
from contextlib import aclosing

import uvloop

from app.clients.llm import Completion, Message, Model, open_model
from app.settings import load_settings
from tests.bench.leash import watch_input
from tests.bench.peers.contract import say as answer
from tests.bench.plan import Plan
from tests.bench.processes import BenchError, module
from tests.bench.rows import Aim, Row
from tests.bench.watch import Watch

CALLS_S = 180.0
URL = re.compile(r"http://\S+")


async def model_calls(plan: Plan, watch: Watch) -> list[Row]:
    """The time of all calls at once, as a multiple of the longest; and the memory of the process that makes them."""
    watch.say(f"{plan.model_calls:,} model calls")
    arguments = ("--port", "0", "--delay-s", str(plan.model_chunk_s))
    async with module("tests.bench.leash", "tests.fakes.model_server", *arguments) as model_server:
        url = await model_server.read_text(URL)
        async with module("tests.bench.models", url, str(plan.model_calls), str(plan.model_chunks)) as caller:
            told = await caller.read("done", timeout_s=CALLS_S)
            server_s = model_server.cpu_s()
    what = f"{plan.model_calls:,} model calls streamed at once"
    note = f"a word every {plan.model_chunk_s:g} s, {plan.model_chunks} and more; one alone: {told['alone_s']:.2f} s"
    within = Aim("within 1.2 times the longest of them", "ratio", "most", 1.2)
    small = Aim("under 300 MB", "ours", "most", 300.0)
    return [
        Row("model_calls", what, "s", told["wall_s"], ratio=told["wall_s"] / told["alone_s"], aim=within, note=note),
        Row("model_calls_memory", f"{what}: memory of the process", "MB", told["rss_mb"], aim=small,
            note=f"its CPU time {told['cpu_s']:.1f} s, that of the fake model server {server_s:.1f} s"),
    ]  # fmt: skip


async def _one(model: Model, prompt: str) -> None:
    async with aclosing(model.stream([Message.user(prompt)])) as deltas:
        async for delta in deltas:
            if isinstance(delta, Completion) and delta.text.endswith(prompt):
                return
    raise BenchError("a reply was not the whole one")


async def _run(url: str, calls: int, chunks: int) -> None:
    settings = load_settings(_env_file=None, llm_base_url=url, llm_model="fake-model", llm_concurrency=calls)
    model = open_model(settings)
    prompt = " ".join(["word"] * chunks)
    began = time.perf_counter()
    await _one(model, prompt)
    alone_s = time.perf_counter() - began
    began, began_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(_one(model, prompt) for _ in range(calls)))
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu_s
    await model.aclose()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rss_mb = peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
    answer(event="done", alone_s=alone_s, wall_s=wall_s, cpu_s=cpu_s, rss_mb=rss_mb)


if __name__ == "__main__":
    watch_input()
    uvloop.run(_run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
