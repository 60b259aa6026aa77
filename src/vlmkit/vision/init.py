"""Starting weights of the vision encoder: timm's SigLIP-2 checkpoints -> `SigLIP2ViT`."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.errors import listed

if TYPE_CHECKING:
    from vlmkit.vision.siglip2 import SigLIP2ViT

log = logging.getLogger(__name__)

TIMM_PREFIX = "timm:"


class VisionWeights:
    """Weights of a SigLIP-2 ViT, from timm's hub or from a file.

    Even with every weight copied the encoder is not the function that its source was: SigLIP-2 has
    no rotary embedding, and timm's Large uses exact GELU. Qwen3-VL trains the encoder on from here
    (report, section on the vision encoder).
    """

    def __init__(self, source: str) -> None:
        """Remember where the weights are; nothing is read yet.

        Args:
            source: `timm:<model name>`, or the path of a `.safetensors` file in timm's layout.

        Raises:
            ValueError: a file of another kind.
        """
        if not source.startswith(TIMM_PREFIX) and Path(source).suffix != ".safetensors":
            raise ValueError(
                f"vision weights must be '{TIMM_PREFIX}<model name>' or a .safetensors file, got "
                f"{source!r}: pickled checkpoints (.pt, .pth, .bin) can run code when opened; "
                "convert them with safetensors.torch.save_file"
            )
        self.source = source

    def load_into(self, encoder: SigLIP2ViT) -> None:
        """Fill the encoder's parameters in place, in their dtype and on their device.

        Everything is checked first: after an error the encoder is as it was.

        Raises:
            ValueError: the weights cannot be fetched or read, or do not fit; see `timm_to_encoder`.
            FileNotFoundError: there is no such file.
        """
        try:
            values = timm_to_encoder(self.read(), encoder)
        except ValueError as error:
            raise ValueError(f"vision weights {self.source}: {error}") from error
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                parameter.copy_(values[name])
        log.info("vision weights: %d tensors loaded from %s", len(values), self.source)

    def read(self) -> Mapping[str, Tensor]:
        """All tensors, under timm's names."""
        if self.source.startswith(TIMM_PREFIX):
            return pretrained_timm_model(self.source.removeprefix(TIMM_PREFIX)).state_dict()
        return _read_safetensors(Path(self.source))


