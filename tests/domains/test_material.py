"""What of a repository is shown to a model: pure choices."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from app.clients.git import Commit, EntryKind, TreeEntry
from app.domains.repositories.material import (
    MAX_COMMIT_CHARS,
    MAX_DOCUMENTS_BYTES,
    MAX_FILE_BYTES,
    MAX_LANGUAGES,
    MAX_TREE_LINES,
    choose,
    commit_sources,
    languages,
    tree_source,
)


def entry(path: str, size: int | None = 100, kind: EntryKind = EntryKind.FILE) -> TreeEntry:
    return TreeEntry(path, kind, size)


def commit(subject: str, body: str = "", commit_id: str = "0123456789abcdef") -> Commit:
    return Commit(commit_id, "Ada", "ada@example.org", datetime(2026, 1, 1, tzinfo=UTC), subject, body, 1, 1, 0)


def test_readmes_come_first_then_what_lies_higher_and_legal_and_history_files_last() -> None:
    paths = ["docs/deep/er.md", "LICENSE.txt", "docs/guide.md", "sub/README.rst", "intro.md", "README.md", "CHANGES.md"]
    chosen = choose([entry(path) for path in paths])
    assert chosen.documents == (
        "README.md",
        "sub/README.rst",
        "intro.md",
        "docs/guide.md",
        "docs/deep/er.md",
        "CHANGES.md",
        "LICENSE.txt",
    )


@pytest.mark.parametrize("name", ["README", "readme.markdown", "ReadMe.MD", "README.rst"])
def test_a_readme_is_known_however_it_is_written(name: str) -> None:
    assert choose([entry(name)]).documents == (name,)


def test_build_files_are_known_in_any_case_at_the_top_and_one_below_and_are_no_documents() -> None:
    paths = ["requirements.txt", "Makefile", "app/package.json", "a/b/package.json", "main.py", "CMakeLists.txt"]
    chosen = choose([entry(path) for path in paths])
    assert chosen.build == ("CMakeLists.txt", "Makefile", "requirements.txt", "app/package.json")
    assert chosen.documents == ()


def test_links_submodules_and_empty_files_are_not_read() -> None:
    entries = [
        entry("README.md", kind=EntryKind.SYMLINK),
        entry("docs.md", None, EntryKind.SUBMODULE),
        entry("empty.md", 0),
        entry("setup.py", kind=EntryKind.EXECUTABLE),
    ]
    chosen = choose(entries)
    assert (chosen.documents, chosen.build) == ((), ("setup.py",))


def test_documents_stay_within_their_bound_and_a_large_one_counts_as_what_is_read_of_it() -> None:
    huge = 100 * MAX_FILE_BYTES
    entries = [entry(f"{number}.md", huge) for number in range(9)] + [entry("small.md", 10)]
    chosen = choose(entries).documents
    read = sum(min(huge if name != "small.md" else 10, MAX_FILE_BYTES) for name in chosen)
    assert read <= MAX_DOCUMENTS_BYTES
    # What still fits is taken, though something before it did not.
    assert chosen == ("0.md", "1.md", "small.md")


def test_languages_are_ranked_by_bytes_and_shares_are_of_what_is_known() -> None:
    entries = [
        entry("a.py", 600),
        entry("b.py", 100),
        entry("c.go", 300),
        entry("data.bin", 9_000),
        entry("d.rs", None),
    ]
    assert [(share.language, share.files, share.percent) for share in languages(entries)] == [
        ("Python", 2, 70.0),
        ("Go", 1, 30.0),
    ]


def test_no_more_languages_are_named_than_the_bound() -> None:
    names = ["a.py", "a.js", "a.go", "a.rs", "a.java", "a.rb", "a.php", "a.c"]
    assert len(languages([entry(name) for name in names])) == MAX_LANGUAGES
    assert languages([]) == []


def test_the_tree_shows_files_at_the_top_and_counts_what_lies_deeper() -> None:
    source = tree_source([entry("a/b/c.py"), entry("a/b/d/e.py"), entry("a/f.py"), entry("g/h/i.py"), entry("top.py")])
    assert source.name == "file tree"
    assert source.text.splitlines() == ["a/b/ (2 files)", "a/f.py", "g/h/ (1 file)", "top.py"]


def test_a_long_tree_says_how_much_is_left_out() -> None:
    lines = tree_source([entry(f"{number:03}.py") for number in range(MAX_TREE_LINES + 5)]).text.splitlines()
    assert len(lines) == MAX_TREE_LINES + 1
    assert lines[-1] == "and 5 more"


@pytest.mark.parametrize(
    ("subject", "text"),
    [("Fix it", "Fix it.\nBecause."), ("Fixed.", "Fixed.\nBecause."), ("Why?", "Why?\nBecause.")],
)
def test_a_commits_subject_is_a_sentence_of_its_own(subject: str, text: str) -> None:
    (source,) = commit_sources([commit(subject, "Because.")])
    assert (source.name, source.text) == ("commit 0123456789", text)


def test_a_commits_text_is_bounded() -> None:
    (source,) = commit_sources([commit("Subject", "x" * 10_000)])
    assert len(source.text) == MAX_COMMIT_CHARS
