"""What stands beside the weights in a published checkpoint: tokenizer and generation settings.

Settings of the processor are in `vlmkit.checkpoint.published_processor`.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from vlmkit.checkpoint.published_processor import IMAGE_FILE, MERGED_FILE, VIDEO_FILE
from vlmkit.sequence import SpecialTokens

SETTINGS_FILES = (IMAGE_FILE, VIDEO_FILE, MERGED_FILE, "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
CHAT_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")

MAX_TOKENS = 262_144
END_OF_TURN, PADDING = "<|im_end|>", "<|endoftext|>"


def generation_config(special: SpecialTokens, vocab_size: int) -> dict[str, Any]:
    """generation_config.json of the Instruct models.

    Args:
        special: token ids; those beyond the vocabulary are left out.
        vocab_size: rows of the embedding.
    """
    padding = special.pad_id if special.pad_id < vocab_size else None
    return {
        "bos_token_id": padding,
        "pad_token_id": padding,
        "do_sample": True,
        "eos_token_id": [token_id for token_id in special.stop_ids if token_id < vocab_size]
        or None,
        "top_k": 20,
        "top_p": 0.8,
        "repetition_penalty": 1.0,
        "temperature": 0.7,
    }


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json for a Qwen tokenizer, whole or cut."""
    added = tokenizer.get_added_tokens_decoder()
    contents = [token.content for token in added.values()]
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token_id): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for token_id, token in sorted(added.items())
        },
        "additional_special_tokens": [
            token.content
            for token in added.values()
            if token.special and token.content not in (END_OF_TURN, PADDING)
        ],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN if END_OF_TURN in contents else None,
        "errors": "replace",
        "model_max_length": MAX_TOKENS,
        "pad_token": PADDING if PADDING in contents else None,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
