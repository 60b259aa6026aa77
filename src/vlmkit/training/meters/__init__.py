"""What a run costs and where its time goes: FLOPs, peaks, step times, calls, surroundings."""
