"""What stands beside the weights in a published checkpoint: processor, tokenizer, generation settings."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from vlmkit.sequence import SpecialTokens

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
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

IMAGE_AREA = {"longest_edge": 16_777_216, "shortest_edge": 65_536}
"""Most and fewest pixels of an image; the names say edges, the released code reads areas."""

VIDEO_AREA = {"longest_edge": 25_165_824, "shortest_edge": 4_096}
"""Most and fewest pixels times frames of a clip."""


def image_processor_config(vision: dict[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json, with the released budgets.

    Args:
        vision: the published vision_config.
    """
    return {
        "size": IMAGE_AREA,
        **_pixels(vision),
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }


def video_processor_config(vision: dict[str, Any]) -> dict[str, Any]:
    """video_preprocessor_config.json, with the released budgets.

    Args:
        vision: the published vision_config.
    """
    return {"size": VIDEO_AREA, **_pixels(vision), "video_processor_type": "Qwen3VLVideoProcessor"}


def _pixels(vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "patch_size": vision["patch_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }


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
