"""What is left of a model's text once its reasoning and its control tokens are cut off."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"<\|(?:im_start|im_end|endoftext)\|>")
_OPEN, _CLOSE = "<think>", "</think>"


def final_answer(text: str) -> str | None:
    """The part after the reasoning, without white space around it.

    Only the last `</think>` counts: the opening tag often stands in the prompt.

    Returns:
        None where reasoning was opened and never closed, or nothing comes after it.
    """
    _, _, answer = text.rpartition(_CLOSE)
    if _OPEN in answer:
        return None
    return _CONTROL.sub("", answer).strip() or None
