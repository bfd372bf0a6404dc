"""Secrets leave no trace in logs, events and errors.

Two nets: values known to be secret (those of the settings), and shapes that give a secret away whoever wrote it. Where
a shape is doubtful, more is hidden rather than less. Every expression starts at a literal or a boundary and repeats
over classes that cannot overlap, so the time is linear in the text whatever the text is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from pydantic import BaseModel, SecretStr

MASK = "***"

MIN_SECRET_CHARS = 4
"""Shorter values are not looked for: they would black out ordinary words."""

_NAME_OF_SECRET = (
    r"(?:api[_-]?key|private[_-]?key|access[_-]?key|token|secret|passw(?:or)?d|passphrase|pwd|credentials?)"  # noqa: S105
)
_SEPARATOR = r"""\\{0,2}["']?\s{0,4}(?:=>|[=:])\s{0,4}"""
_VALUE = r"""(?:\\+"[^"\\]*|b?"(?:[^"\\]|\\.)*(?:"|\Z)|b?'(?:[^'\\]|\\.)*(?:'|\Z)|[^\s&"']+)"""
_AUTHORIZATION = (
    r"""(?i)(authorization(?:["'\\]{1,4}\s{0,4}[:=,]|\s{0,4}[:=])\s{0,4}(?:b?["'\\]{1,4})?"""
    r"""(?:(?:bearer|basic|token|digest|negotiate)\s{1,4})?)[^\s"']+"""
)

# (lower-case words of which one must be in the text, expression, replacement). The words make the usual case, a text
# without any secret, cost a few substring searches.
_SHAPES: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    (("://",), re.compile(r"(://[^\s/@:]*:)[^\s/]*@"), rf"\g<1>{MASK}@"),
    (("://",), re.compile(r"(?i)(https?://)[^\s/@:]+@"), rf"\g<1>{MASK}@"),
    (("authorization",), re.compile(_AUTHORIZATION), rf"\g<1>{MASK}"),
    (("bearer",), re.compile(r"(?i)(bearer\s{1,4})[A-Za-z0-9._~+/=-]+"), rf"\g<1>{MASK}"),
    (("eyj",), re.compile(r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?"), MASK),
    (("ns_",), re.compile(r"(?<![A-Za-z0-9])(ns_[A-Za-z0-9]+_)[\w-]{8,}"), rf"\g<1>{MASK}"),
    (
        ("sk-", "ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_", "glpat-"),
        re.compile(r"(?<![A-Za-z0-9])(sk-|gh[pousr]_|github_pat_|glpat-)[\w-]{16,}"),
        rf"\g<1>{MASK}",
    ),
    (
        ("ticket=", "key=", "sig=", "signature="),
        re.compile(r"""(?i)([?&](?:ticket|key|sig|[\w-]{0,16}signature)=)[^\s&"']+"""),
        rf"\g<1>{MASK}",
    ),
    (
        ("key", "token", "secret", "passw", "passphrase", "pwd", "credential"),
        re.compile(rf"(?i)({_NAME_OF_SECRET}{_SEPARATOR}){_VALUE}"),
        rf"\g<1>{MASK}",
    ),
)
_TELLTALES = tuple({word for words, _, _ in _SHAPES for word in words})

_SECRET_KEY = re.compile(rf"(?i)(?:{_NAME_OF_SECRET}|authorization)$")


def _without_shapes(text: str, lowered: str) -> str:
    for words, pattern, replacement in _SHAPES:
        if any(word in lowered for word in words):
            text = pattern.sub(replacement, text)
    return text


class Redactor:
    """Replaces secrets in text by `***`."""

    def __init__(self) -> None:
        self._known: tuple[str, ...] = ()

    def add(self, values: Iterable[str]) -> None:
        """Look for these values from now on, also as they read inside a URL. Values under 4 characters are left out."""
        forms = {form for value in values for form in (value, quote(value, safe="")) if len(value) >= MIN_SECRET_CHARS}
        # The longest first: a secret that begins with another one is hidden whole.
        self._known = tuple(sorted(forms.union(self._known), key=len, reverse=True))

    def redact(self, text: str) -> str:
        """`text` without known secrets and without what looks like one."""
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, MASK)
        lowered = text.lower()
        for word in _TELLTALES:
            if word in lowered:
                return _without_shapes(text, lowered)
        return text

    def redact_value(self, value: Any, *, depth: int = 4) -> Any:
        """JSON-like `value` with every text in it redacted, and what stands under a secret's name hidden.

        Anything that is not JSON-like, or is nested deeper than `depth`, becomes its redacted `str`.
        """
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if depth and isinstance(value, Mapping):
            return {str(key): self._redact_member(str(key), item, depth) for key, item in value.items()}
        if depth and isinstance(value, (list, tuple, set, frozenset)):
            return [self.redact_value(item, depth=depth - 1) for item in value]
        return self.redact(str(value))

    def _redact_member(self, key: str, value: Any, depth: int) -> Any:
        if isinstance(value, (str, bytes)) and _SECRET_KEY.search(key):
            return MASK
        return self.redact_value(value, depth=depth - 1)


REDACTOR = Redactor()
"""The one of this process; `configure_logging` gives it the secrets of the settings."""

redact = REDACTOR.redact


def secret_values(model: BaseModel) -> tuple[str, ...]:
    """The values of all `SecretStr` fields of `model` that are set; of one that is a URL, its password alone.

    A Redis URL as a whole is no secret: people need to read in the log which server it was.
    """
    fields = (getattr(model, name) for name in type(model).model_fields)
    found = (field.get_secret_value() for field in fields if isinstance(field, SecretStr))
    return tuple(part for value in found for part in _secret_parts(value))


def _secret_parts(value: str) -> tuple[str, ...]:
    if "://" not in value:
        return (value,)
    rest = value.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # No "@" before the path: the password itself has one of these characters, unescaped.
    userinfo = (authority if "@" in authority else rest).rpartition("@")[0]
    password = userinfo.partition(":")[2]
    return (password, unquote(password)) if password else ()
