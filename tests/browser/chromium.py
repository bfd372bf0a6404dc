"""Headless Chromium, driven with its own DevTools protocol over a WebSocket.

https://chromedevtools.github.io/devtools-protocol/: a command is `{id, method, params, sessionId}`, its answer
`{id, result | error}`; everything without an id is an event. One browser serves all tests of a module, and each test
has a profile of its own in it (a browser context), as new as a private window.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import from_json, to_json
from websockets.asyncio.client import ClientConnection, connect

from tests.support import PATIENCE_S

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)
WIDE = (1280, 900)
PHONE = (390, 844)


def executable() -> str:
    """The browser of this machine. Without one the test is skipped, or fails where NIGHTSHIFT_TEST_BROWSER=1."""
    for name in (os.environ.get("NIGHTSHIFT_TEST_CHROMIUM", ""), *NAMES):
        if name and (path := shutil.which(name)):
            return path
    reason = "no Chromium in PATH (Debian: apt install chromium), and none that NIGHTSHIFT_TEST_CHROMIUM names"
    if os.environ.get("NIGHTSHIFT_TEST_BROWSER") == "1":
        pytest.fail(f"NIGHTSHIFT_TEST_BROWSER=1, but there is {reason}", pytrace=False)
    pytest.skip(reason)


@contextmanager
def browser(directory: Path) -> Iterator[str]:
    """A browser; the address of its DevTools. `directory` is new, and takes its profile and its log."""
    # Chromium's own sandbox does not work for root.
    flags = (*FLAGS, "--no-sandbox") if os.geteuid() == 0 else FLAGS
    with (directory / "chromium.log").open("wb") as log:
        command = (executable(), *flags, f"--user-data-dir={directory / 'profile'}", "about:blank")
        child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield _devtools(child, directory)
    finally:
        # It has many children, all of its own session.
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(PATIENCE_S)


def _devtools(child: subprocess.Popen[bytes], directory: Path) -> str:
    port_file = directory / "profile" / "DevToolsActivePort"
    given_up_at = time.monotonic() + PATIENCE_S
    while time.monotonic() < given_up_at and child.poll() is None:
        lines = port_file.read_text().splitlines() if port_file.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.02)
    raise AssertionError(f"Chromium did not start:\n{(directory / 'chromium.log').read_text()}")


class Refused(Exception):
    """The browser did not carry out a command."""


class DevTools:
    """One connection to a browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.pages: dict[str, Page] = {}

    async def read(self) -> None:
        """Hand answers and events to whom they are for, until the connection ends."""
        async for message in self._connection:
            frame = from_json(message)
            if "id" in frame:
                answer = self._answers.pop(frame["id"])
                if not answer.done():  # nobody waits any more
                    answer.set_result(frame)
            elif page := self.pages.get(frame.get("sessionId", "")):
                page.take(frame["method"], frame["params"])

    async def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command; its result. Raises `Refused`."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        frame = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        await self._connection.send(to_json(frame).decode())
        async with asyncio.timeout(PATIENCE_S):
            result = await answer
        if "error" in result:
            raise Refused(f"{method}: {result['error']}")
        return dict(result["result"])


