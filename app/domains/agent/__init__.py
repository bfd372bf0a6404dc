"""Agents: calls of a model whose text streams as events."""
