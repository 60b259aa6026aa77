"""What an answer is worth: one class per measure, all with per-sample scores and an interval."""
