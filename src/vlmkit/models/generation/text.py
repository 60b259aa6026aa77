"""Text that grows by tokens: whole characters only, and nothing that may become a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are not a whole character, yet or ever."""


class GrowingText:
    """Decodes tokens as they arrive.

    Attributes:
        text: decoded so far; up to the stop string, once there was one.
        stopped_by: that stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        """Begin with nothing.

        Args:
            tokenizer: decodes; special tokens are left out.
            stop: strings before which the text ends; none of them empty.
        """
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []  # since the token before the last whole character
        self._decoded = ""  # what those were at that time
        self._released = 0
        self._closed = False
        self.text = ""
        self.stopped_by: str | None = None

    def add(self, token: int) -> bool:
        """Take a token; whether a stop string is now complete."""
        self._ids.append(token)
        grown = self._decode(self._ids)
        if grown.endswith(UNFINISHED):
            return False
        new = grown[len(self._decoded) :]
        # a token is decoded behind the one before it: some decoders drop a space at the very beginning
        self._ids = self._ids[-1:]
        self._decoded = self._decode(self._ids)
        if self._decoded.endswith(UNFINISHED) or not grown.endswith(self._decoded):
            self._ids, self._decoded = [], ""
        return self._grow(new)

    def close(self) -> None:
        """Take what is left of an unfinished character; nothing more is held back."""
        if not self._closed and self.stopped_by is None:
            self._grow(self._decode(self._ids)[len(self._decoded) :])
        self._closed = True

    def release(self) -> str:
        """What may be shown and has not been released before."""
        held = 0 if self._closed or self.stopped_by is not None else self._held()
        end = len(self.text) - held
        new = self.text[self._released : end]
        self._released = end
        return new

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for count in range(min(longest, len(self.text)), 0, -1):
            tail = self.text[-count:]
            if any(len(stop) > count and stop.startswith(tail) for stop in self._stop):
                return count
        return 0

    def _grow(self, new: str) -> bool:
        known = len(self.text)
        self.text += new
        found = []
        for stop in self._stop:
            at = self.text.find(stop, max(known - len(stop) + 1, 0))
            if at >= 0:
                found.append((at, -len(stop), stop))
        if not found:
            return False
        at, _, self.stopped_by = min(found)
        self.text = self.text[:at]
        return True

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)
