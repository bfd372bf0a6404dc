"""Tasks that write briefs. Each line that awaits `ctx` may be the last that this worker runs of the task."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from app.clients.llm import Message, Source, render_sources
from app.domains.briefs.models import Brief, Section, Topics, WriteBrief, WriteSection
from app.domains.resources import model_of
from app.engine.approvals import ApprovalRequest
from app.engine.context import TaskContext
from app.engine.registry import task
from app.engine.waits import Call
from app.errors import PermanentError


class BriefRejected(PermanentError):
    """Whoever was asked did not want the brief to go out."""

    title = "Brief rejected"


@task("briefs.section", queue="agent")
async def section(ctx: TaskContext, params: WriteSection) -> Section:
    """Say what a document says about one point."""
    source = render_sources([Source("document", params.document)])
    reply = await model_of(ctx).complete([Message.user(f"{source}\n\nWhat does it say about this? {params.topic}")])
    return Section(topic=params.topic, text=reply.text)


@task("briefs.write", queue="agent")
async def write(ctx: TaskContext, params: WriteBrief) -> Brief:
    """Brief on a document: find its points, write them all at once, ask a person, wait out an embargo, publish."""

    async def find_topics() -> Topics:
        source = render_sources([Source("document", params.document)])
        asked = Message.user(f"{source}\n\nWhat are the {params.topics} most important points of {params.title}?")
        return (await model_of(ctx).structured([asked], Topics))[0]

    found = await ctx.step("topics", find_topics, returns=Topics)
    topics = found.topics[: params.topics]
    sections = await ctx.gather(
        [Call(section, WriteSection(topic=topic, document=params.document)) for topic in topics]
    )
    decision = await ctx.approval(
        ApprovalRequest(subject=f"Publish {params.title}?", payload={"sections": [item.text for item in sections]})
    )
    if not decision.approved:
        raise BriefRejected(f"{decision.decided_by} did not approve {params.title!r}: {decision.notes}")
    await ctx.sleep(timedelta(seconds=params.embargo_s))

    async def publish() -> datetime:
        await ctx.emit("brief_published", {"title": params.title, "sections": len(sections)})
        return datetime.now(UTC)

    published_at = await ctx.step("publish", publish, returns=datetime)
    return Brief(
        title=params.title, sections=sections, approved_by=decision.decided_by or "", published_at=published_at
    )
