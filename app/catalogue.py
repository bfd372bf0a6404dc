"""Which tasks, lanes and schedules there are: the one place that names all domains."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

from app.domains.agent import tasks as agent_tasks
from app.domains.briefs import tasks as brief_tasks
from app.domains.flows import tasks as flow_tasks
from app.domains.repositories import tasks as repository_tasks
from app.domains.system import tasks as system_tasks
from app.engine.lane import LaneSettings
from app.engine.registry import Catalogue
from app.engine.timetable import Schedule

LANES: dict[str, LaneSettings] = {
    "chat": LaneSettings(16),
    "agent": LaneSettings(4, prefetch=1),
    "git": LaneSettings(8),
    "sync": LaneSettings(4),
    "cicd": LaneSettings(4),
    "analyst": LaneSettings(2),
    "research": LaneSettings(4),
    "websearch": LaneSettings(4),
    "datadownload": LaneSettings(4),
    "articles": LaneSettings(2),
    "editor": LaneSettings(2),
    "documents": LaneSettings(4),
    "signals": LaneSettings(4),
    "crawl": LaneSettings(2),
    "default": LaneSettings(8),
}
"""The queues and how one worker runs them; `NIGHTSHIFT_QUEUES` chooses among them."""

SCHEDULES: tuple[Schedule, ...] = ()
"""The tasks that start by the clock, in every worker process."""

MODULES: tuple[ModuleType, ...] = (agent_tasks, brief_tasks, flow_tasks, repository_tasks, system_tasks)


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """All tasks of this service, checked."""
    return Catalogue.of_modules(MODULES, LANES)
