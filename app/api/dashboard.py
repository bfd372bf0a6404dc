"""The dashboard: one page without a build step. It is a client of the API like any other, and has no data in itself.

The page and its files need no credentials; what they show does. Files are served from memory under the digest of all of
them together, so that a browser keeps them for ever and modules of two versions never meet: the page, which is asked
for anew each time, names the digest. Names are looked up, not joined to a path.

What a task's author or client wrote must not become code on this page. Its policy allows scripts and styles from files
of ours only, and by Trusted Types no way to make markup out of text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.responses import RedirectResponse, Response

from app.api.etags import etag_of, matches
from app.errors import NotFound

PAGE = "dashboard.html"
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
IMMUTABLE = "public, max-age=31536000, immutable"
_DIGEST_PLACE = b"{{digest}}"

router = APIRouter(include_in_schema=False)
IfNoneMatch = Annotated[str | None, Header()]


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, name: str, content: bytes) -> Asset:
        """The file of that name, whose ending tells its type."""
        return cls(content, MEDIA_TYPES[_ending(name)], etag_of(content))

    def response(self, if_none_match: str | None, headers: dict[str, str]) -> Response:
        """The file, or 304 for a client that has it."""
        headers = {**headers, "etag": self.etag}
        if matches(self.etag, if_none_match):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def _ending(name: str) -> str:
    return name.rpartition(".")[2]


def _load() -> tuple[str, Asset, dict[str, Asset]]:
    """The digest of all files, the page, and the files that it needs."""
    folder = files("app.api").joinpath("static")
    # What an editor leaves beside a file is none of them.
    found = {entry.name: entry.read_bytes() for entry in folder.iterdir() if _ending(entry.name) in MEDIA_TYPES}
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(found):
        digest.update(b"%s\0%d\0%s" % (name.encode(), len(found[name]), found[name]))
    version = digest.hexdigest()
    page = Asset.of(PAGE, found.pop(PAGE).replace(_DIGEST_PLACE, version.encode()))
    return version, page, {name: Asset.of(name, content) for name, content in found.items()}


DIGEST, _page, _assets = _load()


@router.get("/")
async def root() -> Response:
    """Lead people who open the service's address to the dashboard."""
    # Relative, as all of the page's own addresses: the service may stand behind a prefix of a proxy.
    return RedirectResponse("dashboard")


@router.get("/dashboard")
async def dashboard(if_none_match: IfNoneMatch = None) -> Response:
    """The page."""
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": CONTENT_SECURITY_POLICY,
        "cross-origin-opener-policy": "same-origin",
    }
    return _page.response(if_none_match, headers)


@router.get("/static/{digest}/{name}")
async def static_file(digest: str, name: str, if_none_match: IfNoneMatch = None) -> Response:
    """A file of the page, for ever. Raises `NotFound`, also for a digest that another version has."""
    asset = _assets.get(name) if digest == DIGEST else None
    if asset is None:
        raise NotFound(f"there is no file {name!r} of the dashboard {digest!r}: expected what /dashboard names")
    return asset.response(if_none_match, {"cache-control": IMMUTABLE, "cross-origin-resource-policy": "same-origin"})
