"""What lets a long run go on, or end in a way from which it can."""
