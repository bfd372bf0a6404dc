"""What the demo shows: as rich text with a live bar on a terminal, as plain lines anywhere else."""

from __future__ import annotations

import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

SECTIONS = {
    "what_it_is": "What it is",
    "how_it_is_built": "How it is built",
    "what_changed_lately": "What changed lately",
}
OFFLINE = "offline"
# Texts come from other people's repositories: control characters move the cursor, marks of direction reorder a line.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]+")

Show = Callable[[float, str], None]


def clean(text: str) -> str:
    """The text in one line, without characters that would act on a terminal."""
    return _UNPRINTABLE.sub(" ", text).strip()


def seconds(duration_s: float) -> str:
    """A duration for people."""
    return f"{duration_s * 1000:.0f} ms" if duration_s < 1 else f"{duration_s:.2f} s"


@dataclass(frozen=True, slots=True)
class Signposts:
    """Commands and paths, as they are typed from where the person is."""

    task_id: str
    run: str
    nightshift: str
    data_dir: str
    log: str
    readme: str


class Page(ABC):
    """The demo's text. Subclasses decide how a heading, a statement and progress look."""

    def opening(self, url: str) -> None:
        """What is about to happen."""
        self.heading("Nightshift demo")
        self.line("A real task through the real service: posted over HTTP, run by an arq worker,")
        self.line("followed over a WebSocket. It reads a repository and says what it is.")
        self.line("")
        self.pair("repository", clean(url))

    def posted(self, service_url: str, task_id: str, start_s: float) -> None:
        """The service is up and has the task."""
        self.pair("service", f"{service_url} (API, worker and embedded server, up in {seconds(start_s)})")
        self.pair("task", f"git.digest {task_id}")
        self.line("")

    def digest(self, digest: Mapping[str, Any]) -> None:
        """The result of the task."""
        self._facts(digest["facts"])
        for name, title in SECTIONS.items():
            self.heading(title)
            for statement in digest[name]:
                self.statement(clean(statement["text"]), clean(statement["source"]))
            if not digest[name]:
                self.line("  The material says nothing about it.")
        self._model(digest)

    def _facts(self, facts: Mapping[str, Any]) -> None:
        commits, documents = facts["commits_read"], len(facts["documents_read"])
        more = " or more" if facts["files_truncated"] else ""
        self.heading("The repository")
        self.pair("head", f"{facts['head'][:12]} ({clean(facts['branch'] or 'no branch')})")
        self.pair("files", f"{facts['files']:,}{more}; read: {documents} of them, and the newest {commits} commits")
        shares = [f"{share['language']} {share['percent']:g} %" for share in facts["languages"]]
        self.pair("languages", ", ".join(shares) or "none that is known")

    def _model(self, digest: Mapping[str, Any]) -> None:
        self.heading("The model")
        if digest["model"] == OFFLINE:
            self.line("  offline: no language model is configured, so every statement above is a quote that a small")
            self.line("  built-in ranking picked from the file or commit named beside it. To have a model write it:")
            self.line("    export NIGHTSHIFT_LLM_BASE_URL=https://host/v1    any OpenAI-compatible server")
            self.line(
                "    export NIGHTSHIFT_LLM_MODEL=name                  and NIGHTSHIFT_LLM_API_KEY if it wants one"
            )
        else:
            tokens = f"{digest['prompt_tokens']:,} tokens in, {digest['completion_tokens']:,} out"
            self.line(f"  {clean(digest['model'])} wrote the statements above from the material ({tokens}).")

    def times(self, start_s: float, wait_s: float, parts: Mapping[str, float], total_s: float) -> None:
        """How long everything took."""
        self.heading("How long it took")
        self.pair("start", f"{seconds(start_s)} for embedded server, worker and API")
        self.pair("in the queue", seconds(wait_s))
        self.pair("clone", seconds(parts["clone_s"]))
        self.pair("read", seconds(parts["read_s"]))
        self.pair("model", seconds(parts["model_s"]))
        self.pair("total", f"{seconds(total_s)}, from the command to the result")

    def further(self, to: Signposts) -> None:
        """Where to go from here."""
        self.heading("How to look further")
        self.line("  Everything has stopped. The task is kept; to look at it again:")
        self.line(f"    NIGHTSHIFT_DATA_DIR={shlex.quote(to.data_dir)} {to.run} serve")
        self.line(f"    curl http://127.0.0.1:8000/api/tasks/{to.task_id}")
        self.line(f"    curl http://127.0.0.1:8000/api/tasks/{to.task_id}/events")
        self.line("  Your own service: dashboard at http://127.0.0.1:8000/, its API described at /docs:")
        self.line(f"    {to.run} serve")
        self.line(f"    {to.nightshift} submit system.sleep seconds=5 steps=10 --watch")
        self.line(f"    {to.nightshift} --help")
        self.line(f"  Another repository:  {to.run} demo https://github.com/redis/redis-py")
        self.line(f"  How to write a task: {to.readme}")
        self.line(f"  Log of this run:     {to.log}")

    @abstractmethod
    def line(self, text: str) -> None:
        """A line of text."""

    @abstractmethod
    def heading(self, text: str) -> None:
        """A title, with an empty line before it."""

    @abstractmethod
    def pair(self, name: str, value: str) -> None:
        """A name and its value."""

    @abstractmethod
    def statement(self, text: str, source: str) -> None:
        """A statement and what it rests on."""

    @abstractmethod
    @contextmanager
    def following(self) -> Iterator[Show]:
        """Inside the block, the function that it gives shows percent and label."""


