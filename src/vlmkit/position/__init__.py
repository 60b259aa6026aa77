"""Position schemes: what angle a (time, height, width) id becomes."""