def pretrained_timm_model(name: str, **model_kwargs: Any) -> nn.Module:
    """Build a timm model on the host with its pretrained weights, fetching them if need be.

    Raises:
        ValueError: no such model, or its weights are neither cached nor within reach.
    """
    import timm

    try:
        with torch.device("cpu"):
            return timm.create_model(name, pretrained=True, **model_kwargs)
    except Exception as error:  # each transport below timm has exceptions of its own
        raise ValueError(
            f"timm has no pretrained weights for {name!r}, or cannot fetch or load them "
            f"({type(error).__name__}: {error}). Without a network, fetch the model's .safetensors "
            "file elsewhere and give its local path: to SigLIP2ViT as `init`, to TimmViT as "
            "`model_kwargs.pretrained_cfg_overlay.file`"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"vision weights: there is no file {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"not readable as safetensors ({error})") from error


def timm_to_encoder(weights: Mapping[str, Tensor], encoder: SigLIP2ViT) -> dict[str, Tensor]:
    """Rename and reshape timm's tensors to the encoder's parameters; runs on meta tensors too.

    Both of timm's layouts are understood: `vit_*_siglip_*` with a convolution as patch embedding,
    and `naflexvit_*_siglip` with a linear map. The attention pool and the final norm are dropped.

    Args:
        weights: timm's state dict.
        encoder: what they must fit; only its sizes are looked at.

    Returns:
        A value for every parameter of the encoder, by its name.

    Raises:
        ValueError: names each key that has no place, each parameter that gets no value, and each
            shape that differs.
    """
    wanted = {name: tuple(parameter.shape) for name, parameter in encoder.named_parameters()}
    values: dict[str, Tensor] = {}
    dropped: list[str] = []
    unexpected: list[str] = []
    for key, tensor in weights.items():
        if DROPPED.fullmatch(key):
            dropped.append(key)
            continue
        name, convert = _rule_for(key)
        if name not in wanted or name in values:
            unexpected.append(key)
            continue
        values[name] = convert(tensor, encoder)

    found = {name: tuple(value.shape) for name, value in values.items()}
    problems = {
        "keys that have no place in the encoder": unexpected,
        "encoder parameters that get no value": [name for name in wanted if name not in found],
        "shapes that differ": [
            f"{name} is {shape}, the encoder has {wanted[name]}"
            for name, shape in found.items()
            if shape != wanted[name]
        ],
    }
    if any(problems.values()):
        raise ValueError(
            "; ".join(f"{what}: {listed(names)}" for what, names in problems.items() if names)
        )
    if dropped:
        counts = Counter(key.partition(".")[0] for key in dropped)
        log.info(
            "vision weights: dropped %s",
            ", ".join(f"{part} ({count} tensors)" for part, count in counts.items()),
        )
    return values


def _rule_for(key: str) -> tuple[str, Convert]:
    """The encoder's name for a key, empty if there is none, and the conversion."""
    for pattern, name, convert in KEY_MAP:
        if match := pattern.fullmatch(key):
            return match.expand(name), convert
    return "", _unchanged


def _unchanged(tensor: Tensor, encoder: SigLIP2ViT) -> Tensor:
    return tensor


def _inflated_kernel(kernel: Tensor, encoder: SigLIP2ViT) -> Tensor:
    """Spread a picture's patch kernel over the frames of a patch: W / frames each.

    A still picture, whose frames are equal, is embedded as before. A kernel of another size is
    resampled by the pseudo-inverse of bicubic resizing (FlexiViT, Beyer et al. 2023).

    Args:
        kernel: (dim, channels, side, side), or naflexvit's (dim, side * side * channels).
        encoder: gives the sizes.

    Returns:
        (dim, channels * time * height * width) float32.
    """
    side, frames = encoder.patch_size, encoder.temporal_patch_size
    channels = encoder.patch_dim // (frames * side**2)
    shape = tuple(kernel.shape)
    if kernel.ndim == 2 and _is_square(shape[1] / channels):
        kernel = rearrange(
            kernel,
            "dim (height width channels) -> dim channels height width",
            height=isqrt(shape[1] // channels),
            channels=channels,
        )
    if kernel.ndim != 4:
        raise ValueError(
            f"patch kernel {shape} is not made of square patches of {channels} channels"
        )
    kernel = kernel.float()
    if kernel.shape[-2:] != (side, side):
        from timm.layers import resample_patch_embed

        kernel = resample_patch_embed(kernel, [side, side])
    return repeat(
        kernel / frames,
        "dim channels height width -> dim (channels frames height width)",
        frames=frames,
    )


def _resampled_table(table: Tensor, encoder: SigLIP2ViT) -> Tensor:
    """Resample the position table to the encoder's, by `F.interpolate`, bicubic, no antialiasing.

    Corners stay corners (`align_corners=True`) because `PositionTable` reads its table that way: on
    a grid of the source's size, each patch finds the embedding it was trained with. The other
    convention, timm's default, is off by up to a third of a patch from 16 x 16 to 48 x 48.

    Args:
        table: (1, side * side, dim), or naflexvit's (1, rows, columns, dim).
        encoder: gives the side of its table.

    Returns:
        (side * side, dim) float32.
    """
    shape = tuple(table.shape)
    if table.ndim == 3 and _is_square(shape[1]):
        table = table.unflatten(1, (isqrt(shape[1]), -1))
    if table.ndim != 4 or shape[0] != 1:
        raise ValueError(
            f"position table {shape} is not a square of positions without prefix tokens"
        )
    side = encoder.position_table.side
    table = F.interpolate(
        rearrange(table.float(), "1 rows columns dim -> 1 dim rows columns"),
        size=(side, side),
        mode="bicubic",
        align_corners=True,
    )
    return rearrange(table, "1 dim rows columns -> (rows columns) dim")


def _is_square(number: float) -> bool:
    return number == isqrt(int(number)) ** 2


Convert = Callable[[Tensor, "SigLIP2ViT"], Tensor]

KEY_MAP: tuple[tuple[re.Pattern[str], str, Convert], ...] = tuple(
    (re.compile(theirs), ours, convert)
    for theirs, ours, convert in (
        (r"(?:patch_embed|embeds)\.proj\.weight", r"patch_embed.weight", _inflated_kernel),
        (r"(?:patch_embed|embeds)\.proj\.bias", r"patch_embed.bias", _unchanged),
        (r"(?:embeds\.)?pos_embed", r"position_table.weight", _resampled_table),
        (r"(blocks\.\d+\.norm[12]\..+)", r"\1", _unchanged),
        (r"(blocks\.\d+)\.attn\.((?:qkv|proj)\..+)", r"\1.attention.\2", _unchanged),
        (r"(blocks\.\d+\.mlp\.fc[12]\..+)", r"\1", _unchanged),
    )
)
"""timm's keys, the encoder's names, and what happens to the tensor in between."""

DROPPED = re.compile(r"(?:attn_pool|norm)\..+")
"""timm's keys without a counterpart: the encoder ends with its last block."""
