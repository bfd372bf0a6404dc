"""`./run demo durable`: the worked example of the README, with its worker killed twice on the way.

API and embedded server run in this process, the worker in one of its own, so that it can be killed as a crash would:
first while its children are at work, then while the task waits for a person, who decides when no worker is alive. The
demo itself is an ordinary client.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.dev import run
from app.dev_demo import CHECKOUT, INTERRUPTED, DemoFailed, demo_settings, log_into, short
from app.dev_views import Page, clean, page_for, seconds
from app.errors import NightshiftError
from app.settings import Settings, child_environment, load_settings

if TYPE_CHECKING:
    from app.client import ApiClient, TaskEvent
    from app.dev_service import Service

LEASE_S = 1
"""Shorter than in production, so that nobody has to watch a dead worker's lease run out for ten seconds."""
LANE = "agent:1"
"""One task at a time: the children begin when the task has left its worker, and are still at work when it is killed."""
EMBARGO_S = 2.0
TOPICS = 3
DEADLINE_S = 120.0
QUOTED_CHARS = 160


def durable() -> int:
    """Run the demo; its exit code. Raises `NightshiftError` with one line for the person."""
    chosen = demo_settings(load_settings(_env_file=(CHECKOUT / ".env", ".env")))
    return run(_durable(chosen.data_dir / "durable.log", chosen))


async def _durable(log: Path, chosen: Settings) -> int:
    from app.client import open_api
    from app.dev_service import on_signals, running

    page = page_for(sys.stdout)
    _open(page)
    this = asyncio.current_task()
    assert this is not None
    try:
        with on_signals(this.cancel), log_into(log):
            async with (
                running(chosen, with_worker=False) as service,
                open_api(service.url) as api,
                _Crew(service, log) as crew,
                asyncio.timeout(DEADLINE_S),
            ):
                await _Story(api, crew, page).tell()
    except asyncio.CancelledError:
        page.line("Stopped before the end.")
        return INTERRUPTED
    except (NightshiftError, TimeoutError) as error:
        raise DemoFailed(f"The demo failed: {error or 'it took too long'}\nThe log: {short(log)}") from error
    page.line("")
    page.line("  The task is app/domains/briefs/tasks.py; how it works is in the README under 'A worked example'.")
    return 0


def _open(page: Page) -> None:
    page.heading("Nightshift demo: a task that outlives its workers")
    page.line("It asks a model, fans out, waits for a person, sleeps, and finishes. Its worker is killed twice.")
    page.line("")


class _Crew:
    """One worker process at a time."""

    def __init__(self, service: Service, log: Path) -> None:
        self._environment = child_environment(redis_url=service.store_url, lease_s=LEASE_S, queues=LANE)
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> _Crew:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def hire(self) -> int:
        """Start a worker; its process id."""
        with self._log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "arq", "worker.WorkerSettings"),
                cwd=CHECKOUT,
                env=self._environment | {"PYTHONPATH": str(CHECKOUT)},
                stdout=output,
                stderr=output,
            )
        return self._process.pid

    async def kill(self) -> None:
        """End the worker as a crash would, if one runs."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


@dataclass
class _Story:
    """What happens, in order, and what is shown of it."""

    api: ApiClient
    crew: _Crew
    page: Page
    began: float = 0.0
    killed: int = 0

    async def tell(self) -> None:
        """Post the task, follow it, kill its workers, decide, and show what came of it."""
        self.began = time.perf_counter()
        document = prose((CHECKOUT / "README.md").read_text("utf8"))
        params = {"title": "the README", "document": document, "topics": TOPICS, "embargo_s": EMBARGO_S}
        posted = await self.api.submit("briefs.write", params, tags=["demo"])
        self.say(f"posted briefs.write {posted['task_id']}")
        self.say(f"worker 1 starts (pid {await self.crew.hire()})")
        async with aclosing(self.api.watch(posted["task_id"])) as events:
            async for event in events:
                await self.take(event)
        await self.conclude(await self.api.get(posted["task_id"]))

    async def take(self, event: TaskEvent) -> None:
        """Show an event of the task, and do what belongs to it."""
        if text := _told(event):
            self.say(text)
        if event.type != "task_waiting":
            return
        waiting_for = event.payload["waiting_for"]
        if waiting_for["kind"] == "tasks" and self.killed == 0:
            await self.replace_worker()
        elif waiting_for["kind"] == "approval":
            await self.decide_alone(event.task_id or "", waiting_for["approval_id"])

    async def replace_worker(self) -> None:
        """A crash, and another worker."""
        await self.crew.kill()
        self.killed = 1
        self.say("KILLED: worker 1, with what it ran (SIGKILL)")
        children = await self.api.tasks(task="briefs.section", tag="demo", limit=TOPICS)
        self.say(f"its children now: {', '.join(child['status'] for child in children)}")
        self.say(f"worker 2 starts (pid {await self.crew.hire()}), and takes over when the leases end")

    async def decide_alone(self, task_id: str, approval_id: str) -> None:
        """A person decides while no worker is alive."""
        await self.crew.kill()
        self.killed += 1
        self.say("KILLED: worker 2; no worker is alive now")
        view = await self.api.get(task_id)
        self.say(f"the task all the same: {view['status']}")
        await self.api.act(f"/api/approvals/{approval_id}", {"approved": True, "notes": "Go ahead."})
        self.say(f"worker 3 starts (pid {await self.crew.hire()})")

    async def conclude(self, task: dict[str, Any]) -> None:
        """Show what came of it. Raises `DemoFailed` when that is nothing."""
        if task["status"] != "SUCCESS":
            raise DemoFailed((task["error"] or {}).get("message") or f"the task ended as {task['status']}")
        self.page.heading("What each line of the task returned, once")
        for step in task["steps"]:
            self.page.pair(seconds(step["duration_s"]), step["name"])
        self.page.heading("The brief")
        for section in task["result"]["sections"]:
            text = clean(section["text"].partition("\n")[0]).removesuffix(" [document]")
            self.page.statement(text[:QUOTED_CHARS] + ("…" if len(text) > QUOTED_CHARS else ""), "README.md")
        self.page.line("")
        self.page.pair("killed", f"{self.killed} workers")
        self.page.pair(
            "attempts", f"{task['attempt']}: waiting costs none, a worker that dies inside the task costs one"
        )
        self.page.pair("total", seconds(time.perf_counter() - self.began))

    def say(self, text: str) -> None:
        """A line with the time since the task was posted."""
        self.page.line(f"  {time.perf_counter() - self.began:5.1f} s  {text}")


def prose(markdown: str) -> str:
    """The sentences of a Markdown document: without its code, tables and headings."""
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith(("|", "#")))


def _told(event: TaskEvent) -> str | None:
    payload = event.payload
    if event.type == "task_started":
        return f"a worker enters the task (attempt {payload['attempt']})"
    if event.type == "task_waiting":
        wait = payload["waiting_for"]
        what = {"tasks": f"{wait.get('count')} children", "approval": "a person", "time": "its embargo to pass"}
        return f"the task waits for {what[wait['kind']]}, and holds no worker"
    if event.type == "hitl_pending":
        return f"it asks: {clean(payload['subject'])}"
    if event.type == "approval_decided":
        return f"decided by {clean(payload['decided_by'])}: {'approved' if payload['approved'] else 'rejected'}"
    return {"brief_published": "it publishes", "task_complete": "done"}.get(event.type)
