"""A network for HTTP that reaches public addresses only.

The check stands where the connection is made. A name is resolved once, every address it resolves to must be public, and
the socket is connected to one of exactly those addresses. So a name that answers differently the second time (DNS
rebinding) gains nothing, a name with one public and one private address is refused, and each hop of a redirect is
checked as the first one was. TLS still verifies the certificate against the name.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import httpcore

from app.clients.http import KEEPALIVE_S, httpx, tls_context
from app.clients.web_addresses import IPAddress, is_public, literal_address
from app.errors import RemoteUnreachable, UnsafeUrl

MAX_ADDRESSES_TRIED = 4
"""Addresses of a name that are tried one after the other; they share the time for connecting."""

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""From host name and port to the addresses of the name, in order of preference. Raises `RemoteUnreachable`."""


async def resolve_with_system(host: str, port: int) -> Sequence[str]:
    """Ask the resolver of this machine. The caller bounds the time."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise RemoteUnreachable(f"the name {host!r} cannot be resolved: {error.strerror or error}") from error
    return [str(address[0]) for *_, address in found]


@dataclass(frozen=True, slots=True)
class WebNetwork:
    """How pages are reached."""

    allow_private: bool = False
    """Connect to any address and any port."""
    resolve: Resolver = resolve_with_system
    backend: httpcore.AsyncNetworkBackend = field(default_factory=httpcore.AnyIOBackend)
    """Makes the connections; it is given addresses only, never names."""
    tls: ssl.SSLContext | None = None
    """None: the bundled authorities and those of this machine."""


class GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's transport, with its connections made by `GuardedBackend`. It knows no proxy."""

    def __init__(self, network: WebNetwork) -> None:
        tls = network.tls or tls_context()
        super().__init__(verify=tls, trust_env=False)
        # The library has no parameter for the backend of its pool. What it adds around the pool, which is the
        # translation of requests and exceptions, is worth keeping.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=None,
            max_keepalive_connections=None,
            keepalive_expiry=KEEPALIVE_S,
            network_backend=GuardedBackend(network),
        )


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves, checks, connects; in this order and with nothing in between."""

    def __init__(self, network: WebNetwork) -> None:
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a public address of `host` within `timeout` seconds.

        Raises `UnsafeUrl` when any address of it is not public, `RemoteUnreachable` when there is none, and httpcore's
        `ConnectTimeout` or `ConnectError`.
        """
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._addresses(host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"the name {host!r} was not resolved in time") from error
        left = None if timeout is None else max(0.0, timeout - (asyncio.get_running_loop().time() - started))
        return await self._connect_one_of(addresses, port, left, local_address, socket_options)

    async def _addresses(self, host: str, port: int) -> list[IPAddress]:
        literal = literal_address(host)
        found = [literal] if literal else [ip_address(text) for text in await self._network.resolve(host, port)]
        if not found:
            raise RemoteUnreachable(f"the name {host!r} has no address")
        # The error does not say which address: the answers of an internal name server are not for every caller.
        if not self._network.allow_private and not all(map(is_public, found)):
            raise UnsafeUrl(f"host {host!r} leads to an address that is not public")
        return _both_families_first(found)[:MAX_ADDRESSES_TRIED]

    async def _connect_one_of(
        self,
        addresses: list[IPAddress],
        port: int,
        timeout: float | None,
        local_address: str | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.AsyncNetworkStream:
        share = None if timeout is None else timeout / len(addresses)
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._network.backend.connect_tcp(
                    str(address), port, timeout=share, local_address=local_address, socket_options=socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure


def _both_families_first(addresses: list[IPAddress]) -> list[IPAddress]:
    """The first address, then the first one of the other family, then the rest: one family may be without a route."""
    unique = list(dict.fromkeys(addresses))
    other = next((address for address in unique if address.version != unique[0].version), None)
    return unique if other is None else list(dict.fromkeys([unique[0], other, *unique]))
