"""API, worker and embedded server in one process, for one machine: what `./run serve` and `./run demo` start.

    python -m app.dev serve
    python -m app.dev demo [REPOSITORY]

Exit codes: 0 done, 1 failed, 2 wrong use or settings, 130 interrupted before the end.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from app.console import guarded, readable_output
from app.settings import Settings, settings

USAGE = """\
usage: python -m app.dev serve               the service, until Ctrl-C
       python -m app.dev demo [REPOSITORY]   one real task from end to end; a path or an https URL
       python -m app.dev demo durable        a task that waits, and whose worker is killed twice"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    readable_output()
    match given:
        case ["serve"]:
            return guarded(serve)
        case ["demo", "durable"]:
            from app.dev_durable import durable

            return guarded(durable)
        case ["demo"] | ["demo", _] if not given[-1].startswith("-"):
            from app.dev_demo import demo

            return guarded(lambda: demo(given[1] if len(given) > 1 else None))
        case ["--help" | "-h"] | [_, "--help" | "-h"]:
            print(USAGE)
            return 0
    print(USAGE, file=sys.stderr)
    return 2


def serve() -> int:
    """Run the service until SIGINT or SIGTERM. Raises `SettingsError`, `Unavailable`."""
    chosen = settings()
    return run(_serve(chosen, chosen.auth_mode))


def run(work: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine on the event loop that workers use too."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # PyPy and Windows run on asyncio's own loop.
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _serve(chosen: Settings, auth: str) -> int:
    from app.dev_service import on_signals, running

    stop = asyncio.Event()
    with on_signals(stop.set):
        async with running(chosen) as service:
            print(_welcome(chosen, auth, service.url), flush=True)
            stopped = asyncio.ensure_future(stop.wait())
            ended = asyncio.ensure_future(service.ended())
            await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            ended.cancel()
    print("Nightshift has stopped.", flush=True)
    return 0


def _welcome(chosen: Settings, auth: str, url: str) -> str:
    store = "the configured Redis" if chosen.redis_url else f"embedded server, data in {chosen.data_dir.resolve()}"
    who = {
        "off": "no credentials needed: only this machine can reach it",
        "keys": "API keys: make one with `nightshift keys create NAME`",
        "jwt": "JSON Web Tokens",
    }[auth]
    model = (chosen.llm_model or "named by each call") if chosen.llm_base_url else "offline (it quotes)"
    return "\n".join(
        [
            "Nightshift is up: API, worker and scheduler in this process. Ctrl-C stops it.",
            f"  dashboard  {url}/",
            f"  API        {url}/docs describes it",
            f"  access     {who}",
            f"  store      {store}",
            f"  model      {model}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
