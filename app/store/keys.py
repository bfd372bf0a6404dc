"""Every key that Nightshift writes, and the only place where one is spelled.

`arq:*` keys are arq 0.28's own, byte for byte, so that its clients, workers and tools keep working. `ns:*` keys are
ours. In the Lua scripts `K.<name>` stands for an entry of `PREFIXES` (see `store/assembly.py`): the key up to its id.

| key | type | holds |
|---|---|---|
| `arq:queue`, `arq:queue:<queue>` | zset | unfinished tasks of a queue; score: when to look at it next (Unix ms), or of
a ready one its place (below any time) |
| `arq:job:<id>` | string | the payload |
| `arq:in-progress:<id>` | string | the fencing token of the lease; expires with it |
| `arq:retry:<id>` | string | how many attempts have begun |
| `arq:result:<id>` | string | the result |
| `arq:abort` | zset | ids that arq clients want aborted |
| `ns:task:<id>` | hash | everything else of a task |
| `ns:steps:<id>` | hash | steps: `<number>` facts, `result:<number>`, and `wait:<number>` of a wait that has begun |
| `ns:pending:<id>` | set | what a waiting task still waits for: `task:<id>`, `event:<name>`, `approval:<id>` |
| `ns:waiters:<id>` | set | ids of the tasks that wait for the end of a task |
| `ns:untold` | zset | tasks that have ended and whose waiters are not all told, as `<failed>:<id>`; score: since when |
| `ns:inbox:<id>` | hash | events from outside that a task has not taken yet, see `deliver_event.lua` |
| `ns:approval:<id>` | hash | a person's approval that a task has asked for |
| `ns:approvals`, `ns:approvals:<index>` | zset | ids of approvals, as `<ms>:<id>`, all scores 0; of all, \
`user:<user>`: whom they concern by name, `scope:<scope>`: who has it may decide |
| `ns:open-approvals`, `ns:open-approvals:<index>` | zset | the same of those that are pending |
| `ns:approval-deadlines` | zset | ids of those that are pending; score: when they expire (Unix ms) |
| `ns:task-approvals:<id>` | set | ids of the approvals that a task has asked for |
| `ns:children:<id>` | set | ids of the tasks that a task started |
| `ns:events:<channel>` | list | events of a channel; the pub/sub channel of the same name carries them live |
| `ns:tasks`, `ns:tasks:<index>` | zset | ids by time of enqueue, as `<ms>:<id>`, all scores 0 |
| `ns:finished` | zset | finished ids; score: when to forget them (Unix ms) |
| `ns:dead`, `ns:dead:<user>` | zset | ids of dead letters, as `<ms>:<id>`, all scores 0 |
| `ns:dead-letter:<id>` | hash | a dead letter; once replayed, `user_id` and `replayed_as` |
| `ns:idempotency:<user>:<key>` | string | `<fingerprint> <id>` of the task made under the key |
| `ns:gate:key:<user>:<key>`, `ns:gate:group:<task>/<number>`, `ns:gate:fail-fast:<task>/<number>` | zset | unfinished \
tasks of a key, or of a group of children, in the order in which they came; score: their number |
| `ns:throttle:<user>:<key>` | string | from when on a key has all its starts again (Unix ms) |
| `ns:merged:<id>` | string | id of the task that a submission was merged into or has joined |
| `ns:sleepers:<queue>` | zset | workers with room that wait for the queue; score: since when |
| `ns:wake:<worker>` | list | what a worker should look at: queue names, `!<id>` for a cancelled task |
| `ns:woken:<worker>` | list | the message that has just woken a worker |
| `ns:fair:<queue>` | zset | places in a queue with ready tasks: `<priority>`: that of the last task taken; \
`<priority>n<user>`, `<priority>a<user>`: that of the user's next new task, and of the next that has begun before |
| `ns:counts:<queue>` | hash | `running`, `waiting`, `dead`, and `finished:<minute>` |
| `ns:paused` | set | paused queues |
| `ns:queues` | set | queues that ever held a task |
| `ns:workers`, `ns:worker:<id>` | zset, string | heartbeats |
| `ns:schedule:<name>` | hash | what is remembered of a schedule, see `app/engine/schedules.py` |
| `ns:stock-scan` | string | how far retention has looked for tasks that stock workers finished |
| `ns:quota:<key>` | hash | use of a quota by bucket, and the sums |
| `ns:quota-hold:<id>` | string | a reservation: bucket, requests, tokens |
| `ns:quota-slots:<key>` | zset | ids of reservations that hold a slot; score: end of its lease (Unix ms) |
| `ns:quota-line:<key>` | zset | ids of asks that wait; score: since when |
| `ns:quota-parked:<key>` | zset | places in line of tasks that were sent away; score: when they come back |
| `ns:quota-asks:<key>` | hash | what they ask for |
| `ns:quota-shrunk:<key>` | string | the share of the limits that a refusal left, and until when |
| `ns:ticket:<digest>` | string | a single-use WebSocket ticket |
"""

from __future__ import annotations

from typing import Final

DEFAULT_QUEUE: Final = "default"

QUEUE: Final = "arq:queue"
HOST_QUEUE: Final = "arq:host"
"""The queue of the stock worker that hosts the lanes; only its cron entries pass through it."""

