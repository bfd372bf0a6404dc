"""The rules of the code's shape, read from the source. Each has a test, and a test that it catches a planted breach.

A module belongs to a room, the first part of its name after `app`; a module directly in `app` (and `worker.py`) that is
not part of the ground composes the rest: it may use every room, and no room may use it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

GROUND = {"settings", "errors", "telemetry"}
MAY_USE = {
    "settings": {"errors"},
    "errors": set(),
    "telemetry": {"settings", "errors"},
    "store": GROUND,
    "engine": GROUND | {"store"},
    "clients": GROUND,
    "domains": GROUND | {"engine", "clients"},
    "api": GROUND | {"engine", "domains"},
    "testing": GROUND | {"store", "engine"},
}
"""What each room may use besides itself."""

FOREIGN = {
    "engine": {"fastapi", "starlette", "uvicorn", "httpx"},
    "store": {"fastapi", "starlette", "uvicorn", "httpx"},
    "clients": {"redis", "arq", "hiredis", "fastapi", "starlette", "uvicorn"},
    "domains": {"redis", "arq", "hiredis", "fastapi", "starlette", "uvicorn", "httpx"},
    "testing": {"redis", "arq", "hiredis", "fastapi", "starlette", "uvicorn", "httpx"},
}
"""Libraries that a room must not know."""

ENGINE_ORDER = (
    {"job", "policy", "fairness"},
    {"gates"},
    {"registry", "letters"},
    {"queue", "events"},
    {"leases", "limits", "steps", "dead_letters", "schedules"},
    {"waits"},
    {"approvals", "flows"},
    {"attempt"},
    {"lane"},
    {"worker"},
)
"""The engine from the ground up. Each may use, directly or through modules not named here, what stands before it."""

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 50

KEY = re.compile(r"(ns|arq):")
LUA = re.compile(r"\bredis\.p?call\s*\(")
LUA_HEADER = re.compile(r"(--.*\n)*-- KEYS: .+\n(--.*\n)*-- ARGV: .+\n(--.*\n)*-- returns: .+\n")


@lru_cache(maxsize=1_000)
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


@dataclass(frozen=True)
class Import:
    line: int
    name: str
    typing_only: bool
    """Stands under `if TYPE_CHECKING`: the module knows the name, but does not load it."""


@dataclass(frozen=True)
class Module:
    root: Path
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return parsed(self.text)

    @property
    def where(self) -> str:
        return str(self.path.relative_to(self.root))

    @cached_property
    def name(self) -> str:
        parts = list(self.path.relative_to(self.root).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def room(self) -> str | None:
        """The room, or None for what composes the rest."""
        return room_of(self.name)

    @cached_property
    def imports(self) -> list[Import]:
        guarded = {id(node) for branch in self._typing_branches() for node in ast.walk(branch)}
        return [
            Import(node.lineno, name, id(node) in guarded)
            for node in ast.walk(self.tree)
            for name in self._imported(node)
        ]

    def _typing_branches(self) -> Iterator[ast.stmt]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                yield from node.body

    def _imported(self, node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if not isinstance(node, ast.ImportFrom):
            return []
        base = node.module or ""
        if node.level:
            package = self.name.split(".") if self.path.name == "__init__.py" else self.name.split(".")[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
        # `from app import engine` and `from app.store import keys` name modules, `from app.errors import X` does not.
        return [self._module(f"{base}.{alias.name}") or base for alias in node.names]

    def _module(self, name: str) -> str | None:
        path = self.root.joinpath(*name.split("."))
        return name if path.with_suffix(".py").exists() or path.is_dir() else None


def room_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "app" and len(parts) > 1 and parts[1] in MAY_USE else None


def modules(root: Path) -> list[Module]:
    return [Module(root, path) for path in sorted([*(root / "app").rglob("*.py"), *root.glob("worker.py")])]


def is_ours(name: str) -> bool:
    return name == "worker" or name.startswith("app.")


def imports_against_the_layers(root: Path) -> list[str]:
    return [
        f"{module.where}:{found.line}: {module.room} must not use {found.name}"
        for module in modules(root)
        if module.room is not None
        for found in module.imports
        if is_ours(found.name)
        if room_of(found.name) not in MAY_USE[module.room] | {module.room}
    ]


def domains_that_use_each_other(root: Path) -> list[str]:
    # Modules directly in `app/domains` are shared by the domains, and know none of them.
    return [
        f"{module.where}:{found.line}: uses the domain {found.name}"
        for module in modules(root)
        if module.room == "domains"
        for found in module.imports
        if (domain := domain_of(root, found.name)) and domain != domain_of(root, module.name)
    ]


def domain_of(root: Path, name: str) -> str | None:
    parts = name.split(".")
    if parts[:2] != ["app", "domains"] or len(parts) < 3:
        return None
    return parts[2] if (root / "app" / "domains" / parts[2]).is_dir() else None


def libraries_in_the_wrong_room(root: Path) -> list[str]:
    return [
        f"{module.where}:{found.line}: {module.room} must not know {found.name}"
        for module in modules(root)
        for found in module.imports
        if found.name.split(".")[0] in FOREIGN.get(module.room or "", ())
    ]


def engine_out_of_order(root: Path) -> list[str]:
    uses = {
        module.name.removeprefix("app.engine."): {
            found.name.removeprefix("app.engine.")
            for found in module.imports
            if found.name.startswith("app.engine.") and not found.typing_only
        }
        for module in modules(root)
        if module.name.startswith("app.engine.")
    }
    rank = {name: place for place, names in enumerate(ENGINE_ORDER) for name in names}
    return [
        f"app/engine/{name}.py: uses {used}, which does not stand before it"
        for name in sorted(rank.keys() & uses.keys())
        for used in sorted(named_within_reach(name, uses, rank))
        if rank[used] >= rank[name]
    ]


def named_within_reach(start: str, uses: dict[str, set[str]], rank: dict[str, int]) -> set[str]:
    """The modules of the order that `start` uses directly or through modules that have no place in the order."""
    reached: set[str] = set()
    ahead = list(uses[start])
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead.extend(() if name in rank else uses.get(name, ()))
    return reached & rank.keys()


def strings(module: Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            value = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            yield node.lineno, value


def keys_spelled_elsewhere(root: Path) -> list[str]:
    return [
        f"{module.where}:{line}: the key {text!r} is spelled outside app/store/keys.py"
        for module in modules(root)
        if module.name != "app.store.keys"
        for line, text in strings(module)
        if KEY.match(text)
    ]


def lua_elsewhere(root: Path) -> list[str]:
    inside = [
        f"{module.where}:{line}: Lua outside app/store/lua"
        for module in modules(root)
        for line, text in strings(module)
        if LUA.search(text)
    ]
    files = [path.relative_to(root) for path in sorted((root / "app").rglob("*.lua"))]
    return inside + [f"{path}: outside app/store/lua" for path in files if path.parent != Path("app/store/lua")]


def lua_without_header(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}: expected a header with -- KEYS:, -- ARGV: and -- returns:, in this order"
        for path in sorted((root / "app").rglob("*.lua"))
        if not LUA_HEADER.match(path.read_text())
    ]


def modules_too_long(root: Path) -> list[str]:
    return [
        f"{module.where}: {lines} lines, at most {MAX_MODULE_LINES}"
        for module in modules(root)
        if (lines := len(module.text.splitlines())) > MAX_MODULE_LINES
    ]


def functions_too_long(root: Path) -> list[str]:
    return [
        f"{module.where}:{node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"
        for module in modules(root)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def test_rooms_use_only_what_stands_below_them() -> None:
    assert imports_against_the_layers(ROOT) == []


def test_domains_do_not_use_each_other() -> None:
    assert domains_that_use_each_other(ROOT) == []


def test_libraries_stay_in_their_rooms() -> None:
    assert libraries_in_the_wrong_room(ROOT) == []


def test_the_engine_is_built_from_the_ground_up() -> None:
    assert engine_out_of_order(ROOT) == []


def test_keys_are_spelled_in_one_place() -> None:
    assert keys_spelled_elsewhere(ROOT) == []


def test_lua_is_in_files_of_the_store() -> None:
    assert lua_elsewhere(ROOT) == []


def test_lua_says_what_it_takes_and_returns() -> None:
    assert lua_without_header(ROOT) == []


def test_modules_are_short() -> None:
    assert modules_too_long(ROOT) == []


def test_functions_are_short() -> None:
    assert functions_too_long(ROOT) == []


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


KNOWN = {
    f"app/{name}": ""
    for name in (
        "errors.py",
        "main.py",
        "store/keys.py",
        "engine/__init__.py",
        "engine/job.py",
        "engine/queue.py",
        "engine/lane.py",
        "clients/http.py",
        "domains/shared.py",
        "domains/a/tasks.py",
        "domains/b/tasks.py",
        "api/tasks.py",
        "testing/harness.py",
    )
}
"""Modules to import in the planted trees."""

HEADER = "-- Does it.\n--\n-- KEYS: none\n-- ARGV: id\n--   more\n-- returns: 1\n"

BREACHES: list[tuple[Callable[[Path], list[str]], str, str]] = [
    (imports_against_the_layers, "app/api/x.py", "from app.store import keys"),
    (imports_against_the_layers, "app/api/x.py", "import app.clients.http"),
    (imports_against_the_layers, "app/clients/x.py", "def f():\n    from app.engine.queue import Queue"),
    (imports_against_the_layers, "app/clients/x.py", "from app.store.keys import QUEUE"),
    (imports_against_the_layers, "app/engine/x.py", "from ..domains.a import tasks"),
    (imports_against_the_layers, "app/engine/x.py", "from app.clients import http"),
    (imports_against_the_layers, "app/domains/a/x.py", "from app.api.tasks import route"),
    (imports_against_the_layers, "app/domains/a/x.py", "from app.store.keys import QUEUE"),
    (imports_against_the_layers, "app/api/x.py", "from app import main"),
    (imports_against_the_layers, "app/engine/x.py", "import worker"),
    (imports_against_the_layers, "app/errors.py", "import app.settings"),
    (imports_against_the_layers, "app/engine/x.py", "import app.testing.harness"),
    (imports_against_the_layers, "app/testing/x.py", "from app.api.tasks import route"),
    (domains_that_use_each_other, "app/domains/a/x.py", "from app.domains.b.tasks import f"),
    (domains_that_use_each_other, "app/domains/a/x.py", "from app.domains import b"),
    (domains_that_use_each_other, "app/domains/shared.py", "from .a import tasks"),
    (libraries_in_the_wrong_room, "app/clients/x.py", "import redis.asyncio"),
    (libraries_in_the_wrong_room, "app/clients/x.py", "from arq.connections import ArqRedis"),
    (libraries_in_the_wrong_room, "app/engine/x.py", "from fastapi import Request"),
    (engine_out_of_order, "app/engine/queue.py", "from app.engine.lane import Lane"),
    (engine_out_of_order, "app/engine/job.py", "from . import policy\nfrom .policy import x"),
    (keys_spelled_elsewhere, "app/engine/x.py", 'KEY = "ns:task:1"'),
    (keys_spelled_elsewhere, "app/engine/x.py", 'def f(id):\n    return f"arq:job:{id}"'),
    (keys_spelled_elsewhere, "app/engine/x.py", 'KEY = b"ns:task:1"'),
    (keys_spelled_elsewhere, "worker.py", 'KEY = "arq:queue"'),
    (lua_elsewhere, "app/store/scripts.py", "TEXT = \"return redis.call('TIME')\""),
    (lua_elsewhere, "app/engine/x.lua", HEADER),
    (lua_without_header, "app/store/lua/x.lua", "local x = 1\n" + HEADER),
    (lua_without_header, "app/store/lua/x.lua", HEADER.replace("-- returns: 1\n", "")),
    (lua_without_header, "app/store/lua/x.lua", HEADER.replace("-- ARGV: id\n", "")),
    (modules_too_long, "app/engine/x.py", "x = 1\n" * 401),
    (functions_too_long, "app/engine/x.py", "async def f():\n" + "    x = 1\n" * 50),
]


@pytest.mark.parametrize(("rule", "name", "text"), BREACHES)
def test_a_planted_breach_is_found(tmp_path: Path, rule: Callable[[Path], list[str]], name: str, text: str) -> None:
    plant(tmp_path, KNOWN | {"worker.py": "", "app/engine/policy.py": "", "app/settings.py": ""})
    assert rule(tmp_path) == []
    plant(tmp_path, {name: text})
    found = rule(tmp_path)
    assert len(found) >= 1
    assert all(line.startswith(name) for line in found)


def test_the_order_holds_through_modules_that_have_no_place_in_it(tmp_path: Path) -> None:
    plant(tmp_path, KNOWN | {"app/engine/between.py": "from app.engine.lane import Lane"})
    plant(tmp_path, {"app/engine/queue.py": "from app.engine import between"})
    assert engine_out_of_order(tmp_path) == ["app/engine/queue.py: uses lane, which does not stand before it"]


def test_what_is_allowed_is_not_found(tmp_path: Path) -> None:
    plant(
        tmp_path,
        KNOWN
        | {
            "worker.py": "from app import main\nfrom app.store import keys\nfrom app.engine import lane",
            "app/api/x.py": "from app.errors import X\nfrom app.domains.a import tasks\nimport fastapi",
            "app/domains/a/x.py": "from app.domains import shared\nfrom .tasks import f\nimport app.clients.http",
            "app/engine/queue.py": "if TYPE_CHECKING:\n    from app.engine.lane import L\nfrom app.engine import job",
            "app/store/keys.py": 'KEY = "ns:task:"',
            "app/store/lua/x.lua": HEADER + "return redis.call('TIME')\n",
            "app/engine/x.py": "x = 1\n" * 400,
            "app/engine/y.py": '"""About ns: and arq: keys."""\ndef f():\n' + "    x = 1\n" * 49,
        },
    )
    rules = {rule for rule, _, _ in BREACHES}
    assert [found for rule in rules for found in rule(tmp_path)] == []
