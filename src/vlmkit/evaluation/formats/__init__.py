"""Files of public benchmarks as tables."""
