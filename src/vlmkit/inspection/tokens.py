"""Token ids -> what people can read: white space visible, bytes of cut characters named."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Tokenizer

from vlmkit.data.tokenizer import bytes_of_piece

SPACE, NEWLINE, TAB = "·", "↵", "⇥"


@dataclass(frozen=True)
class Glyphs:
    """Consecutive tokens that make whole characters together; nearly always a single one.

    Attributes:
        first: place of the first token in what was split.
        count: tokens.
        text: of all of them; None where the bytes are no text.
        is_special: a token that was added to the vocabulary, such as `<|im_end|>`.
    """

    first: int
    count: int
    text: str | None
    is_special: bool = False


class Vocabulary:
    """Reads the tokens of a tokenizer one by one, which `decode` does not do for cut characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {
            number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()
        }

    def is_special(self, token_id: int) -> bool:
        """Whether a token was added to the vocabulary, such as `<|im_end|>`."""
        return token_id in self._added

    def content(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return f"[no token {token_id}]".encode()
        spelled = bytes_of_piece(piece)
        return piece.encode() if spelled is None else spelled

    def shown(self, token_id: int) -> str:
        """A token by itself as one visible word: its text, or its bytes where it cuts a character."""
        content = self.content(token_id)
        try:
            return "".join(visible(char) for char in content.decode())
        except UnicodeDecodeError:
            return in_hex(content)

    def split(self, token_ids: Sequence[int]) -> Iterator[Glyphs]:
        """Group tokens so that no character is cut, where that is possible."""
        first, pending = 0, b""
        for at, token_id in enumerate(token_ids):
            if self.is_special(token_id):
                if pending:
                    yield Glyphs(first, at - first, None)
                yield Glyphs(at, 1, self.content(token_id).decode(), is_special=True)
                first, pending = at + 1, b""
                continue
            content = self.content(token_id)
            if pending and not _may_be_text(pending + content):
                yield Glyphs(first, at - first, None)
                first, pending = at, b""
            pending += content
            try:
                text: str | None = pending.decode()
            except UnicodeDecodeError:
                if _may_be_text(pending):
                    continue  # the next token may complete the character
                text = None
            yield Glyphs(first, at + 1 - first, text)
            first, pending = at + 1, b""
        if pending:
            yield Glyphs(first, len(token_ids) - first, None)

    def text(self, token_ids: Sequence[int]) -> str:
        """What tokens say, special ones included; what cuts a character becomes its bytes."""
        return "".join(
            in_hex(b"".join(self.content(i) for i in token_ids[g.first : g.first + g.count]))
            if g.text is None
            else g.text
            for g in self.split(token_ids)
        )


@lru_cache(maxsize=65_536)
def visible(char: str) -> str:
    """A character that can be seen and moves nothing: white space and control characters by a sign."""
    if char in _SIGNS:
        return _SIGNS[char]
    code, category = ord(char), unicodedata.category(char)
    if code < 32:
        return chr(0x2400 + code)
    if category in ("Cc", "Cf", "Zl", "Zp", "Zs", "Cn", "Co", "Cs"):
        return f"[U+{code:04X}]"
    return char


def visible_text(text: str) -> str:
    """For a line of a terminal: spaces stay, what would move or hide something is named."""
    return "".join(char if char == " " else visible(char) for char in text)


def in_hex(content: bytes) -> str:
    """Bytes as `E7 8C`."""
    return content.hex(" ").upper()


def _may_be_text(content: bytes) -> bool:
    """Whether bytes are text, perhaps with a last character that is not yet whole."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


_SIGNS = {" ": SPACE, "\n": NEWLINE, "\t": TAB, "\x7f": "␡"}
