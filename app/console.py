"""What all commands share: output that any terminal can show, and errors as one line and an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from app.errors import NightshiftError, SettingsError


def readable_output() -> None:
    """Let characters that the terminal's encoding lacks be shown as `?` instead of ending the process."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def guarded(command: Callable[[], int]) -> int:
    """Run a command; errors that are meant for people become one line and an exit code."""
    try:
        return command()
    except NightshiftError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, SettingsError) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
