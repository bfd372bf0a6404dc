"""A token issuer for tests: publishes the keys it is given (RFC 7517) over real HTTP, and signs with them."""

from __future__ import annotations

import asyncio
import json
import time
from types import TracebackType
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key


def new_key(bits: int = 2_048) -> RSAPrivateKey:
    return generate_private_key(public_exponent=65_537, key_size=bits)


def public_jwk(key: RSAPrivateKey, **members: str) -> dict[str, Any]:
    return {**jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), **members}


def claims(**changes: Any) -> dict[str, Any]:
    """Claims of a good token; a change to None leaves one out."""
    given = {"sub": "ada", "exp": int(time.time()) + 600, **changes}
    return {name: value for name, value in given.items() if value is not None}


class Issuer:
    """`published` and `status` may change while it runs. While `gate` is clear it does not answer."""

    def __init__(self) -> None:
        self.published: list[dict[str, Any]] = []
        self.body: bytes | None = None
        self.status = 200
        self.requests = 0
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/jwks.json"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.gate.set()
        self._server.close()
        await self._server.wait_closed()

    async def was_asked(self) -> None:
        """Return when a request has come in since `asked` was last cleared; fail when none does."""
        async with asyncio.timeout(5):
            await self.asked.wait()

    def publish(self, key: RSAPrivateKey, key_id: str) -> None:
        self.published = [public_jwk(key, kid=key_id, use="sig", alg="RS256")]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        self.asked.set()
        await self.gate.wait()
        body = json.dumps({"keys": self.published}).encode() if self.body is None else self.body
        head = f"HTTP/1.1 {self.status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        location = f"Location: {self.url}\r\n" if 300 <= self.status < 400 else ""
        writer.write(f"{head}{location}Connection: close\r\n\r\n".encode() + body)
        writer.close()


def sign(key: RSAPrivateKey, key_id: str | None = "k1", **changes: Any) -> str:
    """The Authorization header of a token that `key` signed."""
    headers = {} if key_id is None else {"kid": key_id}
    return "Bearer " + jwt.encode(claims(**changes), key, "RS256", headers)
