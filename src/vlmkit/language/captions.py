"""How a caption reaches the text tower: in the tokens of the data, or written anew in the tower's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from tokenizers import Tokenizer

from vlmkit.errors import CheckpointError


class Caption(NamedTuple):
    """Tokens for the text tower; none: there is nothing to match."""

    ids: tuple[int, ...]
    is_cut: bool  # the caption was longer than the tower reads


class CaptionTokens(Protocol):
    """Makes the text tower's input of a sample's scored tokens."""

    def __call__(self, scored: Sequence[int]) -> Caption:
        """Convert the scored tokens of one sample, in order."""
        ...


class OwnTokens:
    """The scored tokens as they are, end-of-turn marker included; the tower shares the vocabulary."""

    def __init__(self, max_tokens: int = 64) -> None:
        self.max_tokens = max_tokens

    def __call__(self, scored: Sequence[int]) -> Caption:
        """See `CaptionTokens`."""
        return Caption(tuple(scored[: self.max_tokens]), len(scored) > self.max_tokens)


class Retokenized:
    """The caption as text, in the tokens of a published SigLIP tower.

    In lower case, cut and padded to one length, padding attended: so SigLIP-2 was trained.
    """

    def __init__(self, tokenizer: Tokenizer, folder: str, max_tokens: int = 64) -> None:
        """Read the tower's tokenizer.

        Args:
            tokenizer: of the data.
            folder: with the tower's `tokenizer.json`.
            max_tokens: length of every caption.

        Raises:
            CheckpointError: there is no such file, or it knows no `<pad>`.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"captions: there is no {path}")
        self.tokenizer, self.tower = tokenizer, Tokenizer.from_file(str(path))
        pad_id = self.tower.token_to_id("<pad>")
        if pad_id is None:
            raise CheckpointError(
                f"captions: {path} knows no <pad>, with which SigLIP fills captions"
            )
        self.tower.no_truncation()
        self.tower.no_padding()
        self.pad_id, self.max_tokens = pad_id, max_tokens

    def __call__(self, scored: Sequence[int]) -> Caption:
        """See `CaptionTokens`."""
        text = self.tokenizer.decode(list(scored), skip_special_tokens=True).strip().lower()
        if not text:
            return Caption((), False)
        ids = self.tower.encode(text).ids
        padding = [self.pad_id] * (self.max_tokens - len(ids))
        return Caption(tuple([*ids, *padding][: self.max_tokens]), len(ids) > self.max_tokens)
