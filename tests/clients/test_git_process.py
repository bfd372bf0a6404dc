from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from app.clients import git_process
from app.clients.git_process import Finished, Progress, run_git
from app.errors import InvalidInput, NotConfigured, TooLarge

ENV = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
SIGNAL = "echo 'Receiving objects:   7% (1/14)' >&2"
"""What the scripts below say when they are ready; it arrives through the progress callback."""

DEAF = f"echo $PPID > git; kill -STOP $PPID; {SIGNAL}; sleep 600; #"
"""A stopped process is the deafest there is: TERM reaches it only when it goes on."""


def script(text: str) -> tuple[str, ...]:
    """Arguments with which git runs a shell, which stands for git's own helpers: same session, same group."""
    return ("-c", f"alias.run=!{text}", "run")


async def run(*args: str, cwd: Path, max_bytes: int = 1_000_000, **options: object) -> Finished:
    return await run_git(args, cwd=cwd, env=ENV, max_bytes=max_bytes, **options)  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


async def gone(pid: int) -> None:
    """Wait until a process that was killed is no more (its last steps are the kernel's)."""
    async with asyncio.timeout(5):
        while is_alive(pid):
            await asyncio.sleep(0.005)


class Ready:
    """A progress callback that says when the script is ready."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.seen: list[Progress] = []

    async def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)
        self.event.set()

    async def of(self, task: asyncio.Task[Finished]) -> None:
        """Wait until the task's script is ready."""
        waiter = asyncio.create_task(self.event.wait())
        done, _ = await asyncio.wait({waiter, task}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert waiter in done, f"the script ended before it was ready: {task}"


def start(text: str, cwd: Path) -> tuple[asyncio.Task[Finished], Ready]:
    ready = Ready()
    return asyncio.create_task(run(*script(text), cwd=cwd, on_progress=ready)), ready


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def on_loop(request: pytest.FixtureRequest) -> Callable[..., object]:
    """Runs a coroutine to its end on a loop of each kind."""

    def call(coroutine: object) -> object:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(coroutine)  # type: ignore[arg-type]

    return call


def test_output_messages_and_status_come_back(tmp_path: Path, on_loop: Callable[..., Finished]) -> None:
    left = on_loop(run(*script("cat; echo trouble >&2; exit 3; #"), cwd=tmp_path, stdin=b"x" * 300_000))
    assert (left.status, left.stdout, left.stderr, left.truncated) == (3, b"x" * 300_000, "trouble\n", False)


def test_a_cancelled_call_leaves_no_process_of_its_group(tmp_path: Path, on_loop: Callable[..., None]) -> None:
    async def scenario() -> None:
        task, ready = start(f"sleep 600 & echo $! > child; echo $$ > shell; {SIGNAL}; wait; #", tmp_path)
        await ready.of(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for name in ("child", "shell"):
            await gone(int((tmp_path / name).read_text()))

    on_loop(scenario())


def test_a_process_that_ignores_the_request_to_end_is_killed(
    tmp_path: Path, on_loop: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_process, "GRACE_S", 0.05)

    async def scenario() -> None:
        task, ready = start(DEAF, tmp_path)
        await ready.of(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone(int((tmp_path / "git").read_text()))

    on_loop(scenario())


async def test_a_second_cancellation_kills_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_process, "GRACE_S", 600)
    task, ready = start(DEAF, tmp_path)
    await ready.of(task)
    task.cancel()
    await asyncio.sleep(0)  # the first one is delivered: the call now waits for git to listen
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(int((tmp_path / "git").read_text()))


async def test_what_git_leaves_in_the_background_ends_with_it(tmp_path: Path) -> None:
    # It holds the pipes: without being killed it would also hold up the call.
    left = await asyncio.wait_for(run(*script("sleep 600 & echo $!; #"), cwd=tmp_path), 10)
    assert left.status == 0
    await gone(int(left.stdout))


async def test_an_error_in_the_progress_callback_ends_the_process(tmp_path: Path) -> None:
    async def fail(_progress: Progress) -> None:
        raise RuntimeError("lease lost")

    text = f"echo $$ > shell; {SIGNAL}; sleep 600; #"
    with pytest.raises(RuntimeError, match="lease lost"):
        await run(*script(text), cwd=tmp_path, on_progress=fail)
    await gone(int((tmp_path / "shell").read_text()))


@pytest.fixture
async def endless(tmp_path: Path) -> AsyncIterator[tuple[str, ...]]:
    """A script that writes without end; afterwards its process must be gone."""
    yield script("echo $$ > shell; yes; #")
    await gone(int((tmp_path / "shell").read_text()))


async def test_output_past_the_bound_is_refused_and_names_the_bound(tmp_path: Path, endless: tuple[str, ...]) -> None:
    with pytest.raises(TooLarge, match="1000 bytes"):
        await run(*endless, cwd=tmp_path, max_bytes=1000)


async def test_output_past_the_bound_is_cut_where_asked(tmp_path: Path, endless: tuple[str, ...]) -> None:
    left = await run(*endless, cwd=tmp_path, max_bytes=1000, cut=True)
    assert left.truncated
    assert left.stdout == b"y\n" * 500


async def test_output_of_exactly_the_bound_is_whole(tmp_path: Path) -> None:
    left = await run(*script("printf 12345; #"), cwd=tmp_path, max_bytes=5)
    assert (left.stdout, left.truncated) == (b"12345", False)


async def test_of_endless_messages_the_end_is_kept(tmp_path: Path) -> None:
    left = await run(*script("yes no 2>&1 | head -n 100000 >&2; printf last >&2; #"), cwd=tmp_path)
    assert len(left.stderr) <= 2 * git_process.STDERR_BYTES
    assert left.stderr.endswith("no\nlast")


async def test_a_line_without_end_is_bounded(tmp_path: Path) -> None:
    left = await run(*script("yes x | tr -d '\\n' | head -c 1000000 >&2; #"), cwd=tmp_path)
    assert set(left.stderr) == {"x"}
    assert len(left.stderr) <= git_process.STDERR_BYTES


async def test_progress_is_reported_and_is_no_message(tmp_path: Path) -> None:
    ready = Ready()
    lines = "printf 'remote: Counting objects:  50%% (1/2)\\rremote: hello\\nUpdating files: 100%% (2/2), done.\\n' >&2"
    left = await run(*script(f"{lines}; #"), cwd=tmp_path, on_progress=ready)
    assert left.stderr == "remote: hello\n"
    assert ready.seen[-1] == Progress("Updating files", 100)


async def test_a_missing_directory_and_a_missing_git_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such directory"):
        await run("version", cwd=tmp_path / "absent")
    with pytest.raises(NotConfigured, match="git"):
        await run_git(["version"], cwd=tmp_path, env={"PATH": str(tmp_path)}, max_bytes=100)
