"""Adapter for any timm ViT: our patches -> pictures -> timm's blocks -> features of our patches."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vlmkit.batch import VisionInputs
from vlmkit.vision.base import VisionEncoder, VisionFeatures
from vlmkit.vision.init import pretrained_timm_model

log = logging.getLogger(__name__)


class TimmViT(VisionEncoder):
    """A plain timm ViT (`vit_*`, `deit_*`, `eva02_*`, DINOv3, ...) at native resolution.

    It sees pictures, not videos: the frames of a temporal patch are averaged. Position embeddings
    are resampled by timm. The final norm, the pooling and the classifier are removed, as features
    are outputs of blocks.
    """

    def __init__(
        self,
        model_name: str,
        patch_size: int,
        temporal_patch_size: int = 2,
        merge_size: int = 2,
        pretrained: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the shapes; `reset_parameters` fills in the values, pretrained ones too.

        Args:
            model_name: as `timm.create_model` takes it.
            patch_size: pixels on a side of a patch, as the data is cut.
            temporal_patch_size: frames in a patch.
            merge_size: side of the merge windows in whose order patches come.
            pretrained: whether to start from timm's weights. The log says how they want pictures
                normalised.
            model_kwargs: further arguments of `timm.create_model`.

        Raises:
            ValueError: timm's patch size is another, or the model is not a plain ViT that takes
                pictures of any size.
        """
        super().__init__()
        self.model_name, self.model_kwargs = model_name, dict(model_kwargs or {})
        self.patch_size, self.temporal_patch_size = patch_size, temporal_patch_size
        self.merge_size, self.pretrained = merge_size, pretrained
        self.vit = self._build(pretrained=False)
        _fill_meta_buffers(self.vit)
        in_channels = self.model_kwargs.get("in_chans", 3)
        self.dim, self.depth = self.vit.embed_dim, len(self.vit.blocks)
        self.patch_dim = in_channels * temporal_patch_size * patch_size**2

    def _build(self, pretrained: bool) -> Any:  # nn.Module does not declare what timm's models have
        """A timm model without its head.

        Raises:
            ValueError: see `__init__`.
        """
        import timm

        create = pretrained_timm_model if pretrained else timm.create_model
        options = {"num_classes": 0, "dynamic_img_size": True, **self.model_kwargs}
        try:
            vit: Any = create(self.model_name, **options)
        except TypeError as error:
            raise ValueError(
                f"timm model {self.model_name!r} does not accept {options} ({error}); "
                "only ViTs with dynamic_img_size take pictures of any size"
            ) from error
        needed = ("patch_embed", "blocks", "forward_intermediates", "prune_intermediate_layers")
        if lacking := [name for name in needed if not hasattr(vit, name)]:
            raise ValueError(
                f"timm model {self.model_name!r} is not a plain ViT: it has no {lacking}"
            )
        if vit.patch_embed.patch_size != (self.patch_size, self.patch_size):
            raise ValueError(
                f"timm model {self.model_name!r} has patches of {vit.patch_embed.patch_size} "
                f"pixels, patch_size is {self.patch_size}"
            )
        # parameters that no output depends on would be reported as unused in distributed training
        vit.prune_intermediate_layers([len(vit.blocks) - 1], prune_norm=True, prune_head=True)
        return vit

    def reset_parameters(self) -> None:
        """Take the values of a new timm model: its pretrained weights, or its own random ones.

        Raises:
            ValueError: the pretrained weights cannot be fetched; names the remedy.
        """
        # timm's init_weights() skips some parameters (mixed rotary frequencies), so build anew
        with torch.device("cpu"):
            new = self._build(self.pretrained)
        self.vit.load_state_dict(new.state_dict())
        if self.pretrained:
            cfg = new.pretrained_cfg
            log.info(
                "timm %s was trained on pictures normalised with mean %s and std %s",
                self.model_name,
                cfg["mean"],
                cfg["std"],
            )

    def forward(self, vision: VisionInputs, tapped_blocks: Sequence[int] = ()) -> VisionFeatures:
        """See `VisionEncoder.forward`; pictures of one size are encoded in one call.

        Raises:
            ValueError: the patches come in windows of another size.
        """
        if vision.merge_size != self.merge_size:
            raise ValueError(
                f"the patches come in windows of merge_size {vision.merge_size}, "
                f"the encoder was built for {self.merge_size}"
            )
        same_size: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for i, (_, rows, columns) in enumerate(vision.grids):
            same_size[rows, columns].append(i)

        blocks = sorted({*tapped_blocks, self.depth - 1})
        patches = vision.patches.split([prod(grid) for grid in vision.grids])
        outputs = list(patches)
        for (rows, columns), members in same_size.items():
            features = self._encode(torch.cat([patches[i] for i in members]), rows, columns, blocks)
            lengths = [len(patches[i]) for i in members]
            for i, output in zip(members, features.split(lengths, dim=1), strict=True):
                outputs[i] = output
        levels = torch.cat(outputs, dim=1)  # (blocks, patches, dim)
        return VisionFeatures(
            last=levels[-1], levels=tuple(levels[blocks.index(block)] for block in tapped_blocks)
        )

    def _encode(self, patches: Tensor, rows: int, columns: int, blocks: list[int]) -> Tensor:
        """Outputs of `blocks` for pictures of rows x columns patches.

        Args:
            patches: (patches, patch_dim) of one or more pictures.
            rows: patches on a picture's height.
            columns: patches on its width.
            blocks: in ascending order.

        Returns:
            (blocks, patches, dim).
        """
        windows = {
            "rows": rows // self.merge_size,
            "columns": columns // self.merge_size,
            "row": self.merge_size,
            "column": self.merge_size,
        }
        pictures = rearrange(
            patches,
            "(pictures rows columns row column) (channels frames height width) -> "
            "pictures frames channels (rows row height) (columns column width)",
            frames=self.temporal_patch_size,
            height=self.patch_size,
            width=self.patch_size,
            **windows,
        ).mean(dim=1)
        outputs = self.vit.forward_intermediates(
            pictures.to(next(self.vit.parameters()).dtype),
            indices=blocks,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return rearrange(
            torch.stack(outputs),
            "blocks pictures (rows row columns column) dim -> "
            "blocks (pictures rows columns row column) dim",
            **windows,
        )


def _fill_meta_buffers(model: nn.Module) -> None:
    """Compute on the host the buffers that are not saved, if `model` was built on meta.

    Raises:
        ValueError: timm offers no way to compute one of them.
    """
    for path, module in model.named_modules():
        on_meta = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if not on_meta:
            continue
        if not hasattr(module, "init_non_persistent_buffers"):
            raise ValueError(f"timm module {path!r} cannot fill its buffers {on_meta} after meta")
        for name in on_meta:
            setattr(module, name, torch.empty_like(getattr(module, name), device="cpu"))
        with torch.device("cpu"):
            module.init_non_persistent_buffers()
