from __future__ import annotations

from typing import Any

import pytest

from app.errors import SettingsError
from app.store.address import parse_address


@pytest.mark.parametrize(
    ("url", "hosts", "service", "options"),
    [
        ("redis://h", (("h", 6379),), "", {"db": 0}),
        ("redis://h:1/2", (("h", 1),), "", {"db": 2}),
        ("redis://u:p%40%2F@h:1?db=3", (("h", 1),), "", {"username": "u", "password": "p@/", "db": 3}),
        ("redis://:p@[::1]:7", (("::1", 7),), "", {"password": "p", "db": 0}),
        ("redis://h?client_name=n&password=q", (("h", 6379),), "", {"client_name": "n", "password": "q", "db": 0}),
        ("rediss://h", (("h", 6379),), "", {"ssl_check_hostname": True, "db": 0}),
        (
            "rediss://h?ssl_cert_reqs=none",
            (("h", 6379),),
            "",
            {"ssl_cert_reqs": "none", "ssl_check_hostname": False, "db": 0},
        ),
        ("rediss://h?ssl_check_hostname=false", (("h", 6379),), "", {"ssl_check_hostname": False, "db": 0}),
        ("unix:///a/b%20c.sock?db=4", (), "", {"path": "/a/b c.sock", "db": 4}),
        ("unix://:p@/s", (), "", {"path": "/s", "password": "p", "db": 0}),
        ("redis+sentinel://a,b:2/m", (("a", 26379), ("b", 2)), "m", {"db": 0}),
        (
            "redis+sentinel://u:p@[::1],b/m/5",
            (("::1", 26379), ("b", 26379)),
            "m",
            {"username": "u", "password": "p", "db": 5},
        ),
    ],
)
def test_reads_every_form(url: str, hosts: Any, service: str, options: dict[str, Any]) -> None:
    address = parse_address(url)
    assert (address.hosts, address.service, address.options) == (hosts, service, options)
    assert address.is_sentinel == bool(service)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "scheme"),
        ("localhost:6379", "scheme"),
        ("http://:hunter2@h", "scheme"),
        ("redis://", "host"),
        ("redis://:hunter2@h:99999", "port"),
        ("redis://h:x", "port"),
        ("redis://:hunter2@h/first", "database"),
        ("redis://a,b", r"redis\+sentinel"),
        ("redis://h?socket_timeout=1", "socket_timeout"),
        ("redis://h?ssl_cert_reqs=none", "ssl_cert_reqs"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs"),
        ("unix://", "three slashes"),
        ("unix://relative/path", "three slashes"),
        ("redis+sentinel://:hunter2@a:1", "service"),
        ("redis+sentinel://a,/m", "host"),
    ],
)
def test_refuses_the_rest_and_keeps_the_password_to_itself(url: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as caught:
        parse_address(url)
    assert "NIGHTSHIFT_REDIS_URL" in caught.value.detail
    assert "hunter2" not in caught.value.detail


def test_the_password_is_not_in_its_representation() -> None:
    assert "hunter2" not in repr(parse_address("redis://:hunter2@h"))
