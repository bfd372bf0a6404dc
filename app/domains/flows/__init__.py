"""Flows: tasks that clients put together in JSON, one after the other, side by side, or once for each item of a
list."""
