"""Optimisation: Lightning modules, optimisers, callbacks, checks before a run."""
