from __future__ import annotations

import hmac
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import time_machine
from fastapi import Depends, FastAPI
from loguru import logger

from app.api import key_auth
from app.api.api_keys import create_key, revoke_key
from app.api.auth import Caller, OffAuthenticator, Principal, make_authenticator, require_scope
from app.api.jwt import JwtAuthenticator
from app.api.key_auth import KeyAuthenticator
from app.api.principal import MAX_CREDENTIALS_CHARS, is_name
from app.api.problems import install_problem_handlers
from app.errors import Forbidden, SettingsError, Unauthorized, Unavailable
from app.settings import Settings
from app.telemetry import EMPTY_CONTEXT, current_context, reset_context, set_context


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api-keys.json"


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logger.add(lambda message: lines.append(str(message)), format="{level} {message}\n{exception}")
    yield lines
    logger.remove(handler)


def bearer(key: str) -> str:
    return f"Bearer {key}"


# Which authenticator


def test_the_mode_chooses_the_authenticator(path: Path) -> None:
    assert isinstance(make_authenticator(Settings(auth="off")), OffAuthenticator)
    assert isinstance(make_authenticator(Settings(auth="keys", api_keys_file=path)), KeyAuthenticator)
    assert isinstance(make_authenticator(Settings(auth="jwt", jwt_secret="x" * 32)), JwtAuthenticator)


def test_off_outside_loopback_makes_no_authenticator() -> None:
    with pytest.raises(SettingsError, match="NIGHTSHIFT_AUTH=off"):
        make_authenticator(Settings(auth="off", host="0.0.0.0"))


async def test_off_takes_everybody_for_the_local_admin() -> None:
    local = await OffAuthenticator().authenticate("Bearer whatever")
    assert local == Principal("local", frozenset({"admin"}), is_admin=True, expires_at=None)


# Keys


async def test_a_key_tells_its_user_scopes_and_end(path: Path) -> None:
    key, record = create_key(path, "ada", ["editor"], timedelta(hours=1))
    caller = await KeyAuthenticator(path).authenticate(bearer(key))
    assert caller == Principal("ada", frozenset({"editor"}), is_admin=False, expires_at=record.expires_at)


async def test_the_scope_admin_makes_an_admin(path: Path) -> None:
    key, _ = create_key(path, "root", ["admin"])
    assert (await KeyAuthenticator(path).authenticate(bearer(key))).is_admin


@pytest.mark.parametrize("header", ["bearer {key}", "BEARER {key}", "Bearer   {key} "])
async def test_the_scheme_is_read_as_rfc_9110_says(path: Path, header: str) -> None:
    key, _ = create_key(path, "ada")
    assert (await KeyAuthenticator(path).authenticate(header.format(key=key))).user_id == "ada"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "ns_0123456789abcdef_x"])
async def test_missing_or_unusable_credentials_are_refused(path: Path, header: str | None) -> None:
    with pytest.raises(Unauthorized, match="expected a header `Authorization: Bearer"):
        await KeyAuthenticator(path).authenticate(header)


async def test_a_wrong_secret_an_unknown_id_and_garbage_read_the_same(path: Path) -> None:
    key, record = create_key(path, "ada")
    secret = key.split("_", 2)[2]
    wrong = [
        f"ns_{record.id}_{secret[:-1]}",
        f"ns_{record.id}_{secret}x",
        f"ns_{record.id}_",
        f"ns_{record.id}",
        f"ns_0123456789abcdef_{secret}",
        f"xx_{record.id}_{secret}",
        f"ns_{record.id}_\xe4",
        "ns__",
        "_",
    ]
    authenticator = KeyAuthenticator(path)
    for credentials in wrong:
        with pytest.raises(Unauthorized, match=r"^unknown API key$"):
            await authenticator.authenticate(bearer(credentials))
    assert (await authenticator.authenticate(bearer(key))).user_id == "ada"


async def test_a_key_is_refused_from_the_second_it_ends(path: Path) -> None:
    with time_machine.travel(1_800_000_000, tick=False) as clock:
        key, _ = create_key(path, "ada", expires_in=timedelta(minutes=5))
        authenticator = KeyAuthenticator(path)
        clock.shift(299.999)
        assert (await authenticator.authenticate(bearer(key))).user_id == "ada"
        clock.shift(0.001)
        with pytest.raises(Unauthorized, match=r"expired at 2027-01-15T08:05:00Z"):
            await authenticator.authenticate(bearer(key))


