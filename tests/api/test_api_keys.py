from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.api import api_keys
from app.api.api_keys import create_key, list_keys, read_keys, revoke_key
from app.errors import InvalidInput, NotFound, SettingsError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "api-keys.json"


def stored(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["keys"]


def test_a_new_key_is_stored_by_its_hash_only(path: Path) -> None:
    key, record = create_key(path, "ada", ["editor", "admin", "admin"], timedelta(days=1))
    prefix, key_id, secret = key.split("_", 2)
    assert (prefix, key_id) == ("ns", record.id)
    assert len(secret) >= 43  # 256 bits, six to a character
    assert secret not in path.read_text()
    (entry,) = stored(path)
    assert entry["hash"] == "sha256:" + hashlib.sha256(secret.encode()).hexdigest()
    assert entry["user_id"] == "ada"
    assert entry["scopes"] == ["admin", "editor"]
    assert entry["revoked"] is False
    life = datetime.fromisoformat(entry["expires_at"]) - datetime.fromisoformat(entry["created_at"])
    assert life == timedelta(days=1)


def test_the_file_is_for_its_owner_only_and_nothing_is_left_beside_it(path: Path) -> None:
    create_key(path, "ada")
    create_key(path, "bob")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert sorted(item.name for item in path.parent.iterdir()) == ["api-keys.json", "api-keys.json.lock"]


def test_a_reader_keeps_the_whole_old_file_while_a_new_one_takes_its_place(path: Path) -> None:
    create_key(path, "ada")
    with path.open() as before:
        create_key(path, "bob")
        assert [entry["user_id"] for entry in json.load(before)["keys"]] == ["ada"]
    assert [entry["user_id"] for entry in stored(path)] == ["ada", "bob"]


def test_a_failed_write_leaves_the_old_file_and_no_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(path, "ada")
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(api_keys.os, "fsync", full)
    with pytest.raises(SettingsError, match="cannot be written: No space left on device"):
        create_key(path, "bob")
    assert path.read_bytes() == before
    assert sorted(item.name for item in path.parent.iterdir()) == ["api-keys.json", "api-keys.json.lock"]


def test_a_linked_file_stays_a_link(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.json"
    create_key(real, "ada")
    path.parent.mkdir()
    path.symlink_to(real)
    create_key(path, "bob")
    assert path.is_symlink()
    assert [record.user_id for record in list_keys(real)] == ["ada", "bob"]


def test_a_revoked_key_stays_listed_as_revoked(path: Path) -> None:
    _, first = create_key(path, "ada")
    _, second = create_key(path, "bob")
    assert revoke_key(path, first.id).revoked
    assert revoke_key(path, first.id).revoked
    assert [(record.id, record.revoked) for record in list_keys(path)] == [(first.id, True), (second.id, False)]


def test_revoking_an_unknown_key_says_so_and_writes_nothing(path: Path) -> None:
    create_key(path, "ada")
    before = path.stat().st_ino
    with pytest.raises(NotFound, match="'nosuchkey'"):
        revoke_key(path, "nosuchkey")
    assert path.stat().st_ino == before


def test_no_file_is_no_keys(path: Path) -> None:
    assert list_keys(path) == []
    with pytest.raises(NotFound):
        revoke_key(path, "0123456789abcdef")


@pytest.mark.parametrize("user_id", ["", "a b", "a/b", "ä", "a\n", "x" * 129, "arq"])
def test_a_user_id_that_cannot_be_is_refused(path: Path, user_id: str) -> None:
    with pytest.raises(InvalidInput, match=r"^user id "):
        create_key(path, user_id)
    assert not path.exists()


def test_names_of_128_characters_and_all_allowed_signs_are_kept(path: Path) -> None:
    name = "Az09._@:-".ljust(128, "x")
    _, record = create_key(path, name, [name])
    assert (record.user_id, record.scopes) == (name, (name,))


def test_a_scope_that_cannot_be_is_refused(path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^scope 'a b'"):
        create_key(path, "ada", ["admin", "a b"])


@pytest.mark.parametrize("life", [timedelta(0), timedelta(seconds=-1)])
def test_a_life_of_nothing_is_refused(path: Path, life: timedelta) -> None:
    with pytest.raises(InvalidInput, match="expected more than nothing"):
        create_key(path, "ada", expires_in=life)


GOOD = {
    "id": "0123456789abcdef",
    "hash": "sha256:" + 64 * "0",
    "user_id": "ada",
    "scopes": [],
    "created_at": "2026-11-01T00:00:00Z",
    "expires_at": None,
    "revoked": False,
}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "document: Invalid JSON"),
        ("[]", "document: "),
        ('{"keys": 1}', "keys: "),
        (json.dumps({"keys": [GOOD], "more": 1}), "more: "),
        (json.dumps({"keys": [{**GOOD, "hash": "s3cr3t"}]}), r"keys\.0\.hash: "),
        (json.dumps({"keys": [GOOD, {**GOOD, "id": "zz"}]}), r"keys\.1\.id: "),
        (json.dumps({"keys": [{**GOOD, "user_id": "a b"}]}), r"keys\.0\.user_id: "),
        (json.dumps({"keys": [{**GOOD, "scopes": ["a\n"]}]}), r"keys\.0\.scopes\.0: "),
        (json.dumps({"keys": [{**GOOD, "expires_at": "2026-11-01T00:00:00"}]}), r"keys\.0\.expires_at: "),
        (json.dumps({"keys": [GOOD, GOOD]}), "expected every id once"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line_that_names_file_and_place(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=f"^API keys file {re.escape(str(path))}: {complaint}") as caught:
        read_keys(path)
    assert "\n" not in caught.value.detail
    assert "s3cr3t" not in caught.value.detail


def test_a_malformed_file_is_never_overwritten(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(SettingsError):
        create_key(path, "ada")
    assert path.read_text() == "{"


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write_is_refused(path: Path, mode: int) -> None:
    create_key(path, "ada")
    path.chmod(mode)
    with pytest.raises(SettingsError, match="writable by its owner only"):
        read_keys(path)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        read_keys(tmp_path)


async def test_writers_in_several_processes_lose_no_key(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from app.api.api_keys import create_key\n"
        "for number in range(15): create_key(Path(sys.argv[1]), f'{sys.argv[2]}-{number}')"
    )

    async def write(name: str) -> int:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(path), name)
        return await asyncio.wait_for(process.wait(), 30)

    assert await asyncio.gather(*(write(name) for name in "abc")) == [0, 0, 0]
    users = {record.user_id for record in list_keys(path)}
    assert users == {f"{name}-{number}" for name in "abc" for number in range(15)}


def test_a_writer_that_does_not_get_its_turn_gives_up_with_a_word(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(path, "ada")
    monkeypatch.setattr(api_keys, "LOCK_TIMEOUT_S", 0.05)
    descriptor = os.open(f"{path}.lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="another process holds"):
            create_key(path, "bob")
    finally:
        os.close(descriptor)
    create_key(path, "bob")
    assert len(list_keys(path)) == 2


def test_keys_can_be_made_without_loading_the_web_framework() -> None:
    code = "import app.api.api_keys, sys; sys.exit('fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0


def test_records_know_their_times_in_utc(path: Path) -> None:
    _, record = create_key(path, "ada")
    assert list_keys(path)[0].created_at.tzinfo == UTC
    assert record.expires_at is None
