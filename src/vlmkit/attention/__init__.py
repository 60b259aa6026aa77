"""Attention over packed tokens, one back end per file."""
