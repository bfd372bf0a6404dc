"""Who is next in a queue: start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), kept in the scores of ready
tasks.

A ready task's score is its place, a small number below any time. A user's tasks stand one `cost` apart, which is 1 for
a user of weight 1 and a quarter of that for one of weight 4; the first task of a user who has none waiting stands where
the queue has come to, in front of all that others have waiting. So users take turns, by weight, and the order within a
user stays that in which the tasks came. The scripts read two numbers for a task and write one, however many wait.

What it holds to, and where it is done (`store/lua/lib.lua`, `place`; `claim.lua`, `promote` and `move_on`):

- A higher priority comes first whoever it belongs to: each priority is a band of its own, with turns of its own.
- A task gets its place when it becomes ready, and keeps it. A delayed task, one in its backoff and one of a stock arq
  client have a time as their score; the claim after that time gives them their place.
- What has begun before (a retry, what was handed back or lost with its worker, what resumes) does not stand behind the
  user's new tasks but in a second line of the user's, with the same distances. A user whose thousand tasks all fail
  holds up nobody's first one any more than with a thousand new ones.
- Tasks of stock arq clients are those of one user, `arq`, of weight 1. A stock arq worker reads the same scores from
  the lowest on, so it takes tasks in the same order; it does not note how far the queue has come, so that a new user
  then stands in front of all places, until a worker of ours claims.

What happens at failures: places are written by the script that makes the task ready, so that there is none without the
other. A queue in which nothing is ready forgets all places; that, and the loss of `ns:fair:<queue>`, costs nothing but
the turns so far. A task that is cancelled leaves its place empty: its user's later ones stay where they stand, and new
ones go behind them.

Nothing is measured by how long tasks take: a turn is a start, not a second.
"""

from __future__ import annotations

from collections.abc import Mapping

from app.store.scripts import COST_STEP


def costs_of(weights: Mapping[str, float]) -> dict[str, float]:
    """What a task of each user costs, 1 / weight, in whole steps of `COST_STEP` so that sums of it are exact; one step
    at least."""
    return {user: max(1, round(1 / weight / COST_STEP)) * COST_STEP for user, weight in weights.items()}