PREFIXES: Final[dict[str, str]] = {
    "queue": QUEUE,
    "job": "arq:job:",
    "in_progress": "arq:in-progress:",
    "retry": "arq:retry:",
    "result": "arq:result:",
    "abort": "arq:abort",
    "task": "ns:task:",
    "children": "ns:children:",
    "steps": "ns:steps:",
    "pending": "ns:pending:",
    "waiters": "ns:waiters:",
    "untold": "ns:untold",
    "inbox": "ns:inbox:",
    "approval": "ns:approval:",
    "approvals": "ns:approvals",
    "open_approvals": "ns:open-approvals",
    "approval_deadlines": "ns:approval-deadlines",
    "task_approvals": "ns:task-approvals:",
    "events": "ns:events:",
    "tasks": "ns:tasks",
    "finished": "ns:finished",
    "dead": "ns:dead",
    "dead_letter": "ns:dead-letter:",
    "idempotency": "ns:idempotency:",
    "gate": "ns:gate:",
    "throttle": "ns:throttle:",
    "merged": "ns:merged:",
    "sleepers": "ns:sleepers:",
    "wake": "ns:wake:",
    "woken": "ns:woken:",
    "fair": "ns:fair:",
    "counts": "ns:counts:",
    "paused": "ns:paused",
    "queues": "ns:queues",
    "workers": "ns:workers",
    "worker": "ns:worker:",
    "quota": "ns:quota:",
    "quota_hold": "ns:quota-hold:",
    "quota_slots": "ns:quota-slots:",
    "quota_line": "ns:quota-line:",
    "quota_parked": "ns:quota-parked:",
    "quota_asks": "ns:quota-asks:",
    "quota_shrunk": "ns:quota-shrunk:",
    "ticket": "ns:ticket:",
    "stock_scan": "ns:stock-scan",
    "schedule": "ns:schedule:",
}

ABORT: Final = PREFIXES["abort"]
PAUSED: Final = PREFIXES["paused"]
QUEUES: Final = PREFIXES["queues"]
WORKERS: Final = PREFIXES["workers"]
ALL_TASKS: Final = PREFIXES["tasks"]
ALL_DEAD: Final = PREFIXES["dead"]


def host_health(hostname: str) -> str:
    """What `arq --check` looks for: one per host, so that a container is judged by its own worker."""
    return f"{HOST_QUEUE}:{hostname}:health-check"


def queue(name: str) -> str:
    """The sorted set of a queue. `default` is the queue that arq's clients use when they name none."""
    return QUEUE if name == DEFAULT_QUEUE else f"{QUEUE}:{name}"


def task(task_id: str) -> str:
    """The record of a task."""
    return PREFIXES["task"] + task_id


def job(task_id: str) -> str:
    """The payload of a task."""
    return PREFIXES["job"] + task_id


def result(task_id: str) -> str:
    """The result of a task, in arq's format."""
    return PREFIXES["result"] + task_id


def steps(task_id: str) -> str:
    """The completed steps of a task."""
    return PREFIXES["steps"] + task_id


def events(channel: str) -> str:
    """The stream of a channel, and the pub/sub channel of its live events."""
    return PREFIXES["events"] + channel


def wake(worker_id: str) -> str:
    """What a worker should look at."""
    return PREFIXES["wake"] + worker_id


def woken(worker_id: str) -> str:
    """The message that has just woken a worker."""
    return PREFIXES["woken"] + worker_id


def sleepers(name: str) -> str:
    """Workers that wait for a queue."""
    return PREFIXES["sleepers"] + name


def worker(worker_id: str) -> str:
    """The heartbeat of a worker."""
    return PREFIXES["worker"] + worker_id


def tasks_of_user(user_id: str) -> str:
    """Index of a user's tasks."""
    return f"{ALL_TASKS}:user:{user_id}"


def tasks_of_project(user_id: str, project_id: str) -> str:
    """Index of a user's tasks in a project."""
    return f"{ALL_TASKS}:project:{pair(user_id, project_id)}"


def tasks_of_tag(user_id: str, tag: str) -> str:
    """Index of a user's tasks with a tag."""
    return f"{ALL_TASKS}:tag:{pair(user_id, tag)}"


def dead_of_user(user_id: str) -> str:
    """Index of a user's dead letters."""
    return f"{ALL_DEAD}:{user_id}"


def dead_letter(task_id: str) -> str:
    """A dead letter."""
    return PREFIXES["dead_letter"] + task_id


def approval(approval_id: str) -> str:
    """An approval that a task has asked for."""
    return PREFIXES["approval"] + approval_id


def approvals(*, pending: bool) -> str:
    """Index of all approvals, or of those that are pending."""
    return PREFIXES["open_approvals" if pending else "approvals"]


def approvals_of_user(user_id: str, *, pending: bool) -> str:
    """Index of the approvals that a user has asked for or is named to decide."""
    return f"{approvals(pending=pending)}:user:{user_id}"


def approvals_of_scope(scope: str, *, pending: bool) -> str:
    """Index of the approvals that whoever has a scope may decide."""
    return f"{approvals(pending=pending)}:scope:{scope}"


def gate_of_key(user_id: str, key: str) -> str:
    """The name of the gate of a user's key."""
    return f"key:{pair(user_id, key)}"


def gate_of_group(parent_id: str, number: int, *, fail_fast: bool) -> str:
    """The name of the gate of the children that a task starts at a place in the row of its steps.

    That of a group that fails with its first failure closes with it.
    """
    return f"{'fail-fast' if fail_fast else 'group'}:{parent_id}/{number}"


def gate(name: str) -> str:
    """A gate."""
    return PREFIXES["gate"] + name


def ticket(digest: str) -> str:
    """A WebSocket ticket, by the SHA-256 of its value."""
    return PREFIXES["ticket"] + digest


def pair(first: str, second: str) -> str:
    """Two names that may contain any character, joined so that no other two names give the same text."""
    return f"{len(first.encode())}:{first}:{second}"
