"""`./run demo [REPOSITORY]`: one real task from end to end, told to whoever watches.

The whole service runs in this process, with a data directory, ports and credentials of its own, so that nothing else on
the machine is touched. The demo itself is an ordinary client: it posts `git.digest` over HTTP, follows it over a
WebSocket and reads the result over HTTP. The service's log goes into a file beside its data.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.dev import run
from app.dev_views import Page, Signposts, page_for
from app.errors import InvalidInput, NightshiftError, NotConfigured
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from app.client import ApiClient, TaskEvent

CHECKOUT = Path(__file__).resolve().parent.parent
REMOTE_PREFIXES = ("https://", "http://", "ssh://", "git@", "file://")
INTERRUPTED = 130
PATIENCE_S = 20.0
"""A retry that is further away than this is not waited for."""
CANCEL_TIMEOUT_S = 2.0


class DemoFailed(NightshiftError):
    """The task did not succeed; the detail says why."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished demo: the task's view, and what was measured around it, in seconds."""

    task: dict[str, Any]
    start_s: float
    total_s: float

    @property
    def wait_s(self) -> float:
        """How long the task stood in its queue."""
        started, enqueued = (datetime.fromisoformat(self.task[name]) for name in ("started_at", "enqueued_at"))
        return (started - enqueued).total_seconds()


def demo(repository: str | None) -> int:
    """Run the demo; its exit code. Raises `NightshiftError` with one line for the person."""
    began = time.perf_counter()
    chosen = demo_settings(load_settings(_env_file=(CHECKOUT / ".env", ".env")))
    if shutil.which("git") is None:
        raise NotConfigured("git is not on the PATH: the demo clones a repository with it")
    return run(_demo(chosen, repository_url(repository), began))


def demo_settings(base: Settings) -> Settings:
    """The settings of the demo: the model is that of `base`, everything that could touch other services is its own."""
    return base.model_copy(
        update={
            "redis_url": None,
            # From wherever it is started: where `./run serve` of this checkout finds it again.
            "data_dir": CHECKOUT / base.data_dir / "demo",
            "host": "127.0.0.1",
            "port": 0,
            "auth": "off",
            "allowed_origins": (),
            "queues": (),
            "concurrency": None,
            "git_allow_file_urls": True,
            "shutdown_grace_s": 1.0,
        }
    )


def repository_url(given: str | None) -> str:
    """What to clone: a URL as it is, a path as the absolute path of the repository around it, this checkout by default.

    Raises `InvalidInput` for a path that does not exist.
    """
    if given is not None and given.startswith(REMOTE_PREFIXES):
        return given
    path = CHECKOUT if given is None else Path(given).expanduser().resolve()
    if not path.exists():
        raise InvalidInput(f"{given}: no such directory; expected the path or the https URL of a git repository")
    for candidate in (path, *path.parents):
        if (candidate / ".git").exists() or ((candidate / "HEAD").is_file() and (candidate / "objects").is_dir()):
            return str(candidate)
    raise InvalidInput(f"{path}: not in a git repository; expected the path or the https URL of one")


async def _demo(chosen: Settings, url: str, began: float) -> int:
    from app.dev_service import on_signals

    page = page_for(sys.stdout)
    page.opening(url)
    log = chosen.data_dir / "demo.log"
    this = asyncio.current_task()
    assert this is not None
    try:
        with on_signals(this.cancel), log_into(log):
            ran = await _run_service(chosen, url, began, page)
    except asyncio.CancelledError:
        page.line("Stopped before the end.")
        return INTERRUPTED
    except NightshiftError as error:
        raise DemoFailed(f"The demo failed: {error}\nThe log of the service: {short(log)}") from error
    page.further(_signposts(ran.task["task_id"], chosen.data_dir))
    return 0


async def _run_service(chosen: Settings, url: str, began: float, page: Page) -> Ran:
    from app.client import open_api
    from app.dev_service import running

    async with running(chosen) as service, open_api(service.url) as api:
        start_s = time.perf_counter() - began
        posted = await api.submit("git.digest", {"url": url}, tags=["demo"])
        page.posted(service.url, posted["task_id"], start_s)
        try:
            await _follow(api, posted["task_id"], page)
        except BaseException:
            # Else it would run again at the next start.
            with suppress(NightshiftError, TimeoutError):
                async with asyncio.timeout(CANCEL_TIMEOUT_S):
                    await api.cancel(posted["task_id"])
            raise
        task = await api.get(posted["task_id"])
        if task["status"] != "SUCCESS":
            raise DemoFailed(_reason(task))
        ran = Ran(task, start_s, time.perf_counter() - began)
        page.digest(task["result"])
        page.times(ran.start_s, ran.wait_s, task["result"]["durations"], ran.total_s)
    return ran


async def _follow(api: ApiClient, task_id: str, page: Page) -> None:
    """Show the task's events until its final one."""
    percent = 0.0
    with page.following() as show:
        async with aclosing(api.watch(task_id)) as events:
            async for event in events:
                if event.type == "task_progress":
                    percent = event.payload["percent"]
                    show(percent, event.payload["label"])
                elif event.type == "task_complete":
                    show(100.0, "done")
                elif event.type == "task_retrying":
                    show(percent, _judge_retry(event))


def _judge_retry(event: TaskEvent) -> str:
    """What to say while the next attempt is waited for. Raises `DemoFailed` when nobody would want to watch that.

    A server that answers with an error is often back soon, and may have said when. What cannot be reached is mostly a
    wrong name.
    """
    error, due = event.payload["error"], datetime.fromisoformat(event.payload["next_attempt_at"])
    wait_s = (due - event.at).total_seconds()
    if "remote_status" not in error or wait_s > PATIENCE_S:
        raise DemoFailed(f"{error['message']} (the service would try again in {wait_s:.0f} s; the demo does not wait)")
    return f"again in {wait_s:.0f} s: {error['message']}"


def _reason(task: dict[str, Any]) -> str:
    error = task["error"]
    return error["message"] or error["type"] if error else f"the task ended as {task['status']}"


@contextmanager
def log_into(path: Path) -> Iterator[None]:
    """Write what the service logs into a file: its logger writes to whatever standard error is."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file, redirect_stderr(file):
        yield


def _signposts(task_id: str, data_dir: Path) -> Signposts:
    script = short(CHECKOUT / "run")
    return Signposts(
        task_id=task_id,
        run=script if "/" in script else f"./{script}",
        nightshift=short(Path(sys.executable).with_name("nightshift")),
        # Read by a process whose directory is the checkout.
        data_dir=short(data_dir, CHECKOUT),
        log=short(data_dir / "demo.log"),
        readme=short(CHECKOUT / "README.md"),
    )


def short(path: Path, directory: Path | None = None) -> str:
    """The path as somebody in the directory (by default the current one) would write it: in full outside the
    checkout."""
    is_home = (directory or Path.cwd()) == CHECKOUT and path.is_relative_to(CHECKOUT)
    return str(path.relative_to(CHECKOUT)) if is_home else str(path)
