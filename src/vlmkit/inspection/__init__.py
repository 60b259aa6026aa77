"""A packed micro-batch as a page: what the model gets, for people to look at."""
