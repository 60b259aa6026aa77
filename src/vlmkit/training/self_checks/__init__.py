"""Cheap checks of a running training: what would corrupt it without any error is measured, not assumed."""
