"""A git host: real repositories over real smart HTTPS, by way of git's own `http-backend`.

    with GitServer(root, certificate, users={"ada": "secret"}) as server:
        # `root/team/app.git`, a bare repository, is now server.url("team/app.git")
        server.answers["/team/gone.git"] = Answer(404)      # for every path that starts so
        server.fetches = Answer(200, {}, b"cut")            # for transfers of objects; refs are listed as ever
        held = server.hold("git-upload-pack")               # requests whose target contains it wait
        ... await held.reached() ... held.release()
        server.requests[0].authorization

Without `users` everybody may read and write. With `users` a request without credentials gets 401 and a challenge, one
with wrong credentials 401 again; those in `readers` get 403 for a push. git trusts the server when `GIT_SSL_CAINFO` is
the certificate's path (see `tests.fakes.tls`).
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import os
import ssl
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Answer:
    """A fixed answer instead of git's."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Request:
    """A request as it came in; `target` is the path with its query."""

    method: str
    target: str
    authorization: str | None
    protocol: str | None
    body: bytes = field(repr=False)
    """As git sent it, inflated."""


class Held:
    """Requests that wait on the server."""

    def __init__(self, part: str) -> None:
        self.part = part
        self._reached = threading.Event()
        self._released = threading.Event()

    async def reached(self) -> None:
        """Wait until a request waits."""
        assert await asyncio.to_thread(self._reached.wait, _PATIENCE_S), f"no request for {self.part}"

    def release(self) -> None:
        """Let them go on."""
        self._released.set()

    def block(self) -> None:
        """Called by the server in the request's thread."""
        self._reached.set()
        self._released.wait(_PATIENCE_S)


class GitServer:
    """See the module."""

    def __init__(
        self,
        root: Path,
        certificate: Path,
        *,
        users: Mapping[str, str] | None = None,
        readers: frozenset[str] = frozenset(),
    ) -> None:
        self.root = root
        self.users = dict(users or {})
        self.readers = readers
        self.answers: dict[str, Answer] = {}
        self.fetches: Answer | None = None
        self.requests: list[Request] = []
        self._held: list[Held] = []
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def host(self) -> str:
        """`localhost:port`."""
        return f"localhost:{self._http.server_address[1]}"

    def url(self, path: str) -> str:
        """The URL of a repository."""
        return f"https://{self.host}/{path}"

    def hold(self, part: str) -> Held:
        """Let requests whose target contains `part` wait from now on."""
        held = Held(part)
        self._held.append(held)
        return held

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for held in self._held:
            held.release()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(_PATIENCE_S)

    def answer(self, request: Request, content_type: str) -> Answer:
        """What a request gets; called in the request's thread."""
        for held in self._held:
            if held.part in request.target:
                held.block()
        for prefix, answer in self.answers.items():
            if request.target.startswith(prefix):
                return answer
        if self.fetches and b"command=fetch" in request.body:
            return self.fetches
        user = self._user(request.authorization)
        if self.users and user is None:
            return Answer(401, {"WWW-Authenticate": 'Basic realm="git"'}, b"who are you?")
        if user in self.readers and "git-receive-pack" in request.target:
            return Answer(403, {}, b"read only")
        return self._backend(request, content_type, user)

    def _user(self, authorization: str | None) -> str | None:
        kind, _, encoded = (authorization or "").partition(" ")
        if kind.lower() != "basic":
            return None
        name, _, password = base64.b64decode(encoded).decode().partition(":")
        return name if self.users.get(name) == password else None

    def _backend(self, request: Request, content_type: str, user: str | None) -> Answer:
        path, _, query = request.target.partition("?")
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.receivepack",
            "GIT_CONFIG_VALUE_0": "true",
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": unquote(path),
            "QUERY_STRING": query,
            "REQUEST_METHOD": request.method,
            "REMOTE_USER": user or "",
            "CONTENT_TYPE": content_type,
            "CONTENT_LENGTH": str(len(request.body)),
            "GIT_PROTOCOL": request.protocol or "",
        }
        done = subprocess.run(["git", "http-backend"], env=env, input=request.body, capture_output=True, check=False)
        return _from_cgi(done.stdout)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    owner: GitServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed break their connections; tests see what matters in `requests`."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE_S
    disable_nagle_algorithm = True  # else each answer, being headers and body, waits 40 ms

    def setup(self) -> None:
        self.request.settimeout(_PATIENCE_S)
        self.request.do_handshake()
        super().setup()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, *args: object) -> None:
        """Silence: `requests` is the log."""

    def _serve(self) -> None:
        body = self._body()
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        authorization, protocol = self.headers.get("Authorization"), self.headers.get("Git-Protocol")
        request = Request(self.command, self.path, authorization, protocol, body)
        owner = self.server.owner
        owner.requests.append(request)
        answer = owner.answer(request, self.headers.get("Content-Type", ""))
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


def _from_cgi(output: bytes) -> Answer:
    head, _, body = output.partition(b"\r\n\r\n")
    pairs = (line.partition(b":") for line in head.split(b"\r\n") if line)
    headers = {name.decode(): value.strip().decode() for name, _, value in pairs}
    status = int(headers.pop("Status", "200 OK").split()[0])
    return Answer(status, headers, body)
