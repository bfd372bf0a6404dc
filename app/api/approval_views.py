"""Approvals as people see them, and what they decide."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

from app.api.dependencies import Cursor, Limit
from app.api.principal import Principal
from app.engine.approval_desk import MAX_NOTES_CHARS, Approval, Verdict
from app.engine.approvals import ApprovalStatus

_EXAMPLE: JsonDict = {
    "approval_id": "5f0c1d2e3b4a59687766554433221100",
    "task_id": "019ab3f0c1d2004f8b6d4e1c9a7f0325",
    "task": "reports.publish",
    "user_id": "ada",
    "project_id": None,
    "status": "PENDING",
    "subject": "Publish the report?",
    "deciders": ["eve"],
    "scope": None,
    "may_decide": True,
    "may_withdraw": False,
    "created_at": "2026-11-21T20:15:00.120Z",
    "expires_at": "2026-11-22T20:15:00.120Z",
    "decided_at": None,
    "decided_by": None,
    "notes": None,
}


class ApprovalItem(BaseModel):
    """What a task asks a person, as lists show it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    approval_id: str
    task_id: str = Field(description="The task that asks.")
    task: str = Field(description="Its type.")
    user_id: str = Field(description="Whose task it is.")
    project_id: str | None
    status: ApprovalStatus
    subject: str
    deciders: list[str] = Field(description="Users who may decide.")
    scope: str | None = Field(description="Whoever has it may decide.")
    may_decide: bool = Field(description="Whether the caller may decide, once and before it expires.")
    may_withdraw: bool = Field(description="Whether the caller may take it back while it is pending.")
    created_at: AwareDatetime
    expires_at: AwareDatetime
    decided_at: AwareDatetime | None = Field(description="When it was decided, expired or was withdrawn.")
    decided_by: str | None = Field(description="Who decided or withdrew it; null where its end did.")
    notes: str | None = Field(description="What whoever decided had to say.")


class ApprovalView(ApprovalItem):
    """What a task asks a person, whole."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{**_EXAMPLE, "payload": {"url": "https://…"}, "edits": None, "edits_schema": None}]
        }
    )

    payload: dict[str, Any] = Field(description="What one needs to know to decide.")
    edits: dict[str, Any] | None = Field(description="What whoever decided wants otherwise.")
    edits_schema: dict[str, Any] | None = Field(description="JSON schema of the edits; null: any object.")


class ApprovalList(BaseModel):
    """A page of approvals, newest first."""

    items: list[ApprovalItem]
    next_cursor: str | None = Field(description="For the next page; null at the end. A page before it may be short.")


def _upper(value: Any) -> Any:
    # A query parameter that is there without a value does not narrow.
    return (value.upper() or None) if isinstance(value, str) else value


class ApprovalQuery(BaseModel):
    """What a list of approvals is narrowed to."""

    model_config = ConfigDict(extra="forbid")

    status: Annotated[ApprovalStatus | None, BeforeValidator(_upper)] = None
    cursor: Cursor = ""
    limit: Limit = 50


class DecisionRequest(BaseModel):
    """The answer."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"approved": True, "notes": "with a shorter title"}]}
    )

    approved: bool = Field(strict=True)
    notes: str | None = Field(None, max_length=MAX_NOTES_CHARS, description="For the task, and for the record.")
    edits: dict[str, Any] | None = Field(None, description="As `edits_schema` says, up to 32 KiB.")

    def verdict(self, key: str | None) -> Verdict:
        """What the engine takes."""
        return Verdict(self.approved, self.notes or "", self.edits, key)


def item_view(approval: Approval, caller: Principal) -> dict[str, Any]:
    """An approval as `ApprovalItem` describes it."""
    return {
        "approval_id": approval.approval_id,
        "task_id": approval.task_id,
        "task": approval.task,
        "user_id": approval.user_id,
        "project_id": approval.project_id,
        "status": approval.status,
        "subject": approval.subject,
        "deciders": approval.deciders,
        "scope": approval.scope,
        "may_decide": approval.may_be_decided_by(caller),
        "may_withdraw": approval.may_be_withdrawn_by(caller),
        "created_at": approval.created_at,
        "expires_at": approval.expires_at,
        "decided_at": approval.decided_at,
        "decided_by": approval.decided_by,
        "notes": approval.notes,
    }


def approval_view(approval: Approval, caller: Principal) -> dict[str, Any]:
    """An approval as `ApprovalView` describes it."""
    rest = {"payload": approval.payload, "edits": approval.edits, "edits_schema": approval.edits_schema}
    return item_view(approval, caller) | rest
