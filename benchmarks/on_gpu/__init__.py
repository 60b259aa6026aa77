"""The cases of `benchmarks.gpu`."""
