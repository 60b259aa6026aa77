"""Benchmarks that are made up from a seed: exact truth, no download, nothing of the real world."""
