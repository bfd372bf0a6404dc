"""Run a module as `python -m` does, in a process that ends when its standard input does.

    python -m tests.bench.leash arq worker.WorkerSettings

So no process of the benchmark outlives it, however it ends.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading


def watch_input() -> None:
    """End the process, at once, when whoever holds the other end of its standard input is gone."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    watch_input()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