class PlainPage(Page):
    """Lines without any control character, for files, pipes and CI."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def line(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()

    def heading(self, text: str) -> None:
        self.line(f"\n{text}")

    def pair(self, name: str, value: str) -> None:
        self.line(f"  {name:<13} {value}")

    def statement(self, text: str, source: str) -> None:
        self.line(f"  - {text} [{source}]")

    @contextmanager
    def following(self) -> Iterator[Show]:
        shown: set[str] = set()

        def show(percent: float, label: str) -> None:
            if label not in shown:
                shown.add(label)
                self.line(f"  {percent:3.0f} %  {clean(label)}")

        yield show


class RichPage(Page):
    """Colours, wrapped statements, and one live bar."""

    def __init__(self, console: Any) -> None:
        self._console = console

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def heading(self, text: str) -> None:
        self._console.print(f"\n{text}", style="bold cyan", markup=False, highlight=False)

    def pair(self, name: str, value: str) -> None:
        from rich.text import Text

        self._print_hanging(Text(f"{name:<13}", style="dim"), 16, Text(value))

    def statement(self, text: str, source: str) -> None:
        from rich.text import Text

        bullet = "-" if self._console.options.ascii_only else "•"
        self._print_hanging(Text(bullet), 4, Text.assemble(text, "  ", (source, "green")))

    def _print_hanging(self, head: Any, indent: int, body: Any) -> None:
        from rich.table import Table

        grid = Table.grid(padding=0)
        grid.add_column(width=2)
        grid.add_column(width=indent - 2)
        grid.add_column(overflow="fold")
        grid.add_row("", head, body)
        self._console.print(grid, highlight=False)

    @contextmanager
    def following(self) -> Iterator[Show]:
        with live_bar(self._console) as show:
            show(0.0, "in the queue")
            yield show


@contextmanager
def live_bar(console: Any = None) -> Iterator[Show]:
    """A bar on the terminal; the function that it gives sets percent and label."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(" "),
        BarColumn(bar_width=32),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[label]}", markup=False, style="dim"),
    )
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress:
        bar = progress.add_task("task", total=100.0, label="")
        yield lambda percent, label: progress.update(bar, completed=percent, label=clean(label))


def page_for(out: TextIO) -> Page:
    """Rich on a terminal, plain elsewhere."""
    if not out.isatty():
        return PlainPage(out)
    from rich.console import Console

    console = Console(file=out)
    return PlainPage(out) if console.is_dumb_terminal else RichPage(console)
