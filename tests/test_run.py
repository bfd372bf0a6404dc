"""How ./run finds a Python and takes turns. That it installs and starts everything is shown by acceptance tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "run"
TOOLS = ("cat", "cksum", "cp", "dirname", "env", "ln", "mkdir", "readlink", "rm", "sleep")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A directory of programs that is the whole PATH: a machine without any Python."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None, name
        (programs / name).symlink_to(found)
    return programs


def put(programs: Path, name: str, script: str) -> None:
    path = programs / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(programs: Path, *arguments: str, path: Path = RUN, **environment: str) -> subprocess.CompletedProcess[str]:
    environment |= {"PATH": str(programs), "HOME": "/nonexistent"}
    return subprocess.run(
        [path, *arguments], env=environment, capture_output=True, text=True, timeout=60, cwd="/", check=False
    )


def test_no_python_is_one_line(machine: Path) -> None:
    done = run(machine, "python")
    assert done.returncode == 1
    assert done.stderr == "nightshift: Python 3.11 or newer is needed; none found in PATH\n"


def test_an_old_python_is_named(machine: Path) -> None:
    put(machine, "python3", "echo 3.9")
    done = run(machine, "python")
    assert done.returncode == 1
    assert done.stderr == "nightshift: Python 3.11 or newer is needed; python3 is 3.9\n"


def test_a_python_without_venv_is_told_what_to_install(machine: Path) -> None:
    put(machine, "python3", 'case "$*" in *venv*) exit 1 ;; *) echo 3.12 ;; esac')
    done = run(machine, "python")
    assert done.returncode == 1
    assert "python3 is 3.12 but has no venv module" in done.stderr
    assert done.stderr.count("\n") == 1


def test_shims_that_lead_nowhere_and_old_ones_are_passed_over(machine: Path) -> None:
    put(machine, "python3", "echo 3.10")
    put(machine, "python3.13", "echo 'version 3.13 is not installed' >&2; exit 127")
    put(machine, "python3.12", f'exec {sys.executable} "$@"')
    done = run(machine, "python")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).samefile(sys.executable)


def test_no_command_and_an_unknown_one_show_the_usage(machine: Path) -> None:
    for arguments in ((), ("fly",)):
        done = run(machine, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("usage: ./run COMMAND")
    assert run(machine, "--help").stdout.startswith("usage: ./run COMMAND")


@pytest.fixture
def checkout(tmp_path: Path, machine: Path) -> Path:
    """A checkout whose Python only says what it is asked to do, and makes no real environment."""
    top = tmp_path / "check out"
    top.mkdir()
    shutil.copy(RUN, top / "run")
    for name in ("requirements.lock", "requirements-dev.lock", "pyproject.toml"):
        (top / name).write_text(name)
    # Makes "environments" that contain itself, and writes down what is installed with pip and run.
    put(
        machine,
        "python3",
        'case "$*" in\n'
        '*"-m venv "*) for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;\n'
        "*sys.version_info*) echo 3.12 ;;\n"
        '*sys.executable*) echo "$0" ;;\n'
        "*sys.version*) echo 3.12.0 ;;\n"
        '*"import ensurepip"*) ;;\n'
        f'*"-m pip"*) echo "$*" >>"{top}/calls"; [ ! -e "{top}/no-network" ] ;;\n'
        f'*) echo "$*" >>"{top}/calls" ;;\n'
        "esac",
    )
    return top


def calls(top: Path) -> list[str]:
    path = top / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_installs_once_with_hashes_and_then_starts_at_once(machine: Path, checkout: Path) -> None:
    top = str(checkout)
    assert run(machine, "demo", "a b", path=checkout / "run").returncode == 0
    first = calls(checkout)
    assert first == [
        f"-I -m pip --quiet install --require-hashes --no-deps -r {top}/requirements.lock",
        f"-I -m pip --quiet install --no-deps --no-build-isolation -e {top}",
        "-P -m app.dev demo a b",
    ]
    assert run(machine, "demo", path=checkout / "run").returncode == 0
    assert calls(checkout) == ["-P -m app.dev demo"]


def test_a_changed_lock_is_installed_and_what_tests_need_includes_the_rest(machine: Path, checkout: Path) -> None:
    run(machine, "test", "-k", "x", path=checkout / "run")
    assert f"-I -m pip --quiet install --require-hashes --no-deps -r {checkout}/requirements-dev.lock" in calls(
        checkout
    )
    run(machine, "serve", path=checkout / "run")
    assert calls(checkout) == ["-m app.dev serve"]
    (checkout / "requirements.lock").write_text("changed")
    run(machine, "serve", path=checkout / "run")
    assert len(calls(checkout)) == 3


def test_a_failed_installation_is_tried_again(machine: Path, checkout: Path) -> None:
    (checkout / "no-network").touch()
    done = run(machine, "serve", path=checkout / "run")
    assert done.returncode == 1
    assert "pip could not install" in done.stderr
    assert not (checkout / ".venv.building").is_symlink()
    (checkout / "no-network").unlink()
    assert run(machine, "serve", path=checkout / "run").returncode == 0


def test_waits_for_another_installation_but_not_for_a_dead_one(machine: Path, checkout: Path) -> None:
    with subprocess.Popen(["sleep", "0"]) as dead:
        pass
    (checkout / ".venv.building").symlink_to(str(dead.pid))
    assert run(machine, "serve", path=checkout / "run").returncode == 0
    (checkout / "requirements.lock").write_text("changed")
    (checkout / ".venv.building").symlink_to(str(os.getpid()))
    environment = {"PATH": str(machine), "HOME": "/nonexistent"}
    waiting = subprocess.Popen([checkout / "run", "serve"], env=environment, stderr=subprocess.DEVNULL)
    with waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.3)
        (checkout / ".venv.building").unlink()
        assert waiting.wait(20) == 0
