"""`python -m app.dev` as people run it: real processes that start everything, and leave nothing."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

from app.api.api_keys import create_key
from app.dev_views import PlainPage, clean, seconds
from tests.acceptance.machine import Machine, processes_of, url_of
from tests.fakes.model_server import ModelServer, Refuse, Silence
from tests.fakes.repositories import commit_files, make_checkout
from tests.support import PATIENCE_S

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.acceptance


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    checkout = make_checkout(tmp_path / "tide watch")
    commit_files(
        checkout,
        {"README.md": "# Tidewatch\n\nTidewatch predicts the tide of a harbour.\n", "tide.py": "print(1)\n"},
        "Tides are predicted\n\nThe \x1b[31mmoon\x1b[0m — counted — as well.",
    )
    return checkout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    return Machine(home, tmp_path / "data")


# The demo.


async def test_the_demo_shows_a_digest_and_leaves_no_process(machine: Machine, repository: Path) -> None:
    code, out, err = await machine.run("demo", str(repository))
    assert (code, err) == (0, "")
    assert processes_of(machine.data_dir) == []
    assert "Tidewatch predicts the tide of a harbour. [README.md]" in out
    assert "100 %  done" in out
    for words in ("What it is", "How it is built", "What changed lately", "offline", "in the queue", "clone", "total"):
        assert words in out
    # Escapes in the repository's texts do not reach the terminal.
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out) is None
    assert "[31mmoon" in out


async def test_what_the_demo_says_about_looking_further_is_true(machine: Machine, repository: Path) -> None:
    code, out, _ = await machine.run("demo", str(repository))
    assert code == 0
    url, task_id = re.search(r"curl (http://127\.0\.0\.1:8000)/api/tasks/(\w+)$", out, re.MULTILINE).groups()  # type: ignore[union-attr]
    data_dir = re.search(r"NIGHTSHIFT_DATA_DIR=(\S+) ", out)[1]  # type: ignore[index]
    async with machine.start("serve", port=0, data_dir=data_dir) as process:
        async with httpx.AsyncClient(base_url=await url_of(process)) as client:
            task = (await client.get(f"/api/tasks/{task_id}")).json()
        process.terminate()
        await process.wait()
    assert url
    assert (task["task"], task["status"]) == ("git.digest", "SUCCESS")
    log = re.search(r"Log of this run: +(\S+)", out)[1]  # type: ignore[index]
    assert "task=git.digest" in (machine.home / log).read_text()


async def test_a_second_demo_runs_on_the_data_of_the_first_whatever_the_locale(
    machine: Machine, repository: Path
) -> None:
    latin = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    assert (await machine.run("demo", str(repository)))[0] == 0
    code, out, err = await machine.run("demo", str(repository), env=latin)
    assert (code, err) == (0, "")
    assert "? counted ? as well." in out


async def test_the_demo_uses_the_model_of_the_environment_and_none_of_its_other_services(
    machine: Machine, repository: Path
) -> None:
    async with ModelServer(api_key="key-of-the-model") as model:
        code, out, err = await machine.run(
            "demo",
            str(repository),
            llm_base_url=model.base_url,
            llm_model="tide-1",
            llm_api_key="key-of-the-model",
            redis_url="redis://127.0.0.1:1/0",
            auth="keys",
            queues="chat",
            port=1,
        )
    assert (code, err) == (0, "")
    assert "tide-1 wrote the statements above" in out
    assert len(model.requests) == 3


async def test_the_demo_waits_for_a_model_that_says_when_it_has_room(machine: Machine, repository: Path) -> None:
    async with ModelServer() as model:
        model.script(*[Refuse(429, "slow down", headers={"retry-after": "1"})] * 3)
        code, out, err = await machine.run("demo", str(repository), llm_base_url=model.base_url, llm_model="tide-1")
    assert (code, err) == (0, "")
    assert re.search(r"again in 1 s: .*slow down", out)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "nowhere: no such directory; expected the path or the https URL of a git repository"),
        (".", "not in a git repository"),
        ("https://127.0.0.1:1/x.git", "The demo failed: https://127.0.0.1:1/x.git: unable to access"),
        ("http://example.org/x.git", "The demo failed: repository 'http://example.org/x.git'"),
    ],
)
async def test_a_repository_that_cannot_be_had_is_said_in_a_line(machine: Machine, name: str, words: str) -> None:
    code, out, err = await machine.run("demo", name)
    assert code == 1
    assert words in err
    assert "Traceback" not in out + err
    assert processes_of(machine.data_dir) == []


async def test_a_demo_that_is_interrupted_leaves_no_process_and_no_task(machine: Machine, repository: Path) -> None:
    async with ModelServer() as model:
        model.script(Silence(), Silence(), Silence())
        settings = {"llm_base_url": model.base_url, "llm_model": "slow"}
        async with machine.start("demo", str(repository), **settings) as process:
            await model.until(lambda server: len(server.requests) == 3)
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")
    assert out.decode().endswith("Stopped before the end.\n")
    assert processes_of(machine.data_dir) == []
    code, out_again, _ = await machine.run("demo", str(repository))
    assert code == 0
    assert (machine.data_dir / "demo" / "demo.log").read_text().count("task done") == 1, out_again


async def test_on_a_terminal_there_is_a_bar(machine: Machine, repository: Path) -> None:
    here, there = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.dev", "demo", str(repository)),
        cwd=machine.home,
        env=machine.environment() | {"TERM": "xterm-256color", "COLUMNS": "90", "LC_ALL": "C.UTF-8"},
        stdin=there,
        stdout=there,
        stderr=there,
    )
    os.close(there)
    try:
        async with asyncio.timeout(PATIENCE_S):
            shown = (await asyncio.to_thread(read_all, here)).decode()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(here)
    assert "━━━━" in shown
    assert "100%" in shown
    assert "\x1b[?25h" in shown, "the cursor is shown again"
    assert "\x1b[31mmoon" not in shown


def read_all(descriptor: int) -> bytes:
    parts = []
    while True:
        try:
            part = os.read(descriptor, 65_536)
        except OSError:  # Linux: the other side is closed
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


# The service.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_service_runs_tasks_until_it_is_told_to_stop(machine: Machine, number: signal.Signals) -> None:
    async with machine.start("serve", port=0) as process:
        async with httpx.AsyncClient(base_url=await url_of(process)) as client:
            posted = (await client.post("/api/tasks", json={"task": "system.echo", "params": {"value": 1}})).json()
            done = (await client.get(f"/api/tasks/{posted['task_id']}", params={"wait": 20})).json()
            assert done["status"] == "SUCCESS"
            for page in ("/", "/docs"):
                shown = await client.get(page, follow_redirects=True)
                assert (shown.status_code, shown.headers["content-type"]) == (200, "text/html; charset=utf-8")
        process.send_signal(number)
        out, err = await process.communicate()
    assert process.returncode == 0
    assert out.decode().endswith("Nightshift has stopped.\n")
    assert "Traceback" not in err.decode()
    assert processes_of(machine.data_dir) == []


async def test_a_running_task_is_finished_and_a_stream_ended_before_the_service_stops(machine: Machine) -> None:
    async with machine.start("serve", port=0, shutdown_grace_s=20) as process:
        async with httpx.AsyncClient(base_url=await url_of(process), timeout=PATIENCE_S) as client:
            body = {"task": "system.sleep", "params": {"seconds": 1.5, "steps": 15}}
            task_id = (await client.post("/api/tasks", json=body)).json()["task_id"]
            async with client.stream("GET", f"/api/tasks/{task_id}/events") as stream:
                lines = stream.aiter_lines()
                async for line in lines:
                    if "task_progress" in line:
                        break
                process.terminate()
                _ = [line async for line in lines]
        _, err = await process.communicate()
    assert process.returncode == 0, err
    assert "task done" in err.decode()
    assert "drains: 1 running" in err.decode()


async def test_a_service_with_keys_says_how_to_make_one_and_wants_one(machine: Machine) -> None:
    key, _ = create_key(machine.data_dir / "api-keys.json", "ada")
    async with machine.start("serve", port=0, auth="keys") as process:
        async with httpx.AsyncClient(base_url=await url_of(process)) as client:
            refused = await client.get("/api/tasks")
            allowed = await client.get("/api/tasks", headers={"Authorization": f"Bearer {key}"})
        process.terminate()
        out, _ = await process.communicate()
    assert (refused.status_code, allowed.status_code) == (401, 200)
    assert b"nightshift keys create" in out


async def test_a_port_that_is_taken_is_said_in_one_line(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, out, err = await machine.run("serve", port=port)
    assert (code, out) == (1, "")
    assert err == (
        f"port {port} of 127.0.0.1 is taken by another process: stop that one, or choose another with NIGHTSHIFT_PORT\n"
    )
    assert processes_of(machine.data_dir) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"port": "many"}, "NIGHTSHIFT_PORT='many'"),
        ({"auth": "off", "host": "0.0.0.0"}, "NIGHTSHIFT_AUTH=off with NIGHTSHIFT_HOST='0.0.0.0'"),
        ({"port": 0, "queues": "nosuch"}, "NIGHTSHIFT_QUEUES names 'nosuch'"),
        ({"port": 0, "llm_base_url": "nowhere"}, "NIGHTSHIFT_LLM_BASE_URL"),
        ({"port": 0, "host": "no.such.host.invalid"}, "NIGHTSHIFT_HOST='no.such.host.invalid'"),
    ],
)
async def test_wrong_settings_are_one_line_and_exit_code_2(
    machine: Machine, settings: dict[str, object], words: str
) -> None:
    code, out, err = await machine.run("serve", **settings)
    own = [line for line in err.splitlines() if not re.match(r"\d{4}-\d\d-\d\d ", line)]
    assert (code, out) == (2, ""), err
    assert len(own) == 1, err
    assert words in own[0]
    assert processes_of(machine.data_dir) == []


async def test_a_redis_that_is_not_there_is_said_in_one_line(machine: Machine) -> None:
    code, out, err = await machine.run("serve", port=0, redis_url="redis://127.0.0.1:1/0")
    assert (code, out) == (1, "")
    assert err.startswith("the Redis that NIGHTSHIFT_REDIS_URL names cannot be used: ")
    assert "127.0.0.1:1" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("nosuch",), ("serve", "now"), ("demo", "--fast"), ("demo", "a", "b")])
async def test_wrong_use_shows_the_usage(machine: Machine, arguments: tuple[str, ...]) -> None:
    code, out, err = await machine.run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: ")


# What the demo prints.


def test_texts_of_others_cannot_act_on_the_terminal() -> None:
    assert clean("a\x1b[2Jb\r\nc\u202ed\x9be\u2028f\x00") == "a [2Jb c d e f"


@pytest.mark.parametrize(("given", "shown"), [(0.0, "0 ms"), (0.0314, "31 ms"), (1.0, "1.00 s"), (62.5, "62.50 s")])
def test_durations_are_read_easily(given: float, shown: str) -> None:
    assert seconds(given) == shown


def test_plain_progress_is_a_line_for_each_thing_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainPage(sys.stdout).following() as show:
        for percent, label in [(1, "git: counting"), (2, "git: counting"), (40, "reading")]:
            show(percent, label)
    assert capsys.readouterr().out.splitlines() == ["    1 %  git: counting", "   40 %  reading"]
