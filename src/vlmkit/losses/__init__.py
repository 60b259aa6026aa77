"""Objectives. A loss returns numerator and denominator; the training step divides, once per step."""
