from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.clients.web_addresses import SAFE_PORTS, is_public, literal_address, safe_url
from app.errors import UnsafeUrl


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "169.253.255.255",
        "192.167.255.255",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2a00:1450:4001:82a::200e",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ],
)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::8.8.8.8",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::808:808",
        "64:ff9b:1:7f00:0:100::",
        "100::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "2002:808:808::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "2606:4700:4700::1111%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_addresses_that_are_not_for_everybody_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@given(st.ip_addresses(v=4))
def test_what_python_calls_private_is_never_public(address: IPv4Address) -> None:
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_link_local:
        assert not is_public(address)


@given(st.ip_addresses(v=6))
def test_only_global_unicast_and_embedded_public_addresses_are_public(address: IPv6Address) -> None:
    embedded = address.ipv4_mapped is not None or int(address) >> 32 == 0x64FF9B << 64
    if not embedded and (not address.is_global or address.is_multicast or int(address) >> 125 != 1):
        assert not is_public(address)


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:{}", "64:ff9b::{}"]))
@example(IPv4Address("127.0.0.1"), "::ffff:{}")
def test_an_address_in_another_is_as_public_as_it_is_by_itself(address: IPv4Address, wrapping: str) -> None:
    assert is_public(ip_address(wrapping.format(address))) == is_public(address)


@given(st.ip_addresses(v=4))
def test_retired_tunnels_are_refused_whatever_is_in_them(address: IPv4Address) -> None:
    number = int(address)
    assert not is_public(IPv6Address(number))
    assert not is_public(IPv6Address(0x2002 << 112 | number << 80))
    assert not is_public(IPv6Address(0x20010000 << 96 | number << 64 | ~number & 0xFFFF_FFFF))
    assert not is_public(IPv6Address(0x0064_FF9B_0001 << 80 | number))


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.1", "127.0.1", "127.0.0.1.", "1.2.3.4.5", "256.1.1.1",
     "0", "0x", "example.0x7f", "example.7"],
)  # fmt: skip
def test_other_spellings_of_an_address_are_refused(host: str) -> None:
    with pytest.raises(UnsafeUrl, match="four decimal numbers"):
        literal_address(host)
    with pytest.raises(UnsafeUrl):
        safe_url(f"http://{host}/")


@pytest.mark.parametrize("host", ["example.com", "1e100.net", "4chan.org", "0x.example", "a1", "localhost"])
def test_a_name_is_no_address(host: str) -> None:
    assert literal_address(host) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://example.com", "http://example.com"),
        ("HTTPS://Example.COM:443/a?b=c#d", "https://example.com/a?b=c"),
        ("http://example.com:8080/", "http://example.com:8080/"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://example.com./", "http://example.com./"),
        ("http://[2606:4700::1]/", "http://[2606:4700::1]/"),
        ("http://1.1.1.1/", "http://1.1.1.1/"),
    ],
)
def test_an_ordinary_url_is_accepted_without_its_fragment(text: str, expected: str) -> None:
    assert str(safe_url(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com",
        "//example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        "data:text/html,x",
        "http://",
        "http:///path",
        "http:example.com",
        "http://user@example.com/",
        "http://user:pw@example.com/",
        "http://:pw@example.com/",
        "http://good.example\\@127.0.0.1/",
        "http://127.0.0.1\\.good.example/",
        "http://exa mple.com/",
        "http://example.com:22/",
        "http://example.com:6379/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com:http/",
        "http://[::1%25eth0]/",
        "http://[::1]extra/",
        "http://[not-an-address]/",
        "http://%6c%6fcalhost/",
        "http://１２７.0.0.1/",
        "http://①.1.1.1/",
        "http://a..b/",
        "http://.a/",
        "http://" + "a" * 64 + ".example/",
        "http://" + "a." * 130 + "example/",
        "http://example.com/\n",
        "http://example.com/\x00",
        "http://example.com/" + "a" * 9_000,
    ],
)
def test_a_url_that_the_rules_refuse(text: str) -> None:
    with pytest.raises(UnsafeUrl):
        safe_url(text)


def test_an_error_does_not_repeat_credentials() -> None:
    with pytest.raises(UnsafeUrl) as caught:
        safe_url("http://user:hunter2@example.com/")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UnsafeUrl) as caught:
        safe_url("ftp://user:hunter2@example.com/")
    assert "hunter2" not in str(caught.value)


def test_any_port_is_allowed_where_private_addresses_are() -> None:
    assert 9200 not in SAFE_PORTS
    assert safe_url("http://example.com:9200/", any_port=True).port == 9200


@given(st.text(max_size=60) | st.text(max_size=40).map(lambda rest: f"http://{rest}"))
def test_whatever_is_asked_for_is_accepted_or_refused_as_unsafe(text: str) -> None:
    try:
        url = safe_url(text)
    except UnsafeUrl:
        return
    assert url.scheme in ("http", "https")
    assert url.host
    assert not url.userinfo
    assert safe_url(str(url)) == url
