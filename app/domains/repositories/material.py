"""What of a repository is shown to the model: pure choices over its tree and its history."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from app.clients.git import Commit, EntryKind, TreeEntry
from app.clients.llm import Source
from app.domains.repositories.models import LanguageShare

MAX_FILE_BYTES = 64 * 1024
MAX_DOCUMENTS_BYTES = 160 * 1024
MAX_BUILD_BYTES = 64 * 1024
MAX_TREE_LINES = 60
MAX_LANGUAGES = 6
MAX_COMMIT_CHARS = 1_500

BUILD_FILES = frozenset(
    {
        *(
            "pyproject.toml",
            "setup.py",
            "setup.cfg",
            "requirements.txt",
            "tox.ini",
            "noxfile.py",
            "manage.py",
            "worker.py",
        ),
        *("package.json", "tsconfig.json", "cargo.toml", "go.mod", "pom.xml", "build.gradle", "build.gradle.kts"),
        *("gemfile", "composer.json", "makefile", "justfile", "cmakelists.txt", "meson.build"),
        *("dockerfile", "docker-compose.yml", "compose.yml", "compose.yaml"),
    }
)
DOCUMENT_SUFFIXES = frozenset({".md", ".rst", ".txt", ".adoc"})
LANGUAGES = {
    ".py": "Python", ".js": "JavaScript", ".mjs": "JavaScript", ".ts": "TypeScript", ".tsx": "TypeScript",
    ".jsx": "JavaScript", ".go": "Go", ".rs": "Rust", ".java": "Java", ".kt": "Kotlin", ".rb": "Ruby", ".php": "PHP",
    ".c": "C", ".h": "C", ".cc": "C++", ".cpp": "C++", ".hpp": "C++", ".cs": "C#", ".swift": "Swift", ".lua": "Lua",
    ".sh": "Shell", ".sql": "SQL", ".html": "HTML", ".css": "CSS", ".scala": "Scala", ".ex": "Elixir", ".hs": "Haskell",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choice:
    """Paths to read, the most telling first."""

    documents: tuple[str, ...]
    build: tuple[str, ...]


def choose(entries: Sequence[TreeEntry]) -> Choice:
    """Which files say what the repository is, and which how it is built."""
    files = [entry for entry in entries if entry.kind in (EntryKind.FILE, EntryKind.EXECUTABLE) and entry.size]
    documents = sorted((entry for entry in files if _is_document(entry.path)), key=_document_rank)
    build = sorted((entry for entry in files if _is_build(entry.path)), key=lambda entry: (_depth(entry), entry.path))
    return Choice(_within(documents, MAX_DOCUMENTS_BYTES), _within(build, MAX_BUILD_BYTES))


def languages(entries: Iterable[TreeEntry]) -> list[LanguageShare]:
    """The languages of the files, by their bytes, the largest first."""
    sizes: dict[str, int] = defaultdict(int)
    counts: dict[str, int] = defaultdict(int)
    for entry in entries:
        language = LANGUAGES.get(PurePosixPath(entry.path).suffix.lower())
        if language and entry.size:
            sizes[language] += entry.size
            counts[language] += 1
    total = sum(sizes.values())
    ranked = sorted(sizes, key=lambda name: (-sizes[name], name))[:MAX_LANGUAGES]
    return [
        LanguageShare(language=name, files=counts[name], percent=round(100 * sizes[name] / total, 1)) for name in ranked
    ]


def tree_source(entries: Sequence[TreeEntry]) -> Source:
    """The tree as a source: top-level files, and directories two levels down with how many files they hold."""
    counts: dict[str, int] = defaultdict(int)
    for entry in entries:
        parts = PurePosixPath(entry.path).parts
        counts["/".join(parts[:2]) + "/" if len(parts) > 2 else entry.path] += 1
    lines = [f"{path} ({_files(count)})" if path.endswith("/") else path for path, count in sorted(counts.items())]
    rest = [f"and {len(lines) - MAX_TREE_LINES} more"] if len(lines) > MAX_TREE_LINES else []
    return Source("file tree", "\n".join(lines[:MAX_TREE_LINES] + rest))


def commit_sources(commits: Sequence[Commit]) -> list[Source]:
    """Each commit as a source of its own, named after its id."""
    return [
        Source(f"commit {commit.id[:10]}", f"{_sentence(commit.subject)}\n{commit.body}"[:MAX_COMMIT_CHARS])
        for commit in commits
    ]


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _sentence(subject: str) -> str:
    # So that a subject and the body's first sentence are two.
    return subject if subject.endswith((".", "!", "?")) else f"{subject}."


def _is_document(path: str) -> bool:
    name = PurePosixPath(path)
    return (name.suffix.lower() in DOCUMENT_SUFFIXES and name.name.lower() not in BUILD_FILES) or _is_readme(path)


def _is_readme(path: str) -> bool:
    return PurePosixPath(path).name.lower().startswith("readme")


def _is_build(path: str) -> bool:
    return PurePosixPath(path).name.lower() in BUILD_FILES and len(PurePosixPath(path).parts) <= 2


def _depth(entry: TreeEntry) -> int:
    return len(PurePosixPath(entry.path).parts)


def _document_rank(entry: TreeEntry) -> tuple[int, int, str]:
    """READMEs first, then what lies higher; lists of requirements and changes last."""
    name = PurePosixPath(entry.path).name.lower()
    late = name.startswith(("changelog", "changes", "history", "license", "requirements", "authors"))
    return (0 if _is_readme(entry.path) else 2 if late else 1, _depth(entry), entry.path)


def _within(entries: Iterable[TreeEntry], bound: int) -> tuple[str, ...]:
    chosen: list[str] = []
    for entry in entries:
        size = min(entry.size or 0, MAX_FILE_BYTES)
        if size <= bound:
            chosen.append(entry.path)
            bound -= size
    return tuple(chosen)