class Page:
    """A tab, and all that went wrong in it: uncaught exceptions, what its policy forbade, dialogs."""

    def __init__(self, devtools: DevTools, session: str) -> None:
        self._devtools = devtools
        self._session = session
        self.faults: list[str] = []
        self.requests: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command for this tab."""
        return await self._devtools.call(method, self._session, **params)

    def take(self, method: str, params: dict[str, Any]) -> None:
        """Note an event."""
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.faults.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["source"] in ("security", "violation", "javascript"):
            self.faults.append(params["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.faults.append(f"dialog: {params['message']}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(params["url"])

    async def open(self, url: str) -> None:
        """Go to a URL."""
        result = await self.call("Page.navigate", url=url)
        assert not result.get("errorText"), result

    async def reload(self) -> None:
        """Load the document anew."""
        await self.value("window.isOld = true")
        await self.call("Page.reload")
        await self.until("!window.isOld && document.readyState === 'complete'")

    async def value(self, expression: str) -> Any:
        """The value of an expression, or of what its promise brings."""
        result = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Wait until an expression is true; its value. Fails with what the page shows instead."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    with suppress(Refused):  # another document has just come
                        if found := await self._look_for(condition):
                            return found
        except TimeoutError:
            shown = await self.value("document.body.innerText")
            raise AssertionError(f"{condition} did not come true; shown is:\n{shown}\n{self.faults}") from None

    async def _look_for(self, condition: str) -> Any:
        # Looked for in the page, so that little is said meanwhile; but not for ever, as another document may come.
        return await self.value(
            f"""new Promise((resolve) => {{
                let left = 30;
                const look = () => {{
                    let found = null;
                    try {{ found = {condition}; }} catch {{ /* what it speaks of is not there yet */ }}
                    if (found || --left === 0) resolve(found); else setTimeout(look, 16);
                }};
                look();
            }})"""
        )

    async def until_text(self, text: str, selector: str = "main") -> None:
        """Wait until an element shows a text."""
        await self.until(f"document.querySelector({quoted(selector)})?.innerText.includes({quoted(text)})")

    async def text(self, selector: str) -> str:
        """The text of an element, as it is seen."""
        return str(await self.value(f"document.querySelector({quoted(selector)}).innerText"))

    async def click(self, text: str, selector: str = "a, button, summary") -> None:
        """Click the element with exactly this text, when there is one that can be clicked."""
        # Found and clicked in one go: the page may show something else in between.
        await self.until(
            f"""((node) => node ? (node.click(), true) : false)(
                [...document.querySelectorAll({quoted(selector)})].find((node) =>
                    node.innerText.trim() === {quoted(text)} && node.checkVisibility() && !node.disabled))"""
        )

    async def fill(self, selector: str, value: str) -> None:
        """Type into a field, in place of what it holds."""
        await self.until(f"document.querySelector({quoted(selector)}) !== null")
        await self.value(f"document.querySelector({quoted(selector)}).focus()")
        await self.value("document.activeElement.select?.()")
        await self.call("Input.insertText", text=value)

    async def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select."""
        node = f"document.querySelector({quoted(selector)})"
        await self.until(f"[...{node}.options].some((option) => option.value === {quoted(value)})")
        await self.value(f"{node}.value = {quoted(value)}")
        await self.value(f"{node}.dispatchEvent(new Event('change', {{ bubbles: true }}))")

    async def press(self, key: str) -> None:
        """Press and release a key that has no character, such as Tab, or Enter."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def look(self, size: tuple[int, int] = WIDE, *, dark: bool = False) -> None:
        """Take another size of the screen, and another scheme of colours."""
        width, height = size
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=size == PHONE
        )
        await self.call("Emulation.setScrollbarsHidden", hidden=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def until_fault(self) -> None:
        """Wait until something goes wrong."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.faults:
                await self.value("new Promise((resolve) => setTimeout(resolve, 16))")

    async def screenshot(self, path: Path) -> None:
        """Write what is seen, all of the page, as PNG."""
        result = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(result["data"]))


@asynccontextmanager
async def page_in(devtools_url: str) -> AsyncIterator[Page]:
    """A tab of a profile of its own. At the end of the block nothing may have gone wrong in it."""
    async with connect(devtools_url, max_size=None, ping_interval=None) as connection:
        devtools = DevTools(connection)
        reading = asyncio.create_task(devtools.read())
        try:
            context = (await devtools.call("Target.createBrowserContext"))["browserContextId"]
            target = (await devtools.call("Target.createTarget", url="about:blank", browserContextId=context))[
                "targetId"
            ]
            session = (await devtools.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
            page = devtools.pages[session] = Page(devtools, session)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await page.call(f"{domain}.enable")
            await page.look()
            yield page
            await devtools.call("Target.disposeBrowserContext", browserContextId=context)
        finally:
            reading.cancel()
            await asyncio.wait([reading])
    if page.faults:
        raise AssertionError(f"what went wrong in the browser: {page.faults}")


def quoted(text: str) -> str:
    """A string of JavaScript."""
    return to_json(text).decode()
