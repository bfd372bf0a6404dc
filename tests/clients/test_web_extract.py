from __future__ import annotations

import sys

import pytest

from app.clients.web import Page
from app.clients.web_extract import Extracted, extract
from app.errors import NotConfigured, UnsupportedContent

ARTICLE = """<!doctype html><html><head><title>On Leases | The Site</title>
<meta name="author" content="Ada Lovelace">
<meta property="article:published_time" content="2024-03-05T10:00:00Z">
<script>var hidden = "a script";</script></head>
<body><nav><a href="/">Home</a> <a href="/about">About us</a></nav>
<article><h1>On Leases</h1><p>{text}</p><p>Grüße an alle, die bis hierher gelesen haben, und vielen Dank.</p></article>
<footer>Copyright 2019 by the site, all rights reserved</footer></body></html>"""
TEXT = "A worker that does not renew its lease has lost its tasks, and another one takes them up. " * 5


def page(body: str | bytes, content_type: str = "text/html", charset: str | None = "utf-8") -> Page:
    data = body if isinstance(body, bytes) else body.encode(charset or "utf-8")
    url = "https://site.example/leases?token=abc"
    return Page(url, url, 200, {}, content_type, charset, data, None, None, not_modified=False)


@pytest.mark.parametrize("charset", ["utf-8", "cp1252"])
def test_the_main_text_is_kept_and_what_surrounds_it_is_not(charset: str) -> None:
    extracted = extract(page(ARTICLE.format(text=TEXT), charset=charset))
    assert (extracted.title, extracted.author, extracted.date) == ("On Leases", "Ada Lovelace", "2024-03-05")
    assert TEXT.strip() in extracted.text
    assert "Grüße an alle" in extracted.text
    assert not any(word in extracted.text for word in ("About us", "a script", "Copyright"))


def test_a_page_that_states_another_encoding_than_it_came_in_is_read_all_the_same() -> None:
    declared = '<?xml version="1.0" encoding="iso-8859-1"?>' + ARTICLE.format(text=TEXT)
    assert "Grüße an alle" in extract(page(declared)).text


def test_a_date_in_the_footer_is_not_taken_for_the_date_of_the_page() -> None:
    undated = ARTICLE.replace("2024-03-05T10:00:00Z", "")
    assert extract(page(undated.format(text=TEXT))).date is None


@pytest.mark.parametrize(
    ("body", "text"), [("", ""), ("<html><body>hi</body></html>", "hi"), ("no markup", "no markup")]
)
def test_a_page_with_little_on_it_gives_what_it_has(body: str, text: str) -> None:
    assert extract(page(body)) == Extracted(None, None, None, text)


def test_markup_nested_without_end_is_survived() -> None:
    assert extract(page("<div>" * 50_000 + "x")).title is None


@pytest.mark.parametrize(
    ("body", "content_type", "title"),
    [
        ("\n# Notes on it #\n\ntext", "text/markdown", "Notes on it"),
        ("# Notes\r\ntext", "text/plain", "Notes"),
        ("text\n# later", "text/markdown", None),
        ("## second level", "text/markdown", None),
        ("#hashtag", "text/plain", None),
        ('{"a": 1}', "application/json", None),
    ],
)
def test_text_passes_through_with_the_title_it_begins_with(body: str, content_type: str, title: str | None) -> None:
    assert extract(page(body, content_type)) == Extracted(title, None, None, body)


def test_what_is_not_text_is_refused_with_its_type_and_without_the_query() -> None:
    with pytest.raises(UnsupportedContent, match="application/pdf") as caught:
        extract(page(b"%PDF", "application/pdf", None))
    assert "abc" not in str(caught.value)


def test_without_the_extra_html_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(NotConfigured, match="nightshift\\[web\\]"):
        extract(page("<p>x"))
    assert extract(page("x", "text/plain")).text == "x"
