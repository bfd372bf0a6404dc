"""The deployment files name what exists: every queue, real settings, real commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.catalogue import LANES
from app.settings import Settings, load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(DEPLOY.rglob("*.y*ml"))


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text("utf8")))


def test_there_are_files_for_compose_and_kubernetes() -> None:
    assert {path.parent.name for path in FILES} == {"deploy", "kubernetes"}


@pytest.mark.parametrize("path", [*FILES, DEPLOY / "Dockerfile"], ids=lambda path: path.name)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(r"NIGHTSHIFT_([A-Z_]+)", path.read_text("utf8")))
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def test_the_worker_groups_of_compose_serve_every_queue_once() -> None:
    (compose,) = documents(DEPLOY / "compose.yml")
    groups = [service["environment"]["NIGHTSHIFT_QUEUES"] for service in compose["services"].values()
              if "NIGHTSHIFT_QUEUES" in service.get("environment", {})]  # fmt: skip
    assert queues_of(groups) == sorted(LANES)


def test_the_worker_groups_of_kubernetes_serve_every_queue_once() -> None:
    containers = [
        item["spec"]["template"]["spec"]["containers"][0] for item in documents(DEPLOY / "kubernetes/workers.yaml")
    ]
    groups = [env["value"] for item in containers for env in item["env"] if env["name"] == "NIGHTSHIFT_QUEUES"]
    assert queues_of(groups) == sorted(LANES)
    assert {tuple(item["command"]) for item in containers} == {("arq", "worker.WorkerSettings")}


def queues_of(groups: list[str]) -> list[str]:
    return sorted(name for group in groups for name, _ in load_settings(_env_file=None, queues=group).queues)
