"""Temporal encodings: how a video is laid out in the sequence, and what carries its time."""
