from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.api import jwks
from app.api.jwks import MIN_INTERVAL_S, STALE_S, TTL_S, Jwks
from app.api.jwt import JwtAuthenticator
from app.errors import SettingsError, Unauthorized, Unavailable
from app.settings import Settings
from tests.api.issuer import Issuer, claims, new_key, public_jwk, sign

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def key() -> RSAPrivateKey:
    return new_key()


@pytest.fixture(scope="module")
def other_key() -> RSAPrivateKey:
    return new_key()


@pytest.fixture
async def issuer(key: RSAPrivateKey) -> AsyncIterator[Issuer]:
    async with Issuer() as running:
        running.publish(key, "k1")
        yield running


@pytest.fixture
async def rs256(issuer: Issuer) -> AsyncIterator[JwtAuthenticator]:
    authenticator = JwtAuthenticator(Settings(auth="jwt", jwt_jwks_url=issuer.url))
    yield authenticator
    await authenticator.aclose()


def hs256(**settings: Any) -> JwtAuthenticator:
    return JwtAuthenticator(Settings(auth="jwt", jwt_secret=SECRET, **settings))


def shared(secret: str = SECRET, **changes: Any) -> str:
    return "Bearer " + jwt.encode(claims(**changes), secret, "HS256")


def by_hand(header: dict[str, Any], payload: dict[str, Any], secret: bytes | None) -> str:
    """A token made without a library, which would refuse to make it."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, payload)]
    signature = b"" if secret is None else hmac.digest(secret, b".".join(parts), hashlib.sha256)
    return "Bearer " + b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


# Claims


async def test_a_good_token_tells_user_scopes_and_end() -> None:
    end = int(time.time()) + 60
    caller = await hs256().authenticate(shared(sub="ada@example.org", exp=end, scope="editor rates:reader"))
    assert caller.user_id == "ada@example.org"
    assert caller.scopes == {"editor", "rates:reader"}
    assert not caller.is_admin
    assert caller.expires_at == datetime.fromtimestamp(end, UTC)


async def test_scopes_may_be_a_list_and_foreign_ones_are_passed_over() -> None:
    caller = await hs256().authenticate(
        shared(scope="openid https://graph.example/User.Read", scopes=["admin", "a b", 7])
    )
    assert caller.scopes == {"openid", "admin"}
    assert caller.is_admin


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"exp": None}, 'missing the "exp" claim'),
        ({"sub": None}, 'missing the "sub" claim'),
        ({"exp": int(time.time()) - 1}, "expired"),
        ({"exp": 1}, "expired"),
        ({"exp": "soon"}, "exp"),
        ({"exp": 1e300}, "expected `exp`"),
        ({"exp": float("inf")}, "exp"),
        ({"nbf": int(time.time()) + 86_400}, "not yet valid"),
        ({"iat": int(time.time()) + 86_400}, "not yet valid"),
        ({"sub": 7}, "Subject must be a string"),
        ({"sub": ""}, "expected `sub`"),
        ({"sub": "a/b"}, "expected `sub`"),
        ({"sub": "x" * 129}, "expected `sub`"),
        ({"scope": ["admin"]}, "expected `scope`"),
        ({"scopes": "admin"}, "expected `scope`"),
    ],
)
async def test_a_token_with_a_wrong_claim_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(Unauthorized, match=r"^token refused: ") as caught:
        await hs256().authenticate(shared(**changes))
    assert complaint in caught.value.detail


async def test_an_issuers_clock_may_be_slightly_ahead() -> None:
    soon = int(time.time()) + 3
    assert (await hs256().authenticate(shared(nbf=soon, iat=soon))).user_id == "ada"


@pytest.mark.parametrize(
    "changes", [{}, {"iss": "https://other"}, {"aud": "other"}, {"aud": ["other"], "iss": "https://us"}]
)
async def test_configured_issuer_and_audience_are_demanded(changes: dict[str, Any]) -> None:
    authenticator = hs256(jwt_issuer="https://us", jwt_audience="nightshift")
    with pytest.raises(Unauthorized):
        await authenticator.authenticate(shared(**changes))
    good = shared(iss="https://us", aud=["other", "nightshift"])
    assert (await authenticator.authenticate(good)).user_id == "ada"


async def test_an_audience_does_not_matter_when_none_is_configured() -> None:
    assert (await hs256().authenticate(shared(aud="anything"))).user_id == "ada"


# Signatures and algorithms


async def test_a_token_of_another_secret_is_refused() -> None:
    with pytest.raises(Unauthorized, match="Signature verification failed"):
        await hs256().authenticate(shared("f" * 32))


async def test_a_token_that_names_no_algorithm_is_refused(rs256: JwtAuthenticator, issuer: Issuer) -> None:
    for algorithm in ("none", "None", "NONE", ""):
        token = by_hand({"alg": algorithm, "typ": "JWT", "kid": "k1"}, claims(), None)
        for authenticator in (hs256(), rs256):
            with pytest.raises(Unauthorized):
                await authenticator.authenticate(token)
    assert issuer.requests == 0


async def test_the_public_key_is_no_shared_secret(rs256: JwtAuthenticator, issuer: Issuer, key: RSAPrivateKey) -> None:
    await rs256.authenticate(sign(key))
    public = key.public_key()
    secrets = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.PEM, PublicFormat.PKCS1),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(issuer.published[0]).encode(),
    ]
    for secret in secrets:
        with pytest.raises(Unauthorized, match="expected algorithm RS256"):
            await rs256.authenticate(by_hand({"alg": "HS256", "kid": "k1"}, claims(), secret))


async def test_other_algorithms_of_the_same_key_are_refused(rs256: JwtAuthenticator, key: RSAPrivateKey) -> None:
    for algorithm in ("RS512", "PS256"):
        token = jwt.encode(claims(), key, algorithm, {"kid": "k1"})
        with pytest.raises(Unauthorized, match="expected algorithm RS256"):
            await rs256.authenticate(f"Bearer {token}")


async def test_an_rs256_token_is_refused_where_a_secret_is_configured(key: RSAPrivateKey) -> None:
    with pytest.raises(Unauthorized):
        await hs256().authenticate(sign(key))


ODD_HEADS = [
    b"[" * 5_000,
    b"1",
    b"{}",
    b"\xff",
    b'{"alg": 7}',
    b'{"alg": "RS256", "kid": 7}',
    b'{"alg": null, "kid": []}',
]
ODD_TOKENS = [base64.urlsafe_b64encode(head).rstrip(b"=").decode() + ".e30.e30" for head in ODD_HEADS]


@pytest.mark.parametrize("token", ["x", "a.b", "a.b.c", "..", "eyJ.eyJ.x", "é.é.é", "." * 100, *ODD_TOKENS])
async def test_garbage_is_refused(rs256: JwtAuthenticator, token: str) -> None:
    for authenticator in (hs256(), rs256):
        with pytest.raises(Unauthorized, match="token refused"):
            await authenticator.authenticate(f"Bearer {token}")


async def test_critical_extensions_nobody_knows_are_refused() -> None:
    with pytest.raises(Unauthorized):
        await hs256().authenticate(by_hand({"alg": "HS256", "crit": ["x"], "x": 1}, claims(), SECRET.encode()))


# Settings


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"jwt_secret": "x" * 31}, "expected at least 32 bytes"),
        ({"jwt_secret": SECRET, "jwt_jwks_url": "https://issuer.example/jwks"}, "expected one of them"),
        ({"jwt_jwks_url": "http://issuer.example/jwks"}, "expected an https URL"),
        ({"jwt_jwks_url": "https://user:pass@issuer.example/jwks"}, "expected an https URL"),
        ({"jwt_jwks_url": "file:///etc/passwd"}, "expected an https URL"),
        ({"jwt_jwks_url": "https:///jwks"}, "expected an https URL"),
    ],
)
def test_settings_that_would_not_be_safe_stop_the_process(given: dict[str, str], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as caught:
        JwtAuthenticator(Settings(auth="jwt", **given))
    assert "pass@" not in caught.value.detail
    assert "x" * 31 not in caught.value.detail


def test_a_public_key_is_refused_as_a_secret(key: RSAPrivateKey) -> None:
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(SettingsError, match="got an asymmetric key"):
        JwtAuthenticator(Settings(auth="jwt", jwt_secret=pem))


# The issuer's keys


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def keys(issuer: Issuer, clock: Clock) -> AsyncIterator[Jwks]:
    cache = Jwks(issuer.url, clock=clock)
    yield cache
    await cache.aclose()


async def test_a_token_of_the_published_key_is_accepted(rs256: JwtAuthenticator, key: RSAPrivateKey) -> None:
    assert (await rs256.authenticate(sign(key))).user_id == "ada"


async def test_a_token_of_another_key_under_the_published_id_is_refused(
    rs256: JwtAuthenticator, other_key: RSAPrivateKey
) -> None:
    with pytest.raises(Unauthorized, match="Signature verification failed"):
        await rs256.authenticate(sign(other_key))


async def test_a_token_without_key_id_is_checked_against_the_only_key(
    rs256: JwtAuthenticator, issuer: Issuer, key: RSAPrivateKey
) -> None:
    assert (await rs256.authenticate(sign(key, None))).user_id == "ada"


async def test_a_token_without_key_id_is_refused_where_there_are_two_keys(
    rs256: JwtAuthenticator, issuer: Issuer, key: RSAPrivateKey, other_key: RSAPrivateKey
) -> None:
    issuer.published.append(public_jwk(other_key, kid="k2"))
    with pytest.raises(Unauthorized, match="does not publish"):
        await rs256.authenticate(sign(key, None))


async def test_keys_are_fetched_once_however_many_ask_at_once(keys: Jwks, issuer: Issuer) -> None:
    issuer.gate.clear()
    waiting = [asyncio.create_task(keys.key("k1")) for _ in range(50)]
    await issuer.was_asked()
    issuer.gate.set()
    found = await asyncio.gather(*waiting)
    assert len({id(one) for one in found}) == 1
    assert issuer.requests == 1


async def test_one_who_gives_up_waiting_does_not_spoil_it_for_others(keys: Jwks, issuer: Issuer) -> None:
    issuer.gate.clear()
    first, second = (asyncio.create_task(keys.key("k1")) for _ in range(2))
    await issuer.was_asked()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    issuer.gate.set()
    assert await second


async def test_a_new_key_is_found_at_once(
    keys: Jwks, issuer: Issuer, clock: Clock, key: RSAPrivateKey, other_key: RSAPrivateKey
) -> None:
    await keys.key("k1")
    clock.now_s += MIN_INTERVAL_S
    issuer.publish(other_key, "k2")
    assert (await keys.key("k2")).public_numbers() == other_key.public_key().public_numbers()
    with pytest.raises(Unauthorized):  # and the key that went is gone with it
        await keys.key("k1")


async def test_a_storm_of_unknown_key_ids_asks_the_issuer_once_per_interval(
    keys: Jwks, issuer: Issuer, clock: Clock
) -> None:
    await keys.key("k1")
    for round_number in range(1, 4):
        clock.now_s += MIN_INTERVAL_S
        storm = [keys.key(f"unknown-{round_number}-{number}") for number in range(200)]
        answers = await asyncio.gather(*storm, return_exceptions=True)
        assert {type(answer) for answer in answers} == {Unauthorized}
        assert issuer.requests == 1 + round_number
    clock.now_s += MIN_INTERVAL_S - 0.001
    with pytest.raises(Unauthorized):
        await keys.key("unknown")
    assert issuer.requests == 4
    assert await keys.key("k1")


async def test_old_keys_serve_while_new_ones_are_fetched(keys: Jwks, issuer: Issuer, clock: Clock) -> None:
    await keys.key("k1")
    clock.now_s += TTL_S
    issuer.asked.clear()
    issuer.gate.clear()
    assert await keys.key("k1")  # answered although the issuer does not
    await issuer.was_asked()
    assert issuer.requests == 2


async def test_within_their_time_keys_are_not_fetched_again(keys: Jwks, issuer: Issuer, clock: Clock) -> None:
    await keys.key("k1")
    clock.now_s += TTL_S - 0.001
    await keys.key("k1")
    assert issuer.requests == 1


async def test_the_last_keys_serve_for_a_day_without_their_issuer(keys: Jwks, issuer: Issuer, clock: Clock) -> None:
    await keys.key("k1")
    issuer.status = 500
    clock.now_s = STALE_S - 0.001
    assert await keys.key("k1")
    clock.now_s = STALE_S + MIN_INTERVAL_S
    with pytest.raises(Unavailable, match="cannot be read now") as caught:
        await keys.key("k1")
    assert caught.value.retry_after_s == MIN_INTERVAL_S


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": [7, {}, {"kty": "RSA"}]}',
        b"[" * 9_999,
    ],
)
async def test_no_keys_to_be_had_is_no_verdict_on_the_token(keys: Jwks, issuer: Issuer, body: bytes) -> None:
    issuer.body = body
    with pytest.raises(Unavailable):
        await keys.key("k1")


async def test_a_document_over_its_bound_is_not_read(
    keys: Jwks, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "MAX_JWKS_BYTES", 100)
    with pytest.raises(Unavailable):
        await keys.key("k1")


async def test_an_issuer_that_is_not_there_is_tried_again_after_the_interval(
    keys: Jwks, issuer: Issuer, clock: Clock
) -> None:
    issuer.status = 503
    for _ in range(3):
        with pytest.raises(Unavailable):
            await keys.key("k1")
    assert issuer.requests == 1
    issuer.status = 200
    clock.now_s += MIN_INTERVAL_S
    assert await keys.key("k1")


async def test_a_redirect_is_not_followed(keys: Jwks, issuer: Issuer) -> None:
    issuer.status = 302
    with pytest.raises(Unavailable):
        await keys.key("k1")
    assert issuer.requests == 1


async def test_an_issuer_that_does_not_answer_is_given_up(
    keys: Jwks, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.05)
    issuer.gate.clear()
    async with asyncio.timeout(3):
        with pytest.raises(Unavailable):
            await keys.key("k1")


async def test_closing_ends_a_fetch_that_hangs(keys: Jwks, issuer: Issuer) -> None:
    issuer.gate.clear()
    waiting = asyncio.create_task(keys.key("k1"))
    await issuer.was_asked()
    await keys.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_only_keys_for_rs256_signatures_count(keys: Jwks, issuer: Issuer, key: RSAPrivateKey) -> None:
    private = {**jwt.algorithms.RSAAlgorithm.to_jwk(key, as_dict=True), "kid": "private"}
    issuer.published = [
        public_jwk(key, kid="encryption", use="enc"),
        public_jwk(key, kid="other algorithm", alg="RS512"),
        public_jwk(new_key(1_024), kid="short"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"},
        private,
        public_jwk(key, kid="good"),
    ]
    assert await keys.key("good")
    for key_id in ("encryption", "other algorithm", "short", "shared", "private"):
        with pytest.raises(Unauthorized):
            await keys.key(key_id)
