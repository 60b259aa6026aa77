"""The interface of lmms-eval 0.7."""
