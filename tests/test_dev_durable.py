"""`./run demo durable`: the worked example with its workers really killed, and the README that tells of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.acceptance.machine import Machine, processes_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    return Machine(home, tmp_path / "data")


@pytest.mark.acceptance
async def test_the_example_outlives_two_workers_and_waits_for_a_person(machine: Machine) -> None:
    code, out, err = await machine.run("demo", "durable")
    assert (code, err) == (0, ""), out
    lines = re.findall(r"^ +[\d.]+ s  (\S.*)$", out.partition("What each line")[0], re.MULTILINE)
    # How far the children were when the worker was killed differs, and so does whether it had entered the task again.
    told = [line for line in lines if not line.startswith(("a worker enters", "worker", "its children now: "))]
    assert told[1:] == [
        "the task waits for 3 children, and holds no worker",
        "KILLED: worker 1, with what it ran (SIGKILL)",
        "it asks: Publish the README?",
        "the task waits for a person, and holds no worker",
        "KILLED: worker 2; no worker is alive now",
        "the task all the same: WAITING",
        "decided by local: approved",
        "the task waits for its embargo to pass, and holds no worker",
        "it publishes",
        "done",
    ]
    steps = re.findall(
        r"^  [\d.]+ m?s +(\S.*)$", out[out.index("What each line") : out.index("The brief")], re.MULTILINE
    )
    assert steps == ["topics", "gather 3 tasks", "approval", "sleep", "publish"]
    assert re.search(r"killed +2 workers", out)
    assert re.search(r"attempts +[12]:", out)
    assert processes_of(machine.data_dir) == []


def test_the_readme_shows_the_code_as_it_is() -> None:
    readme, code = (ROOT / "README.md").read_text(), (ROOT / "app/domains/briefs/tasks.py").read_text()
    assert code[code.index('@task("briefs.write"') :] in readme
