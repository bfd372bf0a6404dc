"""Reads the address of Redis, `NIGHTSHIFT_REDIS_URL`, into the parts that a client needs.

    redis://[user:password@]host[:6379][/db]
    rediss://…                                   the same over TLS; certificate and host name are verified
    unix://[user:password@]/path/to/socket[?db=n]
    redis+sentinel://[user:password@]host[:26379][,host[:26379]…]/service[/db]

User, password, path and service may be percent-encoded. After `?` may stand `db`, `username`, `password`,
`client_name` and, for `rediss`, `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs` (`required`, `optional`,
`none`) and `ssl_check_hostname` (`true`, `false`). With Sentinel, user and password are those of the Redis servers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from app.errors import SettingsError

DEFAULT_PORTS = {"redis": 6379, "rediss": 6379, "redis+sentinel": 26379, "unix": 0}
OPTIONS = frozenset({"db", "username", "password", "client_name"})
TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"})

_URL = re.compile(r"(?P<scheme>[a-z+]+)://((?P<user>[^/?]*)@)?(?P<hosts>[^/?]*)(?P<path>/[^?]*)?(\?(?P<query>.*))?")
_HOST = re.compile(r"(\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<name>[^\[\]:]+))(:(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Address:
    """Where Redis is and how to log in."""

    scheme: str
    hosts: tuple[tuple[str, int], ...] = ()
    """One server, or all Sentinels; empty for a unix socket."""
    service: str = ""
    """The name under which the Sentinels know the servers."""
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    """Keyword arguments of a redis-py connection, but for host and port. May hold a password."""

    @property
    def is_sentinel(self) -> bool:
        """Whether `hosts` are Sentinels, to be asked for the server."""
        return self.scheme == "redis+sentinel"


def parse_address(url: str) -> Address:
    """Read a URL. Raises `SettingsError` that says what is wrong but not the URL, which may hold a password."""
    match = _URL.fullmatch(url)
    if match is None or match["scheme"] not in DEFAULT_PORTS:
        raise _error("the scheme is not redis, rediss, unix or redis+sentinel")
    scheme, path = match["scheme"], unquote(match["path"] or "")
    options = _query_options(match["query"] or "", scheme) | _credentials(match["user"])
    if scheme == "unix":
        if match["hosts"] or len(path) < 2:
            raise _error("expected unix:///path/to/socket, with three slashes")
        return Address(scheme, options=options | {"path": path, "db": _database(options.get("db", ""))})
    hosts = tuple(_host(text, DEFAULT_PORTS[scheme]) for text in match["hosts"].split(","))
    service, database = _split_path(path) if scheme == "redis+sentinel" else ("", path.strip("/"))
    if scheme != "redis+sentinel" and len(hosts) > 1:
        raise _error("several hosts: expected redis+sentinel://")
    return Address(scheme, hosts, service, options | {"db": _database(options.get("db", database))})


def _error(reason: str) -> SettingsError:
    return SettingsError(
        f"NIGHTSHIFT_REDIS_URL=(secret): {reason}; expected redis://host:6379/0, rediss://host:6379/0, "
        "unix:///path/to/socket or redis+sentinel://host:26379,host:26379/service/0"
    )


def _credentials(text: str | None) -> dict[str, str]:
    user, _, password = (text or "").partition(":")
    return {name: unquote(value) for name, value in (("username", user), ("password", password)) if value}


def _query_options(query: str, scheme: str) -> dict[str, Any]:
    options: dict[str, Any] = dict(parse_qsl(query))
    known = OPTIONS | TLS_OPTIONS if scheme == "rediss" else OPTIONS
    if unknown := set(options) - known:
        raise _error(f"{', '.join(sorted(unknown))}: unknown option for {scheme}")
    if scheme == "rediss":
        requirement = options.get("ssl_cert_reqs", "required")
        if requirement not in ("required", "optional", "none"):
            raise _error(f"ssl_cert_reqs={requirement}: expected required, optional or none")
        wanted = options.get("ssl_check_hostname", "true").lower() not in ("false", "no", "0")
        options["ssl_check_hostname"] = wanted and requirement != "none"
    return options


def _host(text: str, default_port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    port = int(match["port"] or default_port) if match else 0
    if match is None or not 0 < port <= 65_535:
        raise _error("a host or a port is missing or malformed")
    return match["v6"] or match["name"], port


def _split_path(path: str) -> tuple[str, str]:
    service, _, database = path.strip("/").partition("/")
    if not service:
        raise _error("the name of the Sentinel service is missing")
    return service, database


def _database(text: str) -> int:
    if text and not text.isdecimal():
        raise _error("the database is not a number")
    return int(text or 0)
