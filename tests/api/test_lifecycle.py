"""The end of an API process is known to everybody who keeps a request open."""

from __future__ import annotations

import asyncio
import signal
from types import FrameType

import pytest

from app.api.lifecycle import Shutdown
from app.errors import Unavailable


async def test_whoever_waits_hears_of_the_shutdown() -> None:
    shutdown = Shutdown()
    waiting = asyncio.create_task(shutdown.wait())
    shutdown.begin()
    await waiting
    assert shutdown.begun


async def test_a_limit_ends_at_its_time() -> None:
    with pytest.raises(TimeoutError):
        async with Shutdown().limit(0.01):
            await asyncio.Event().wait()


async def test_a_limit_ends_when_the_shutdown_begins() -> None:
    shutdown, inside = Shutdown(), asyncio.Event()

    async def limited() -> None:
        async with shutdown.limit(3_600):
            inside.set()
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(limited()) for _ in range(3)]
    await inside.wait()
    shutdown.begin()
    for error in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(error, TimeoutError)


async def test_a_limit_that_begins_late_ends_at_once() -> None:
    shutdown = Shutdown()
    shutdown.begin()
    with pytest.raises(TimeoutError):
        async with shutdown.limit(3_600):
            await asyncio.Event().wait()


async def test_a_block_within_its_limit_is_left_alone() -> None:
    shutdown = Shutdown()
    async with shutdown.limit(3_600):
        pass
    shutdown.begin()


async def test_late_comers_are_refused() -> None:
    shutdown = Shutdown()
    shutdown.refuse_late()
    shutdown.begin()
    with pytest.raises(Unavailable):
        shutdown.refuse_late()


async def test_a_signal_begins_the_shutdown_and_then_does_what_it_did() -> None:
    shutdown, heard = Shutdown(), []

    def handle(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        with shutdown.on_signals():
            signal.raise_signal(signal.SIGTERM)
            await shutdown.wait()
        assert signal.getsignal(signal.SIGTERM) is handle
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


async def test_a_signal_that_nobody_handles_is_left_alone() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Shutdown().on_signals():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_another_thread_takes_no_signals() -> None:
    def enter() -> None:
        with Shutdown().on_signals():
            pass

    await asyncio.to_thread(enter)
