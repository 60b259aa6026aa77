"""The cases of `benchmarks.train_step`."""
