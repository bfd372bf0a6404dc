"""Authentication by JSON Web Tokens (RFC 7519): HS256 with a shared secret, or RS256 with the issuer's published keys.

Which of the two is decided by the settings alone. The token's own `alg` is only ever compared with it: a token that
says `none`, or that is signed by HMAC with the issuer's *public* key as its secret, is refused before any key is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from app.api.jwks import Jwks
from app.api.principal import ADMIN_SCOPE, Principal, bearer_credentials, is_name
from app.errors import SettingsError, Unauthorized
from app.settings import Settings

MIN_SECRET_BYTES = 32
"""RFC 7518, 3.2: a key for HS256 has at least the length of its hash."""

CLOCK_SKEW_S = 5.0
"""How far ahead an issuer's clock may be (`nbf`, `iat`). `exp` is taken exactly: nothing lives longer than it says."""


class JwtAuthenticator:
    """Knows callers by the token of their issuer.

    `sub` is the user id. Scopes are the words of `scope` and the entries of `scopes`; those that no scope of ours can
    look like (an issuer's URLs) are passed over. `exp` is required; `iss` and `aud` are, when they are configured.
    """

    def __init__(self, settings: Settings) -> None:
        self._secret, self._jwks = _key_source(settings)
        self._algorithm = "RS256" if self._secret is None else "HS256"
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience

    async def authenticate(self, authorization: str | None) -> Principal:
        """The token's subject. Raises `Unauthorized`, or `Unavailable` when the issuer's keys cannot be had."""
        token = bearer_credentials(authorization)
        try:
            claims = self._verify(token, await self._key(token))
        except jwt.PyJWTError as error:
            raise Unauthorized(f"token refused: {error}") from None
        return _principal(claims)

    async def aclose(self) -> None:
        """Close the connection to the issuer."""
        if self._jwks is not None:
            await self._jwks.aclose()

    async def _key(self, token: str) -> bytes | RSAPublicKey:
        if self._jwks is None:
            assert self._secret is not None
            return self._secret
        header = jwt.get_unverified_header(token)
        if header.get("alg") != self._algorithm:
            # Here rather than only in `decode`: what can never be accepted must not make us ask the issuer.
            raise jwt.InvalidAlgorithmError(f"expected algorithm {self._algorithm}")
        return await self._jwks.key(header.get("kid"))

    def _verify(self, token: str, key: bytes | RSAPublicKey) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            algorithms=[self._algorithm],
            issuer=self._issuer,
            audience=self._audience,
            leeway=CLOCK_SKEW_S,
            options={"require": ["exp", "sub"], "verify_aud": self._audience is not None},
        )


def _key_source(settings: Settings) -> tuple[bytes | None, Jwks | None]:
    if settings.jwt_jwks_url is not None and settings.jwt_secret is not None:
        raise SettingsError("NIGHTSHIFT_JWT_SECRET and NIGHTSHIFT_JWT_JWKS_URL are both set: expected one of them")
    if settings.jwt_jwks_url is not None:
        return None, Jwks(settings.jwt_jwks_url)
    secret = settings.jwt_secret.get_secret_value().encode() if settings.jwt_secret else b""
    if len(secret) < MIN_SECRET_BYTES:
        raise SettingsError(f"NIGHTSHIFT_JWT_SECRET=(secret): expected at least {MIN_SECRET_BYTES} bytes for HS256")
    try:
        return jwt.get_algorithm_by_name("HS256").prepare_key(secret), None
    except jwt.InvalidKeyError:
        # A public key as a shared secret would let everybody sign.
        raise SettingsError("NIGHTSHIFT_JWT_SECRET=(secret): expected a secret, got an asymmetric key") from None


def _principal(claims: Mapping[str, Any]) -> Principal:
    user_id = claims["sub"]
    if not is_name(user_id):
        raise Unauthorized("token refused: expected `sub` of 1 to 128 characters out of A-Z a-z 0-9 . _ @ : -")
    scopes = frozenset(_scopes(claims))
    return Principal(user_id, scopes, ADMIN_SCOPE in scopes, _expiry(claims["exp"]))


def _expiry(exp: Any) -> datetime:
    try:
        expires_at = datetime.fromtimestamp(int(exp), UTC)
    except (ValueError, TypeError, OverflowError, OSError):
        raise Unauthorized("token refused: expected `exp` as seconds since 1970 that a calendar can hold") from None
    if expires_at <= datetime.now(UTC):
        raise Unauthorized("token refused: expired")
    return expires_at


def _scopes(claims: Mapping[str, Any]) -> list[str]:
    words = claims.get("scope", "")
    entries = claims.get("scopes", [])
    if not isinstance(words, str) or not isinstance(entries, list):
        raise Unauthorized("token refused: expected `scope` as a string of words or `scopes` as a list")
    return [scope for scope in (*words.split(), *entries) if isinstance(scope, str) and is_name(scope)]
