"""Who may call: the authenticator that the settings choose, and the dependencies of routes.

    caller: Caller                                        any caller with valid credentials
    caller: Annotated[Principal, Depends(require_scope("admin"))]

The application keeps its authenticator as `app.state.authenticator`; a WebSocket endpoint hands its Authorization
header to the same one. Credentials never reach a log or an error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Protocol

from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer as BearerScheme
from fastapi.security.base import SecurityBase

from app.api.jwt import JwtAuthenticator
from app.api.key_auth import KeyAuthenticator
from app.api.principal import ADMIN_SCOPE, Principal
from app.settings import Settings
from app.telemetry import bind_context

LOCAL_USER = Principal("local", frozenset({ADMIN_SCOPE}), is_admin=True)
"""Everybody, where authentication is off: the one person at this machine."""


class Authenticator(Protocol):
    """Tells who a caller is."""

    async def authenticate(self, authorization: str | None) -> Principal:
        """The caller who sent this Authorization header.

        Raises `Unauthorized`, or `Unavailable` when credentials cannot be checked now.
        """

    async def aclose(self) -> None:
        """Release what is held open."""


class OffAuthenticator:
    """Takes everybody for the local user. For a service that only its own machine can reach."""

    async def authenticate(self, authorization: str | None) -> Principal:
        """The local user, whatever was sent."""
        return LOCAL_USER

    async def aclose(self) -> None:
        """Nothing is held open."""


def make_authenticator(settings: Settings) -> Authenticator:
    """The authenticator of `settings.auth_mode`. Raises `SettingsError` for settings or a key file it cannot use."""
    mode = settings.auth_mode
    if mode == "off":
        return OffAuthenticator()
    if mode == "jwt":
        return JwtAuthenticator(settings)
    return KeyAuthenticator(settings.keys_file)


class _Bearer(SecurityBase):
    # A security scheme of FastAPI only so that OpenAPI shows which routes need credentials. FastAPI's own HTTPBearer
    # would answer by itself, not with our problem document.
    def __init__(self) -> None:
        self.scheme_name = "bearer"
        self.model = BearerScheme(description="An API key (`nightshift keys create`) or a JWT.")

    async def __call__(self, request: Request) -> Principal:
        authenticator: Authenticator = request.app.state.authenticator
        caller = await authenticator.authenticate(request.headers.get("authorization"))
        bind_context(user_id=caller.user_id)
        return caller


principal = _Bearer()
"""Dependency: the caller of a request. Raises `Unauthorized`; binds the user to the log."""

Caller = Annotated[Principal, Depends(principal)]


def require_scope(scope: str) -> Callable[[Principal], Awaitable[Principal]]:
    """Dependency: the caller, who has `scope` (or is an admin). Raises `Unauthorized` or `Forbidden`."""

    async def check(caller: Caller) -> Principal:
        caller.require_scope(scope)
        return caller

    return check
