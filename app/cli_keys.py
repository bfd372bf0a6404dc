"""The commands about API keys, which work on the file that the service of this machine reads."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

from app.api.api_keys import KeyRecord, create_key, list_keys, revoke_key
from app.cli_views import print_json, print_table
from app.settings import settings


def create(user: str, scopes: list[str], days: float | None) -> int:
    """Make a key and show it."""
    life = None if days is None else timedelta(days=days)
    key, record = create_key(settings().keys_file, user, scopes, life)
    # The key alone on standard output, so that a script can take it.
    print(key)
    until = f"until {record.expires_at:%Y-%m-%d %H:%M}Z" if record.expires_at else "until it is revoked"
    print(
        f"Key {record.id} of {record.user_id}, valid {until}. It is not shown again.\n"
        f"Use it as NIGHTSHIFT_API_KEY, or as `Authorization: Bearer <key>`.",
        file=sys.stderr,
    )
    return 0


def list_all(*, as_json: bool) -> int:
    """List the keys."""
    records = list_keys(settings().keys_file)
    if as_json:
        print_json([record.model_dump(mode="json", exclude={"hash"}) for record in records])
        return 0
    headers = ("id", "user", "scopes", "created", "expires", "")
    print_table(headers, map(_row, records), nothing=f"No keys in {settings().keys_file}.")
    return 0


def revoke(key_id: str) -> int:
    """Revoke a key."""
    record = revoke_key(settings().keys_file, key_id)
    print(f"Key {record.id} of {record.user_id} is revoked.")
    return 0


def _row(record: KeyRecord) -> tuple[Any, ...]:
    expires = f"{record.expires_at:%Y-%m-%d %H:%M}Z" if record.expires_at else "never"
    state = "revoked" if record.revoked else ""
    return record.id, record.user_id, record.scopes, f"{record.created_at:%Y-%m-%d %H:%M}Z", expires, state
