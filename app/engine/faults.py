"""What a validation found, in words that do not repeat what was given.

pydantic's own text quotes the values. These messages go into logs, events and dead letters, which are kept longer and
read by more people than a payload or a result.
"""

from __future__ import annotations

from pydantic import ValidationError

SHOWN = 5


def faults_of(error: Exception) -> str:
    """The places and what is wrong there; the text of an error that is no `ValidationError` as it is."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors(include_url=False, include_context=False, include_input=False)
    words = [": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in found[:SHOWN]]
    rest = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "; ".join(words + rest)
