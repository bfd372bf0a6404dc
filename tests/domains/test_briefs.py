"""Briefs: written from the document, let out by a person, after an embargo."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from app.domains.briefs.models import Brief, WriteBrief
from app.domains.briefs.tasks import section, write
from app.domains.resources import open_resources
from app.engine.approval_desk import Verdict
from app.engine.lending import Resources
from app.settings import load_settings
from app.testing import Later, check_replay_safe, run_task
from tests.clients.llm_support import UNSET

DOCUMENT = """\
The harbour is open at high tide only. Ships wait outside until the master of the harbour lets them in.
A ship that draws more than four metres needs a pilot. The pilot comes on board two miles out.
In a storm nobody comes in. The light on the mole is red then.
"""
ASKED = WriteBrief(title="the harbour", document=DOCUMENT, topics=2, embargo_s=3_600)
SUBJECT = "Publish the harbour?"


@pytest.fixture
async def resources() -> AsyncIterator[Resources]:
    async with open_resources(load_settings(_env_file=None, **UNSET)) as opened:
        yield opened


async def test_a_brief_goes_out_after_its_approval_and_its_embargo(resources: Resources) -> None:
    decisions: dict[str, Any] = {SUBJECT: Later(timedelta(hours=5), True)}
    run = await run_task(write, ASKED, tasks=[section], resources=resources, decisions=decisions)
    brief = Brief.model_validate(run.result, from_attributes=True)
    assert run.elapsed == timedelta(hours=6)
    assert len(brief.sections) == 2
    assert all(item.topic in DOCUMENT and item.text for item in brief.sections)
    assert [event.type for event in run.events if event.type == "brief_published"] == ["brief_published"]


async def test_a_brief_that_is_rejected_fails_with_the_reason(resources: Resources) -> None:
    decisions = {SUBJECT: Verdict(False, notes="too short")}
    run = await run_task(write, ASKED, tasks=[section], resources=resources, decisions=decisions)
    assert run.error is not None
    assert run.error.type == "BriefRejected"
    assert "too short" in run.error.message


async def test_its_worker_may_die_anywhere(resources: Resources) -> None:
    await check_replay_safe(write, ASKED, tasks=[section], resources=resources, decisions={SUBJECT: True})
