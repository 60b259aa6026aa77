"""Qwen3 decoders, dense and mixture of experts."""
