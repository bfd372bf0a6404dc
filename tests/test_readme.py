"""The README names what exists: its Python can be compiled and imports what there is, its links and commands lead
somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from app.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    words = (shlex.split(line.removeprefix("$ "), comments=True) for line in lines if "nightshift " in line)
    return [line[1:] for line in words if line and line[0] == "nightshift"]


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.split("\n", 1)[0][:40])
def test_a_block_compiles_and_imports_what_exists(block: str) -> None:
    tree = compile(block, "README.md", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "app":
            module = importlib.import_module(node.module or "")
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            # `from app.engine import wire` names a module that nobody may have imported yet.
            for name in missing:
                importlib.import_module(f"{node.module}.{name}")


def test_there_are_blocks_of_python_and_commands() -> None:
    assert len(blocks("python")) > 5
    assert len(commands()) > 10


def test_every_command_exists() -> None:
    for words in commands():
        group = app
        for word in words:
            if word.startswith("-") or word not in group:
                break
            group = group[word]
        assert group is not app, words


def test_links_lead_to_what_is_there() -> None:
    headings = {anchor(heading) for heading in re.findall(r"^#+ (.*)$", README, re.M)}
    targets = re.findall(r"\]\(([^)\s]+)\)", README)
    assert {target[1:] for target in targets if target.startswith("#")} <= headings
    files = {target for target in targets if not target.startswith(("#", "http"))}
    assert all((ROOT / target).exists() for target in files)


def test_the_table_of_contents_names_every_chapter() -> None:
    chapters = re.findall(r"^## (.*)$", README, re.M)
    contents = README.partition("\n## ")[0]
    assert [chapter for chapter in chapters if f"](#{anchor(chapter)})" not in contents] == []


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:app|tests|deploy)/[\w/.]+)`", README))))
def test_paths_that_are_named_exist(path: str) -> None:
    assert (ROOT / path).exists()
