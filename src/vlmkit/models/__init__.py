"""Whole models, composed of the parts, and generation with them."""
