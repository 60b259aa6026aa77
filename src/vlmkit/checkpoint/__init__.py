"""Weights on disk: the published Qwen3-VL layout in and out."""
