"""What a page says, without what surrounds it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.clients.web import Page
from app.clients.web_charset import is_html, is_text
from app.errors import NotConfigured, UnsupportedContent

if TYPE_CHECKING:
    from types import ModuleType

_MARKDOWN_TITLE = re.compile(r"(?m)\A(?:[^\S\n]*\n)*#[ \t]+(\S[^\n]*)")

# Dates that stand in the text or the footer of a page are about something else too often to be called its own.
_DATES = {"original_date": True, "extensive_search": False}


@dataclass(frozen=True, slots=True)
class Extracted:
    """The content of a page."""

    title: str | None
    author: str | None
    date: str | None
    """When it was published, as `YYYY-MM-DD`."""
    text: str


def extract(page: Page) -> Extracted:
    """Title, author, date and main text of a page; plain text, Markdown and other text pass through as they are.

    A pure function of some milliseconds for HTML: call it as `await ctx.run_cpu(extract, page)`. Raises `NotConfigured`
    when HTML is met and the extra `web` is not installed, `UnsupportedContent` for anything that is not text.
    """
    if is_html(page.content_type):
        return _extract_html(page)
    if is_text(page.content_type):
        text = page.text
        title = _MARKDOWN_TITLE.match(text)
        return Extracted(title[1].rstrip("# \t\r") if title else None, None, None, text)
    raise UnsupportedContent(f"the page {_without_query(page)} is {page.content_type}: expected HTML or text")


def _extract_html(page: Page) -> Extracted:
    trafilatura = _trafilatura()
    html = page.text
    if "<" not in html:  # it takes text without any markup for an error
        return Extracted(None, None, None, html.strip())
    found = trafilatura.bare_extraction(
        html, url=_without_query(page), with_metadata=True, include_comments=False, date_extraction_params=_DATES
    )
    if found is None:
        return Extracted(None, None, None, trafilatura.html2txt(html).strip())
    text = (found.text or trafilatura.html2txt(html)).strip()
    return Extracted(found.title or None, found.author or None, found.date or None, text)


def _without_query(page: Page) -> str:
    """For errors and logs: a query may hold somebody's credentials."""
    return page.final_url.partition("?")[0]


def _trafilatura() -> ModuleType:
    try:
        import trafilatura  # noqa: PLC0415 - an extra: workers without it start in a second
    except ModuleNotFoundError as error:
        raise NotConfigured("reading HTML needs the extra 'web': install nightshift[web]") from error
    return trafilatura
