"""`git.clone` and `git.digest` on real repositories, with the offline model and with one over HTTP."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from app.clients.git import Progress
from app.domains.repositories import tasks as repository_tasks
from app.domains.repositories.service import CLONED, CloneProgress
from app.engine.job import Status
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from tests.domains.support import past_events, post, run, service_on
from tests.fakes.model_server import ModelServer, Refuse, Silence
from tests.fakes.repositories import commit_files, git, make_checkout
from tests.support import event_of, finished

README = """# Tidewatch

Tidewatch predicts the tide of a harbour from the readings of its own gauge.
It is made for harbour masters of small islands.
"""
FILES = {
    "README.md": README,
    "pyproject.toml": '[project]\nname = "tidewatch"\ndescription = "Predicts tides from gauge readings."\n',
    "tidewatch/gauge.py": "def read() -> float:\n    return 1.25\n",
    "tidewatch/model.sql": "select 1;\n",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of three commits, with a tag on the second."""
    checkout = make_checkout(tmp_path / "tidewatch")
    commit_files(checkout, FILES, "Tides are predicted from a gauge", at=1_700_000_000)
    commit_files(
        checkout,
        {"docs/guide.md": "# Guide\n\nMount the gauge below low water.\n"},
        "A guide says how",
        at=1_700_000_100,
    )
    git(checkout, "tag", "v1")
    commit_files(
        checkout,
        {"tidewatch/moon.py": "PHASES = 8\n"},
        "The moon counts as well\n\nSpring tides were too low.",
        at=1_700_000_200,
    )
    return checkout


def workspaces_left(data_dir: Path) -> list[Path]:
    root = data_dir / "workspaces"
    return list(root.iterdir()) if root.exists() else []


async def test_a_clone_is_a_workspace_that_stays(redis_url: str, tmp_path: Path, repository: Path) -> None:
    async with service_on(redis_url, tmp_path / "data") as engine:
        record = await run(engine, "git.clone", url=str(repository))
    assert record.status is Status.SUCCESS
    assert record.result == {
        "workspace": record.task_id,
        "url": str(repository),
        "head": git(repository, "rev-parse", "HEAD"),
        "branch": "main",
        "default_branch": "main",
    }
    assert (tmp_path / "data" / "workspaces" / record.task_id / "README.md").read_text() == README


async def test_a_clone_of_a_ref_has_its_commit_and_no_more_history_than_asked_for(
    redis_url: str, tmp_path: Path, repository: Path
) -> None:
    async with service_on(redis_url, tmp_path / "data") as engine:
        record = await run(engine, "git.clone", url=str(repository), ref="v1", depth=1)
    assert record.result["head"] == git(repository, "rev-parse", "v1")
    assert record.result["branch"] is None
    workspace = tmp_path / "data" / "workspaces" / record.task_id
    assert git(workspace, "rev-list", "--count", "HEAD") == "1"


async def test_a_digest_says_what_the_repository_says_and_where(
    redis_url: str, tmp_path: Path, repository: Path
) -> None:
    async with service_on(redis_url, tmp_path / "data") as engine:
        record = await run(engine, "git.digest", url=str(repository))
    digest = record.result
    assert digest["model"] == "offline"
    assert digest["facts"]["head"] == git(repository, "rev-parse", "HEAD")
    assert (digest["facts"]["files"], digest["facts"]["commits_read"]) == (6, 3)
    assert digest["facts"]["documents_read"] == ["README.md", "docs/guide.md", "pyproject.toml"]
    assert [share["language"] for share in digest["facts"]["languages"]] == ["Python", "SQL"]
    quoted = {item["text"]: item["source"] for item in digest["what_it_is"]}
    assert quoted["Tidewatch predicts the tide of a harbour from the readings of its own gauge."] == "README.md"
    assert any(item["source"] == "pyproject.toml" for item in digest["how_it_is_built"])
    newest = git(repository, "rev-parse", "--short=10", "HEAD")
    assert {"text": "Spring tides were too low.", "source": f"commit {newest}"} in digest["what_changed_lately"]
    assert all(seconds >= 0 for seconds in digest["durations"].values())


