"""Workspaces: fresh for each attempt, private, gone when they shall be."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from app.domains.workspaces import MIN_AGE_S, Workspaces


@pytest.fixture
def workspaces(tmp_path: Path) -> Workspaces:
    return Workspaces(tmp_path / "workspaces")


async def test_a_fresh_workspace_is_absent_and_its_directory_is_the_owners_alone(
    workspaces: Workspaces, tmp_path: Path
) -> None:
    path = await workspaces.fresh("t1")
    assert path == tmp_path / "workspaces" / "t1"
    assert not path.exists()
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_what_an_earlier_attempt_left_is_removed(workspaces: Workspaces) -> None:
    path = await workspaces.fresh("t1")
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "file").write_text("old")
    assert not (await workspaces.fresh("t1")).exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "-x", "a\0b", "a b", "x" * 129, "a\n"])
async def test_an_id_that_could_lead_elsewhere_leads_to_a_place_of_its_own(workspaces: Workspaces, name: str) -> None:
    path = await workspaces.fresh(name)
    assert path.parent == (await workspaces.fresh("t1")).parent
    assert path.name.isalnum()
    assert path == await workspaces.fresh(name)
    assert path != await workspaces.fresh(f"{name}2")


async def test_a_temporary_workspace_is_gone_after_the_block_also_when_it_raises(workspaces: Workspaces) -> None:
    with pytest.raises(ZeroDivisionError):
        async with workspaces.temporary("t1") as path:
            (path / "deep").mkdir(parents=True)
            raise ZeroDivisionError
    assert not path.exists()


async def test_a_temporary_workspace_is_gone_when_its_task_is_cancelled(workspaces: Workspaces) -> None:
    paths: list[Path] = []

    async def work() -> None:
        async with workspaces.temporary("t1") as path:
            path.mkdir()
            paths.append(path)
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    while not paths:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not paths[0].exists()


async def test_a_relative_directory_means_the_same_after_the_working_directory_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    workspaces = Workspaces(Path("here"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert await workspaces.fresh("t1") == tmp_path / "here" / "t1"


async def test_only_old_workspaces_are_trimmed_those_of_dead_attempts_included(
    workspaces: Workspaces, tmp_path: Path
) -> None:
    for name, age_s in [("old", 90_000.0), (".old.partial", 90_000.0), ("new", 10.0)]:
        path = tmp_path / "workspaces" / name
        path.mkdir(parents=True)
        (path / "file").write_text("x")
        os.utime(path, (time.time() - age_s, time.time() - age_s))
    assert await workspaces.remove_older_than(86_400) == 2
    assert [path.name for path in (tmp_path / "workspaces").iterdir()] == ["new"]


async def test_a_workspace_that_a_task_may_be_at_work_in_is_not_trimmed(workspaces: Workspaces, tmp_path: Path) -> None:
    path = tmp_path / "workspaces" / "busy"
    path.mkdir(parents=True)
    os.utime(path, (time.time() - MIN_AGE_S + 60,) * 2)
    assert await workspaces.remove_older_than(1) == 0
    assert path.exists()


async def test_trimming_before_any_workspace_was_made_removes_nothing(workspaces: Workspaces) -> None:
    assert await workspaces.remove_older_than(1) == 0