async def test_a_stranger_is_not_told_that_a_key_is_revoked(path: Path) -> None:
    key, record = create_key(path, "ada")
    revoke_key(path, record.id)
    authenticator = KeyAuthenticator(path)
    with pytest.raises(Unauthorized, match="is revoked"):
        await authenticator.authenticate(bearer(key))
    with pytest.raises(Unauthorized, match=r"^unknown API key$"):
        await authenticator.authenticate(bearer(key[:-1]))


async def test_secrets_are_compared_in_constant_time_also_for_unknown_ids(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, record = create_key(path, "ada")
    compared: list[tuple[int, int]] = []

    def watched(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return hmac.compare_digest(left, right)

    monkeypatch.setattr(key_auth, "compare_digest", watched)
    authenticator = KeyAuthenticator(path)
    await authenticator.authenticate(bearer(key))
    for unknown in ("ns_0123456789abcdef_x", f"ns_{record.id}_x"):
        with pytest.raises(Unauthorized):
            await authenticator.authenticate(bearer(unknown))
    assert compared == [(32, 32)] * 3


async def test_overlong_credentials_are_refused_unread(path: Path) -> None:
    with pytest.raises(Unauthorized, match="expected at most 8192 characters"):
        await KeyAuthenticator(path).authenticate(bearer("x" * (MAX_CREDENTIALS_CHARS + 1)))


# The file under a running server


async def test_a_new_and_a_revoked_key_count_from_the_next_request_on(path: Path) -> None:
    authenticator = KeyAuthenticator(path)
    with pytest.raises(Unauthorized):
        await authenticator.authenticate("Bearer ns_0123456789abcdef_x")
    first, record = create_key(path, "ada")
    assert (await authenticator.authenticate(bearer(first))).user_id == "ada"
    second, _ = create_key(path, "bob")
    assert (await authenticator.authenticate(bearer(second))).user_id == "bob"
    revoke_key(path, record.id)
    with pytest.raises(Unauthorized, match="is revoked"):
        await authenticator.authenticate(bearer(first))
    assert (await authenticator.authenticate(bearer(second))).user_id == "bob"
    path.unlink()
    with pytest.raises(Unauthorized):
        await authenticator.authenticate(bearer(second))


async def test_a_file_that_did_not_change_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = create_key(path, "ada")
    authenticator = KeyAuthenticator(path)
    monkeypatch.setattr(key_auth, "read_keys", None)
    for _ in range(3):
        assert (await authenticator.authenticate(bearer(key))).user_id == "ada"


async def test_an_edit_in_place_that_keeps_size_and_time_is_noticed(path: Path) -> None:
    key, record = create_key(path, "ada")
    authenticator = KeyAuthenticator(path)
    await authenticator.authenticate(bearer(key))
    state = path.stat()
    with path.open("r+") as file:  # the same inode, the same length, and then the same modification time
        text = file.read().replace(f'"{record.id}"', f'"{"0" * 16}"')
        file.seek(0)
        file.write(text)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(Unauthorized):
        await authenticator.authenticate(bearer(key))


def test_a_server_does_not_start_with_a_malformed_file(path: Path) -> None:
    path.write_text("{}}")
    with pytest.raises(SettingsError, match=r"^API keys file .*: document: Invalid JSON"):
        make_authenticator(Settings(auth="keys", api_keys_file=path))


async def test_a_file_that_breaks_closes_the_door_until_it_is_repaired(path: Path, log: list[str]) -> None:
    key, _ = create_key(path, "ada")
    good = path.read_text()
    authenticator = KeyAuthenticator(path)
    path.write_text("{")
    for _ in range(3):
        with pytest.raises(Unavailable) as refused:
            await authenticator.authenticate(bearer(key))
        assert str(path) not in refused.value.detail
        assert refused.value.retry_after_s
    assert [line for line in log if "Invalid JSON" in line] == log  # read and logged once
    assert len(log) == 1
    path.write_text(good)
    assert (await authenticator.authenticate(bearer(key))).user_id == "ada"


async def test_repaired_permissions_are_noticed(path: Path) -> None:
    key, _ = create_key(path, "ada")
    authenticator = KeyAuthenticator(path)
    path.chmod(0o666)
    with pytest.raises(Unavailable):
        await authenticator.authenticate(bearer(key))
    path.chmod(0o600)
    assert (await authenticator.authenticate(bearer(key))).user_id == "ada"


# Routes


@asynccontextmanager
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.state.authenticator = make_authenticator(settings)
    install_problem_handlers(app)

    @app.get("/me")
    async def me(caller: Caller) -> dict[str, Any]:
        return {"user_id": caller.user_id, "bound": current_context().user_id}

    @app.post("/pause")
    async def pause(caller: Annotated[Principal, Depends(require_scope("operate"))]) -> str:
        return caller.user_id

    token = set_context(EMPTY_CONTEXT)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as connected:
        yield connected
    reset_context(token)


async def test_a_route_knows_its_caller_and_so_does_the_log(path: Path) -> None:
    key, _ = create_key(path, "ada")
    async with client(Settings(auth="keys", api_keys_file=path)) as api:
        answer = await api.get("/me", headers={"Authorization": bearer(key)})
    assert answer.json() == {"user_id": "ada", "bound": "ada"}


async def test_without_credentials_the_answer_asks_for_them(path: Path) -> None:
    async with client(Settings(auth="keys", api_keys_file=path)) as api:
        nothing = await api.get("/me")
        wrong = await api.get("/me", headers={"Authorization": "Bearer ns_0123456789abcdef_x"})
    assert (nothing.status_code, wrong.status_code) == (401, 401)
    assert nothing.headers["www-authenticate"] == 'Bearer realm="nightshift"'
    assert wrong.headers["www-authenticate"] == 'Bearer realm="nightshift", error="invalid_token"'
    assert wrong.json()["type"] == "urn:nightshift:problem:unauthorized"


async def test_a_scope_is_demanded_and_an_admin_has_all(path: Path) -> None:
    keys = {name: create_key(path, name, scopes)[0] for name, scopes in
            {"none": [], "operator": ["operate"], "root": ["admin"]}.items()}  # fmt: skip
    async with client(Settings(auth="keys", api_keys_file=path)) as api:
        answers = {
            name: (await api.post("/pause", headers={"Authorization": bearer(key)})).status_code
            for name, key in keys.items()
        }
        refused = await api.post("/pause", headers={"Authorization": bearer(keys["none"])})
    assert answers == {"none": 403, "operator": 200, "root": 200}
    assert refused.json()["detail"] == "user 'none' lacks the scope 'operate'"


async def test_a_key_revoked_under_a_running_application_is_refused_by_its_next_request(path: Path) -> None:
    key, record = create_key(path, "ada")
    headers = {"Authorization": bearer(key)}
    async with client(Settings(auth="keys", api_keys_file=path)) as api:
        assert (await api.get("/me", headers=headers)).status_code == 200
        revoke_key(path, record.id)
        assert (await api.get("/me", headers=headers)).status_code == 401


async def test_credentials_reach_neither_answers_nor_the_log(path: Path, log: list[str]) -> None:
    key, record = create_key(path, "ada")
    wrong = f"ns_{record.id}_verysecretindeed"
    async with client(Settings(auth="keys", api_keys_file=path)) as api:
        answer = await api.get("/me", headers={"Authorization": bearer(wrong)})
        path.write_text("{")
        broken = await api.get("/me", headers={"Authorization": bearer(key)})
    assert (answer.status_code, broken.status_code) == (401, 503)
    seen = "\n".join([answer.text, broken.text, *log])
    assert "verysecretindeed" not in seen
    assert key.split("_", 2)[2] not in seen


def test_principals_demand_scopes_for_websockets_too() -> None:
    ada = Principal("ada", frozenset({"editor"}), is_admin=False)
    ada.require_scope("editor")
    with pytest.raises(Forbidden, match="'ada' lacks the scope 'admin'"):
        ada.require_scope("admin")


def test_openapi_says_where_credentials_are_needed(path: Path) -> None:
    app = FastAPI()

    @app.get("/me")
    async def me(caller: Caller) -> str:
        return caller.user_id

    @app.get("/healthz")
    async def healthz() -> str:
        return "ok"

    document = json.loads(json.dumps(app.openapi()))
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert document["paths"]["/me"]["get"]["security"] == [{"bearer": []}]
    assert "security" not in document["paths"]["/healthz"]["get"]


@pytest.mark.parametrize(
    ("user_id", "usable"), [("auth0|123", True), ("ada@example.org", True), ("arq", False), ("", False)]
)
def test_user_ids_of_identity_providers_are_taken_and_that_of_stock_clients_is_nobodys(
    user_id: str, usable: bool
) -> None:
    assert is_name(user_id) is usable