async def test_a_digest_leaves_no_workspace_and_its_progress_never_goes_back(
    redis_url: str, tmp_path: Path, repository: Path
) -> None:
    async with service_on(redis_url, tmp_path / "data") as engine:
        record = await run(engine, "git.digest", url=str(repository))
        events = await past_events(engine, record.task_id)
    assert workspaces_left(tmp_path / "data") == []
    progress = [event.data() for event in events if event.type == "task_progress"]
    percents = [item["percent"] for item in progress]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert [item["label"] for item in progress if not item["label"].startswith("git: ")][:2] == [
        "reading files and history",
        "asking the model (offline)",
    ]


async def test_a_digest_reads_as_many_commits_as_asked_for_of_the_ref_that_was_named(
    redis_url: str, tmp_path: Path, repository: Path
) -> None:
    async with service_on(redis_url, tmp_path / "data") as engine:
        record = await run(engine, "git.digest", url=str(repository), ref="v1", commits=1)
    facts = record.result["facts"]
    assert (facts["commits_read"], facts["files"], facts["branch"]) == (1, 5, None)
    assert facts["head"] == git(repository, "rev-parse", "v1")


async def test_a_model_gets_the_material_with_its_sources_and_its_tokens_are_counted(
    redis_url: str, tmp_path: Path, repository: Path
) -> None:
    async with ModelServer() as server:
        settings = {"llm_base_url": server.base_url, "llm_model": server.model}
        async with service_on(redis_url, tmp_path / "data", **settings) as engine:
            record = await run(engine, "git.digest", url=str(repository))
    assert record.status is Status.SUCCESS, record.error
    digest = record.result
    assert digest["model"] == server.model
    # The fake cites the first source it is shown, so each section shows what it rests on.
    newest = git(repository, "rev-parse", "--short=10", "HEAD")
    sections = ("what_it_is", "how_it_is_built", "what_changed_lately")
    assert [digest[name][0]["source"] for name in sections] == ["README.md", "pyproject.toml", f"commit {newest}"]
    assert (digest["prompt_tokens"], digest["completion_tokens"]) == (3 * 11, 3 * 7)
    asked = " ".join(str(request.body["messages"]) for request in server.requests)
    assert len(server.requests) == 3
    assert "harbour masters of small islands" in asked
    assert "Spring tides were too low." in asked


async def test_a_model_that_is_full_makes_the_digest_wait_as_long_as_it_said(
    redis_url: str, tmp_path: Path, repository: Path
) -> None:
    async with ModelServer() as server:
        server.script(*[Refuse(429, "Rate limit reached", headers={"retry-after": "300"})] * 3)
        settings = {"llm_base_url": server.base_url, "llm_model": server.model}
        async with service_on(redis_url, tmp_path / "data", **settings) as engine:
            task_id = await post(engine, "git.digest", url=str(repository))
            retrying = await event_of(engine, task_id, "task_retrying")
            record = await engine.tasks.get(task_id, user_id="ada")
            await engine.tasks.cancel(task_id, user_id="ada")
    assert retrying["error"]["type"] == "RemoteStatus"
    assert "Rate limit reached" in retrying["error"]["message"]
    assert record.status is Status.RETRY
    assert record.started_at is not None
    assert (datetime.fromisoformat(retrying["next_attempt_at"]) - record.started_at).total_seconds() >= 300
    assert workspaces_left(tmp_path / "data") == []


async def test_a_second_attempt_begins_anew_and_its_progress_does_not_go_back(
    redis_url: str, tmp_path: Path, repository: Path
) -> None:
    quick = task("git.digest", queue="git", retry=RetryPolicy(base_s=0.01))(repository_tasks.digest.function)
    async with ModelServer() as server:
        server.script(*[Refuse(500)] * 3)
        settings = {"llm_base_url": server.base_url, "llm_model": server.model}
        async with service_on(redis_url, tmp_path / "data", tasks=[quick], **settings) as engine:
            record = await run(engine, "git.digest", url=str(repository))
            events = await past_events(engine, record.task_id)
    assert (record.status, record.attempt) == (Status.SUCCESS, 2)
    percents = [event.data()["percent"] for event in events if event.type == "task_progress"]
    assert percents == sorted(percents)


