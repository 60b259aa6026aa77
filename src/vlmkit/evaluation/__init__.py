"""What a run has learned, in numbers and pictures."""
