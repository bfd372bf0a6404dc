from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.clients.web_charset import decode_text, detect_charset, known_charset, split_content_type


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("text/html", ("text/html", None)),
        ("Text/HTML; Charset=UTF-8", ("text/html", "UTF-8")),
        ('text/html;charset="utf-8"', ("text/html", "utf-8")),
        ("text/html; boundary=x; charset='koi8-r' ; y", ("text/html", "koi8-r")),
        ("text/html; xcharset=a", ("text/html", None)),
        ("", ("", None)),
    ],
)
def test_a_content_type_is_split(header: str, expected: tuple[str, str | None]) -> None:
    assert split_content_type(header) == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("UTF-8", "utf-8"),
        ("latin1", "cp1252"),
        ("iso-8859-1", "cp1252"),
        ("us-ascii", "cp1252"),
        ("windows-1251", "cp1251"),
        ("iso-8859-2", "iso8859-2"),
        ("Shift_JIS", "cp932"),
        ("EUC-JP", "euc_jp"),
        ("GBK", "gb18030"),
        ("big5", "big5hkscs"),
        ("euc-kr", "cp949"),
        ("koi8-r", "koi8-r"),
        (None, None),
        ("", None),
        ("no-such", None),
        ("utf-7", None),
        ("idna", None),
        ("punycode", None),
        ("unicode_escape", None),
        ("zlib", None),
        ("base64", None),
        ("a\x00b", None),
    ],
)
def test_labels_of_the_web_are_known_and_dangerous_codecs_are_not(label: str | None, expected: str | None) -> None:
    assert known_charset(label) == expected


@pytest.mark.parametrize(
    ("body", "content_type", "declared", "expected"),
    [
        ("\ufeffhä".encode(), "text/html", "latin1", "utf-8"),
        ("\ufeffhä".encode("utf-16-le"), "text/plain", None, "utf-16-le"),
        ("\ufeffhä".encode("utf-16-be"), "text/plain", "utf-8", "utf-16-be"),
        ("hä".encode("koi8-r", "replace"), "text/html", "koi8-r", "koi8-r"),
        (b'<meta charset="utf-8">', "text/html", "windows-1251", "cp1251"),
        (b'<html><META http-equiv="x" content="text/html; charset=windows-1251">\xe4', "text/html", None, "cp1251"),
        (b"<meta charset=utf-16>", "text/html", None, "utf-8"),
        (b"<meta charset=no-such>\xe4", "text/html", "nor-this", "cp1252"),
        (b'<?xml version="1.0" encoding="ISO-8859-2"?><a/>', "application/xml", None, "iso8859-2"),
        (b'<meta charset="koi8-r">', "text/plain", None, "utf-8"),
        (b" " * 2_000 + b'<meta charset="koi8-r">', "text/html", None, "utf-8"),
        ("grün".encode(), "text/plain", None, "utf-8"),
        ("grün".encode("latin1"), "text/plain", None, "cp1252"),
        (b"", "text/html", None, "utf-8"),
        (b"%PDF", "application/pdf", "utf-8", None),
        (b"{}", "application/ld+json", None, "utf-8"),
    ],
)
def test_the_encoding_is_found_in_the_order_of_the_html_standard(
    body: bytes, content_type: str, declared: str | None, expected: str | None
) -> None:
    assert detect_charset(body, content_type, declared) == expected


@given(st.binary(max_size=400), st.sampled_from(["utf-8", "cp1252", "shift_jis", "utf-16", "gbk", "idna", None]))
def test_any_bytes_become_text(body: bytes, declared: str | None) -> None:
    charset = detect_charset(body, "text/html", declared)
    assert charset is not None
    assert isinstance(decode_text(body, charset), str)


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert decode_text(b"\xef\xbb\xbfx", "utf-8") == "x"
    assert decode_text("\ufeffx".encode("utf-16-le"), "utf-16-le") == "x"
