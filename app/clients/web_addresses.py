"""Which addresses belong to the public internet, and which hosts and URLs may be asked for at all.

Sources: IANA's IPv4 and IPv6 Special-Purpose Address Registries; RFC 4291 (IPv4-mapped, IPv4-compatible), RFC 6052 and
8215 (NAT64), RFC 3056 and 7526 (6to4), RFC 4380 (Teredo). The tables are written out because `ipaddress.is_global`
differs between the releases of Python that we run on, and has called multicast global in all of them.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from app.clients.http import httpx
from app.errors import UnsafeUrl
from app.telemetry.redaction import redact

IPAddress = IPv4Address | IPv6Address

SAFE_PORTS = frozenset({80, 443, 8080, 8443})
"""Where web pages are. Any other port is more likely somebody's database, mail or control plane."""

MAX_URL_CHARS = 8_000

_SPECIAL_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier NAT; also the metadata service of one cloud
            "127.0.0.0/8",
            "168.63.129.16/32",  # the host agent of one cloud, on an address that reads as public
            "169.254.0.0/16",  # link-local; the metadata service of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo (2001::/32), benchmarks, ORCHID
            "2001:db8::/32",
            "2002::/16",  # 6to4
            "2620:4f:8000::/48",
            "3fff::/20",
        ),
    )
)
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")

_HOST_NAME = re.compile(r"(?=.{1,253}\.?\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")


def is_public(address: IPAddress) -> bool:
    """Whether `address` is one that anybody on the internet may be sent to.

    An IPv4-mapped and a well-known NAT64 address is as public as the IPv4 address in it. 6to4, Teredo, IPv4-compatible
    and local-use NAT64 (64:ff9b:1::/48) addresses are refused whatever is in them: the first three lead nowhere since
    their relays were retired, or to whatever a local tunnel makes of them; the last is private by definition.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    if address in _MAPPED or address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    if address.scope_id is not None or address not in _GLOBAL_UNICAST_V6:
        return False
    return not any(address in network for network in _SPECIAL_V6)


def literal_address(host: str) -> IPAddress | None:
    """The address that `host` spells in its canonical form; None for a name.

    Raises `UnsafeUrl` for the other spellings of an IPv4 address (`127.1`, `0x7f000001`, `2130706433`, `0177.0.0.1`),
    which some resolvers take for one and some do not.
    """
    try:
        return ip_address(host)
    except ValueError:
        last_label = host.removesuffix(".").rpartition(".")[2]
        if _NUMERIC_LABEL.fullmatch(last_label):
            raise UnsafeUrl(f"host {host!r}: expected a name, or an IPv4 address as four decimal numbers") from None
        return None


def safe_url(text: str, *, any_port: bool = False) -> httpx.URL:
    """The parsed URL, without its fragment, if it may be fetched.

    Raises `UnsafeUrl`: scheme other than http and https, credentials in it, a host that is neither a DNS name nor an
    address in canonical form, a port outside `SAFE_PORTS` unless `any_port`. Where the host leads to is not asked here:
    the network checks that for every connection.
    """
    url = _parsed(text)
    if url.scheme not in ("http", "https"):
        raise UnsafeUrl(f"URL {_shown(text)}: expected the scheme http or https")
    if url.userinfo:
        raise UnsafeUrl(f"URL for {url.host!r} with credentials in it: expected none")
    _check_host(url.raw_host.decode("ascii"), text)
    if not any_port and url.port is not None and url.port not in SAFE_PORTS:
        raise UnsafeUrl(f"port {url.port} of {url.host!r}: expected one of {sorted(SAFE_PORTS)}")
    return url.copy_with(fragment=None)


def _parsed(text: str) -> httpx.URL:
    if len(text) > MAX_URL_CHARS:
        raise UnsafeUrl(f"URL of {len(text)} characters: expected at most {MAX_URL_CHARS}")
    try:
        return httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise UnsafeUrl(f"URL {_shown(text)}: {error}") from error


def _check_host(host: str, text: str) -> None:
    if "%" in host or not (":" in host or _HOST_NAME.fullmatch(host)):
        raise UnsafeUrl(f"URL {_shown(text)}: expected a DNS name or an address as its host")
    literal_address(host)


def _shown(text: str) -> str:
    return repr(redact(text)[:200])
