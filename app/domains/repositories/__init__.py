"""Repositories: clones, and digests of what one is."""
