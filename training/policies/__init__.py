"""Policies: one file a model family."""