async def test_a_cancelled_digest_leaves_no_workspace(redis_url: str, tmp_path: Path, repository: Path) -> None:
    async with ModelServer() as server:
        server.script(Silence(), Silence(), Silence())
        settings = {"llm_base_url": server.base_url, "llm_model": server.model}
        async with service_on(redis_url, tmp_path / "data", **settings) as engine:
            task_id = await post(engine, "git.digest", url=str(repository))
            await server.until(lambda fake: len(fake.requests) == 3)
            assert workspaces_left(tmp_path / "data") != []
            await engine.tasks.cancel(task_id, user_id="ada")
            record = await finished(engine, task_id)
    assert record.status is Status.CANCELLED
    assert workspaces_left(tmp_path / "data") == []


@pytest.mark.parametrize(
    ("task_name", "params", "kind", "words"),
    [
        ("git.digest", {"url": "{empty}"}, "PermanentError", "is empty: there is nothing to digest"),
        ("git.digest", {"url": "{tidewatch}", "ref": "nowhere"}, "RefNotFound", "nowhere"),
        ("git.clone", {"url": "{tidewatch}", "ref": "nowhere"}, "RefNotFound", "nowhere"),
        ("git.clone", {"url": "{missing}"}, "RepositoryNotFound", "missing"),
        ("git.clone", {"url": "ext::sh -c id"}, "UnsafeUrl", "ext::sh"),
        ("git.clone", {"url": "http://example.org/x.git"}, "UnsafeUrl", "http://example.org"),
        ("git.digest", {"url": "https://ada:secret@example.org/x.git"}, "UnsafeUrl", "credentials"),
    ],
)
async def test_what_cannot_be_cloned_fails_at_once_with_its_reason_and_leaves_nothing(
    redis_url: str, tmp_path: Path, repository: Path, task_name: str, params: dict[str, str], kind: str, words: str
) -> None:
    make_checkout(tmp_path / "empty")
    given = {name: value.format_map(_Paths(tmp_path)) for name, value in params.items()}
    async with service_on(redis_url, tmp_path / "data") as engine:
        record = await run(engine, task_name, **given)
    assert (record.status, record.attempt) == (Status.FAILURE, 1)
    assert record.error is not None
    assert (record.error.type, record.error.retryable) == (kind, False)
    assert words in record.error.message
    assert "secret" not in record.error.message
    assert workspaces_left(tmp_path / "data") == []


class _Paths(dict[str, str]):
    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root

    def __missing__(self, name: str) -> str:
        return str(self._root / name)


async def test_paths_are_refused_where_the_service_does_not_allow_them(
    redis_url: str, tmp_path: Path, repository: Path
) -> None:
    async with service_on(redis_url, tmp_path / "data", git_allow_file_urls=False) as engine:
        record = await run(engine, "git.digest", url=str(repository))
    assert record.error is not None
    assert record.error.type == "UnsafeUrl"


async def test_an_empty_repository_can_be_cloned(redis_url: str, tmp_path: Path) -> None:
    make_checkout(tmp_path / "empty")
    async with service_on(redis_url, tmp_path / "data") as engine:
        record = await run(engine, "git.clone", url=str(tmp_path / "empty"))
    assert (record.status, record.result["head"]) == (Status.SUCCESS, None)


class Recorder:
    """Stands where a task's context does, for what only reports progress."""

    def __init__(self) -> None:
        self.reported: list[tuple[float, float, str]] = []

    async def progress(self, current: float, total: float, label: str) -> None:
        self.reported.append((current, total, label))


async def test_gits_progress_is_reported_in_steps_that_only_grow() -> None:
    recorder: Any = Recorder()
    report = CloneProgress(recorder, CLONED)
    for phase, percent in [
        ("Counting objects", 100),
        ("Compressing objects", 50),
        ("Receiving objects", 0),
        ("Receiving objects", 1),
        ("Receiving objects", 60),
        ("Something new", 80),
        ("Receiving objects", 100),
        ("Resolving deltas", 100),
        ("Counting objects", 10),
        ("Updating files", 100),
    ]:
        await report(Progress(phase, percent))
    assert [current for current, _, _ in recorder.reported] == [2.0, 4.0, 6.0, 21.6, 32.0, 38.0, 40.0]
    assert recorder.reported[0] == (2.0, 100, "git: counting objects")
