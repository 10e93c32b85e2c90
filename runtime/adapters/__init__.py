"""Adapters on disk: what is there, what it is called, and how more arrive."""
