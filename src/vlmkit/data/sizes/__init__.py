"""Sizes of all samples of a dataset, measured from headers."""
