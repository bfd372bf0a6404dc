"""In which character encoding a page is written.

By the order of the HTML Standard: byte order mark, `Content-Type`, what the page says of itself in its first kilobyte,
and then UTF-8 if it is that, else Windows-1252. Pure functions.
"""

from __future__ import annotations

import codecs
import re

_SNIFFED_BYTES = 1_024
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_TEXT_TYPES = re.compile(r"text/.+|application/(.+\+)?(xml|json|javascript|x-ndjson|yaml|toml)")
_META_CHARSET = re.compile(rb"""(?i)<meta\s[^>]{0,300}?charset\s{0,4}=\s{0,4}["']?([A-Za-z0-9_:.-]{2,40})""")
_XML_ENCODING = re.compile(rb"""<\?xml\s[^>]{0,200}?encoding\s{0,4}=\s{0,4}["']([A-Za-z0-9_:.-]{2,40})""")
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))

# Encodings of the web, by Python's names, each read as browsers read it: as the superset that writers really used.
# Others stay out: among Python's codecs are some that hide markup (utf-7) and some whose time is quadratic (idna).
_READ_AS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "utf-16": "utf-16-le",
}
_KNOWN = frozenset(
    [
        *("utf-8", "utf-16-le", "utf-16-be", "gb18030", "big5hkscs", "euc_jp", "iso2022_jp", "cp932", "cp949"),
        *("koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", "cp866", "cp874"),
        *(f"cp{number}" for number in range(1250, 1259)),
        *(f"iso8859-{number}" for number in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)),
    ]
)


def is_html(content_type: str) -> bool:
    """Whether the media type is HTML."""
    return content_type in _HTML_TYPES


def is_text(content_type: str) -> bool:
    """Whether the media type is one of text."""
    return _TEXT_TYPES.fullmatch(content_type) is not None


def split_content_type(header: str) -> tuple[str, str | None]:
    """Media type in lower case, and the declared charset, of a `Content-Type`."""
    media_type, _, parameters = header.partition(";")
    declared = re.search(r"""(?i)(?:\A|;)\s*charset\s*=\s*["']?([^\s"';]+)""", parameters)
    return media_type.strip().lower(), declared[1] if declared else None


def detect_charset(body: bytes, content_type: str, declared: str | None) -> str | None:
    """Python's name of the encoding of `body`; None when it is no text."""
    if not is_text(content_type):
        return None
    marked = next((name for mark, name in _MARKS if body.startswith(mark)), None)
    return marked or known_charset(declared) or _stated(body, content_type) or _guessed(body)


def known_charset(label: str | None) -> str | None:
    """Python's name for a label of the web; None for one that is unknown or not to be used."""
    try:
        name = codecs.lookup(label or "").name
    except (LookupError, ValueError):  # ValueError: a null byte
        return None
    name = _READ_AS.get(name, name)
    return name if name in _KNOWN else None


def decode_text(body: bytes, charset: str) -> str:
    """The text, without its byte order mark; what is not valid becomes U+FFFD."""
    return body.decode(charset, errors="replace").removeprefix("\ufeff")


def _stated(body: bytes, content_type: str) -> str | None:
    head = body[:_SNIFFED_BYTES]
    found = (_META_CHARSET.search(head) if is_html(content_type) else None) or _XML_ENCODING.match(head)
    if found is None:
        return None
    name = known_charset(found[1].decode("ascii"))
    # A page whose ASCII could be read to find this is not UTF-16, whatever it says.
    return "utf-8" if name in ("utf-16-le", "utf-16-be") else name


def _guessed(body: bytes) -> str:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"
