"""The Qwen3 tokenizer, rebuilt from its ranks, and tokenizers that come with a checkpoint.

The rank file lists byte strings in the order in which byte-pair encoding learned them, the 256 single
bytes first. That order is all of BPE: a rank's merge is the last step of encoding its own bytes with
the ranks below it. The first N ranks are thus a smaller, valid vocabulary, which suits small models.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import tempfile
from functools import lru_cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from vlmkit.assets import asset_path
from vlmkit.sequence import QWEN_RANKS, SpecialTokens

logger = logging.getLogger(__name__)

RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"

NUM_BYTES = 256
"""Ranks that are single bytes; the smallest vocabulary that can encode any text."""

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
"""Where Qwen2 and Qwen3 cut text before BPE: words, single digits, punctuation, white space."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Added tokens that `decode(skip_special_tokens=True)` drops. They follow the ranks."""

PLAIN_ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
"""Added tokens that stay in decoded text. They follow the special ones."""

_TOKEN_NAMES = {
    "pad_id": "<|endoftext|>",
    "im_start_id": "<|im_start|>",
    "im_end_id": "<|im_end|>",
    "vision_start_id": "<|vision_start|>",
    "vision_end_id": "<|vision_end|>",
    "image_id": "<|image_pad|>",
    "video_id": "<|video_pad|>",
}

_CACHE_VERSION = 1  # raise it when the way a tokenizer is built changes


def build_qwen_tokenizer(num_ranks: int | None = None) -> Tokenizer:
    """Build the Qwen3 tokenizer, or a cut of it.

    The built tokenizer is kept under the user's cache folder; building takes seconds, loading less.

    Args:
        num_ranks: keep this many ranks and number the added tokens right after them; None keeps all
            151,643, which gives the ids of the published checkpoints.

    Raises:
        ValueError: `num_ranks` is out of range, or the rank file is not the published one.
        FileNotFoundError: the rank file is missing from the package.
    """
    num_ranks = QWEN_RANKS if num_ranks is None else num_ranks
    if not NUM_BYTES <= num_ranks <= QWEN_RANKS:
        raise ValueError(
            f"num_ranks is {num_ranks}; it must lie between {NUM_BYTES} (single bytes only) "
            f"and {QWEN_RANKS} (the full Qwen3 vocabulary)"
        )
    content = _verified_content(asset_path("tokenizer", "qwen.tiktoken"))

    cached = _cache_folder() / f"qwen3-{RANKS_SHA256[:16]}-{num_ranks}-v{_CACHE_VERSION}.json"
    tokenizer = _load_cached(cached)
    if tokenizer is None:
        lines = content.splitlines()[:num_ranks]  # each a byte string in base64, and its rank
        tokenizer = _tokenizer_from_ranks([base64.b64decode(line.split()[0]) for line in lines])
        _save_cached(tokenizer, cached)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a `tokenizer.json`.

    Args:
        path: the file, or a folder that holds it, such as a published checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a tokenizer.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"no tokenizer at {file}; expected a tokenizer.json or a folder that holds one"
        )
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{file} is not a tokenizer.json: {error}") from error


def special_tokens_of(tokenizer: Tokenizer) -> SpecialTokens:
    """Look up the ids that structure a Qwen3-VL sequence.

    Raises:
        ValueError: the tokenizer lacks some of the tokens; names them.
    """
    ids: dict[str, int] = {}
    absent: list[str] = []
    for field, name in _TOKEN_NAMES.items():
        token_id = tokenizer.token_to_id(name)
        if token_id is None:
            absent.append(name)
        else:
            ids[field] = token_id
    if absent:
        raise ValueError(
            f"the tokenizer lacks {', '.join(absent)}; Qwen3-VL sequences need them, "
            "so use the tokenizer of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint"
        )
    return SpecialTokens(**ids)


def bytes_of_piece(piece: str) -> bytes | None:
    """The bytes that a piece of the vocabulary stands for; None where it is not spelled in byte letters."""
    bytes_of_letters = _bytes_of_letters()
    if any(letter not in bytes_of_letters for letter in piece):
        return None
    return bytes(bytes_of_letters[letter] for letter in piece)


def _verified_content(path: Path) -> bytes:
    """Content of the rank file, which decides every id and so must be the published one."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != RANKS_SHA256:
        raise ValueError(
            f"{path} has sha256 {digest}, expected {RANKS_SHA256}; the file was changed "
            "(line endings, Git LFS pointer?), so restore it from the repository"
        )
    return content


def _tokenizer_from_ranks(ranks: list[bytes]) -> Tokenizer:
    """Byte-level BPE over `ranks`, with Qwen's normaliser, splitter and added tokens."""
    letters = _byte_letters()

    def spell(token: bytes) -> str:
        return "".join([letters[byte] for byte in token])

    rank_of = {token: rank for rank, token in enumerate(ranks)}
    merges = [_last_merge(token, rank_of) for token in ranks if len(token) > 1]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={spell(token): rank for token, rank in rank_of.items()},
            merges=[(spell(left), spell(right)) for left, right in merges],
        )
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_added_token(name, special=True) for name in SPECIAL_TOKENS])
    tokenizer.add_tokens([_added_token(name, special=False) for name in PLAIN_ADDED_TOKENS])
    return tokenizer


def _added_token(name: str, *, special: bool) -> AddedToken:
    return AddedToken(name, special=special, normalized=False)


def _last_merge(token: bytes, rank_of: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Encode `token` until two pieces are left: the pair whose merge it is.

    Taking the lowest rank first repeats the steps of training, so none goes beyond the token's rank.
    """
    pieces = [token[at : at + 1] for at in range(len(token))]
    while len(pieces) > 2:
        best_at, best_rank = -1, len(rank_of)
        for at in range(len(pieces) - 1):
            rank = rank_of.get(pieces[at] + pieces[at + 1], best_rank)
            if rank < best_rank:
                best_at, best_rank = at, rank
        assert best_at >= 0, f"no merge leads to {token!r}"
        pieces[best_at : best_at + 2] = [pieces[best_at] + pieces[best_at + 1]]
    return pieces[0], pieces[1]


def _byte_letters() -> list[str]:
    """The printable character that stands for each byte (Radford et al. 2019, GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(NUM_BYTES) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(NUM_BYTES + position) for position, byte in enumerate(others)}
    return [letters[byte] for byte in range(NUM_BYTES)]


@lru_cache(maxsize=1)
def _bytes_of_letters() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(_byte_letters())}


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "vlmkit" / "tokenizer"


def _load_cached(path: Path) -> Tokenizer | None:
    """The tokenizer at `path`, or None where there is none that can be read."""
    try:
        return load_tokenizer(path)
    except (OSError, ValueError):
        return None


def _save_cached(tokenizer: Tokenizer, path: Path) -> None:
    """Write `path` in one step, so that processes that start together never read half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder) / path.name
            written.write_text(tokenizer.to_str(), encoding="utf-8")
            os.replace(written, path)
    except OSError as error:
        logger.info("the tokenizer is not cached: %s", error)
