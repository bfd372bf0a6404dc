"""The dashboard's page and files: open to everybody, forbidden to everything that is not ours, and kept by browsers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from importlib.resources import files

import pytest

from app.api.dashboard import DIGEST, MEDIA_TYPES
from tests.api.running import Api, api_on

STATIC = files("app.api").joinpath("static")
NAMES = sorted(entry.name for entry in STATIC.iterdir())
ASSETS = [name for name in NAMES if name != "dashboard.html"]
MODULES = {name: STATIC.joinpath(name).read_text() for name in NAMES if name.endswith(".js")}


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with api_on(redis_url) as running:
        yield running


def policy_of(header: str) -> dict[str, list[str]]:
    return {name: values for name, *values in (part.split() for part in header.split(";"))}


async def test_the_service_leads_to_its_dashboard(api: Api) -> None:
    answer = await api.nobody.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "dashboard")


async def test_the_page_needs_no_credentials_but_all_data_does(api: Api) -> None:
    page = await api.nobody.get("/dashboard")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    called = set(re.findall(r'"(api/[a-z-]+)', "".join(MODULES.values())))
    assert called >= {"api/tasks", "api/queues", "api/workers", "api/dead-letters", "api/task-types", "api/tickets"}
    for path in called:
        method = "POST" if path == "api/tickets" else "GET"
        assert (await api.nobody.request(method, f"/{path}")).status_code == 401


async def test_the_page_allows_only_files_of_its_own(api: Api) -> None:
    answer = await api.nobody.get("/dashboard")
    # What the middleware adds for all answers comes as a policy of its own; a browser enforces both.
    policy, *others = (policy_of(value) for value in answer.headers.get_list("content-security-policy"))
    assert others == [{"frame-ancestors": ["'none'"]}]
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert policy["frame-ancestors"] == policy["trusted-types"] == ["'none'"]
    assert policy["require-trusted-types-for"] == ["'script'"]
    for kind in ("script-src", "style-src", "connect-src", "img-src"):
        assert policy[kind] == ["'self'"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"


async def test_the_page_has_no_script_and_style_inside_and_nothing_from_elsewhere(api: Api) -> None:
    page = (await api.nobody.get("/dashboard")).text
    assert re.findall(r"<script(?![^>]* src=)", page) == []
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=", page) == []
    assert "//" not in page.replace("<!doctype html>", "")
    sources = re.findall(r'(?:src|href)="([^"#]*)"', page)
    assert {source for source in sources if source != "docs"} == {
        f"static/{DIGEST}/{name}" for name in ASSETS
    }  # all of them, so that none is found late


@pytest.mark.parametrize("name", ASSETS)
async def test_a_file_is_kept_for_ever(api: Api, name: str) -> None:
    answer = await api.nobody.get(f"/static/{DIGEST}/{name}")
    assert answer.content == STATIC.joinpath(name).read_bytes()
    assert answer.headers["content-type"] == MEDIA_TYPES[name.rpartition(".")[2]]
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/dashboard", f"/static/{DIGEST}/main.js"])
async def test_who_has_it_is_not_sent_it_again(api: Api, path: str) -> None:
    first = await api.nobody.get(path)
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await api.nobody.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["cache-control"] == first.headers["cache-control"]
    assert (await api.nobody.get(path, headers={"if-none-match": '"other"'})).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/0000000000000000/main.js",
        f"/static/{DIGEST}/dashboard.html",
        f"/static/{DIGEST}/nothing.js",
        f"/static/{DIGEST}/",
        f"/static/{DIGEST}/..%2f..%2fdashboard.py",
        f"/static/{DIGEST}/%2e%2e/%2e%2e/dashboard.py",
        f"/static/{DIGEST}/..%5c..%5cdashboard.py",
        f"/static/{DIGEST}/%2fetc%2fpasswd",
        f"/static/{DIGEST}/main.js%00.css",
        "/static/..%2f/main.js",
        "/static/main.js",
    ],
)
async def test_nothing_else_can_be_had(api: Api, path: str) -> None:
    answer = await api.nobody.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.headers["cache-control"] == "no-store"


def schemes() -> list[dict[str, str]]:
    """The colours of the light scheme, and of the dark one."""
    style = STATIC.joinpath("style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    return [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in blocks]


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colours", schemes(), ids=["light", "dark"])
def test_text_stands_out_from_its_ground(colours: dict[str, str]) -> None:
    pairs = [
        (text, ground)
        for text in ("text", "muted", "accent", "good", "bad", "warn", "busy")
        for ground in ("ground", "surface", "code")
    ]
    for text, ground in [*pairs, ("on-accent", "accent")]:
        lighter, darker = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)


@pytest.mark.parametrize("name", MODULES)
def test_modules_make_no_markup_of_text(name: str) -> None:
    makers = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|\beval\(|Function\("
    )
    assert re.findall(makers, MODULES[name]) == []
    assert re.findall(r"localStorage|document\.cookie|EventSource", MODULES[name]) == []


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_short_and_know_only_each_other(name: str) -> None:
    imported = set(re.findall(r'from "([^"]+)"', MODULES[name]))
    assert imported <= {f"./{other}" for other in MODULES}
    assert len(MODULES[name].splitlines()) <= 400
    assert MODULES[name].startswith("// ")
