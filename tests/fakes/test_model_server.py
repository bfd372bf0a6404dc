from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.clients.http import httpx, open_client

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server in a process of its own."""
    command = [sys.executable, "-m", "tests.fakes.model_server", "--api-key", "sk-1"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        base_url = (await asyncio.wait_for(process.stdout.readline(), 10)).decode().strip()
        async with open_client(timeout_s=5, headers={"authorization": "Bearer sk-1"}) as opened:
            opened.base_url = base_url.removesuffix("/v1")
            yield opened
    finally:
        process.terminate()
        await process.communicate()


async def test_a_server_of_its_own_is_told_over_http_what_to_answer(client: httpx.AsyncClient) -> None:
    script = [{"kind": "refuse", "status": 429, "headers": {"retry-after": "3"}}, {"text": "Hi.", "gated": True}]
    await client.post("/control/script", json={"script": script})
    ask = {"model": "m", "messages": [{"role": "user", "content": "Hello?"}]}

    refused = await client.post("/v1/chat/completions", json=ask)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")

    waiting = asyncio.create_task(client.post("/v1/chat/completions", json=ask))
    await client.post("/control/let", json={"count": 1})
    assert (await waiting).json()["choices"][0]["message"]["content"] == "Hi."

    seen = (await client.get("/control/requests")).json()["requests"]
    assert [request["body"] for request in seen] == [ask, ask]
    assert (await client.get("/v1/models", headers={"authorization": "Bearer sk-2"})).status_code == 401
