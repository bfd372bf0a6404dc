"""One git process: started in a session of its own, read within bounds, and never left behind.

Invariants:
- The loop is never blocked: pipes are read by callbacks, and nothing here waits in a thread.
- Whatever ends the call early (a cancellation, a time limit, too much output, an error in the progress callback), the
  process is gone when the call returns, and its whole group was killed: TERM first, because git then removes its lock
  and temporary files, and KILL after `GRACE_S`. Helpers such as `git-remote-https` and `ssh` are in the same group.
- What git leaves running behind its back is killed in the moment git exits, before its number can be another group's.
- At most `max_bytes` of output and the last `STDERR_BYTES` of messages are held.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from app.errors import InvalidInput, NotConfigured, TooLarge

GRACE_S: Final = 2.0
STDERR_BYTES: Final = 16_384
_STDOUT, _STDERR = 1, 2
_PERCENT = re.compile(rb"(?:remote: )?([A-Z][A-Za-z ]{2,40}):\s+(\d{1,3})% ")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far git has come in one of its phases ("Receiving objects", "Resolving deltas", "Updating files")."""

    phase: str
    percent: int


OnProgress = Callable[[Progress], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Finished:
    """What a git process left: exit status, output and the end of its messages (not redacted)."""

    status: int
    stdout: bytes
    stderr: str
    truncated: bool
    """The output went past the bound and was cut there, as the caller asked; the status then says nothing."""


async def run_git(
    args: Sequence[str],
    *,
    cwd: Path,
    env: dict[str, str],
    max_bytes: int,
    cut: bool = False,
    stdin: bytes = b"",
    on_progress: OnProgress | None = None,
) -> Finished:
    """Run git to its end and return what it left, whatever its exit status.

    Output past `max_bytes` ends the process: with `cut` the first `max_bytes` are returned as `truncated`, else
    `TooLarge` is raised. Raises `NotConfigured` when there is no git, `InvalidInput` when there is no `cwd`. The time
    limit is the caller's: cancelling kills the process.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, protocol = await loop.subprocess_exec(
            lambda: _Pipes(max_bytes), "git", *args, cwd=cwd, env=env, start_new_session=True
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _not_started(cwd) from error
    try:
        _feed(transport, stdin)
        await _watch(protocol, on_progress)
        if protocol.excess and not cut:
            raise TooLarge(f"git {subcommand(args)}: more than the bound of {max_bytes} bytes of output")
    finally:
        await _end(transport, protocol)
    return protocol.finished(transport.get_returncode())


def subcommand(args: Sequence[str]) -> str:
    """The word after `git`, for messages."""
    return args[0] if args else ""


def _not_started(cwd: Path) -> InvalidInput | NotConfigured:
    if not cwd.is_dir():
        return InvalidInput(f"workspace {str(cwd)!r}: no such directory")
    return NotConfigured("the git program was not found on PATH, expected git >= 2.31 to be installed")


class _Pipes(asyncio.SubprocessProtocol):
    """Collects what a process writes, and sets `changed` on progress, on excess and at the end."""

    def __init__(self, max_bytes: int) -> None:
        self.pid = 0
        self.changed = asyncio.Event()
        self.exited = asyncio.Event()
        self.closed = False
        self.excess = False
        self._max_bytes = max_bytes
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._line = b""
        self._progress: Progress | None = None
        self._open = {_STDOUT, _STDERR}

    @property
    def ended(self) -> bool:
        return self.excess or self.closed

    def take_progress(self) -> Progress | None:
        progress, self._progress = self._progress, None
        return progress

    def finished(self, status: int | None) -> Finished:
        stderr = (self._stderr + self._line).decode(errors="replace")
        return Finished(-1 if status is None else status, bytes(self._stdout), stderr, self.excess)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.pid = cast(asyncio.SubprocessTransport, transport).get_pid()

    def signal_group(self, number: signal.Signals) -> None:
        # A group that is gone already is what was wanted.
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == _STDERR:
            self._read_messages(data)
        elif not self.excess:
            self._stdout += data
            if len(self._stdout) > self._max_bytes:
                del self._stdout[self._max_bytes :]
                self.excess = True
                self.changed.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        self._close_when_done()

    def process_exited(self) -> None:
        self.signal_group(signal.SIGKILL)
        self.exited.set()
        self._close_when_done()

    def _close_when_done(self) -> None:
        # Both, because the exit may be seen before the last bytes are.
        self.closed = self.exited.is_set() and not self._open
        if self.closed:
            self.changed.set()

    def _read_messages(self, data: bytes) -> None:
        *lines, self._line = re.split(rb"[\r\n]", self._line + data)
        self._line = self._line[-STDERR_BYTES:]
        for line in lines:
            if match := _PERCENT.match(line):
                self._progress = Progress(match[1].decode(), min(int(match[2]), 100))
                self.changed.set()
            elif line.strip():
                self._stderr += line + b"\n"
        del self._stderr[:-STDERR_BYTES]


def _feed(transport: asyncio.SubprocessTransport, stdin: bytes) -> None:
    pipe = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
    if stdin:
        pipe.write(stdin)
    pipe.close()


async def _watch(protocol: _Pipes, on_progress: OnProgress | None) -> None:
    last = None
    while not protocol.ended:
        await protocol.changed.wait()
        protocol.changed.clear()
        progress = protocol.take_progress()
        if on_progress and progress and progress != last:
            await on_progress(progress)
            last = progress


async def _end(transport: asyncio.SubprocessTransport, protocol: _Pipes) -> None:
    try:
        if not protocol.exited.is_set():
            protocol.signal_group(signal.SIGTERM)
            async with asyncio.timeout(GRACE_S):
                await protocol.exited.wait()
    except TimeoutError:
        pass  # it did not listen, which is what the KILL below is for
    finally:
        # A second cancellation comes here at once: no more patience then.
        if not protocol.exited.is_set():
            protocol.signal_group(signal.SIGKILL)
            await protocol.exited.wait()
        transport.close()
