"""Briefs of documents, approved by a person: the worked example of a task that waits."""
