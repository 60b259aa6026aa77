"""The plain way to feed Qwen3-VL: the processor of transformers, padding to the longest of a batch."""

from __future__ import annotations

from typing import Any

import torch
from benchmarks.photos import PhotoRows
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vlmkit.assets import asset_path
from vlmkit.data.frames.auto import open_auto
from vlmkit.data.image import ImageTransform
from vlmkit.data.media import VideoFile
from vlmkit.data.processor import Processor
from vlmkit.data.video import VideoTransform, sample_indices


def published_processor(ours: Processor) -> Any:
    """Qwen3VLProcessor with our tokenizer and our pixel budgets, without network."""
    import transformers
    from transformers.models.qwen3_vl import Qwen3VLProcessor, Qwen3VLVideoProcessor

    sizes = {
        "patch_size": ours.image.patch_size,
        "temporal_patch_size": ours.image.temporal_patch_size,
        "merge_size": ours.image.merge_size,
        "image_mean": list(ours.image.mean),
        "image_std": list(ours.image.std),
    }
    image = transformers.Qwen2VLImageProcessor(size=_budget(ours.image), **sizes)
    video = Qwen3VLVideoProcessor(size=_budget(ours.video), **sizes)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=ours.tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    template = asset_path("chat_template.jinja").read_text()
    return Qwen3VLProcessor(image, tokenizer, video, chat_template=template)


def _budget(transform: ImageTransform | VideoTransform) -> dict[str, int]:
    return {"shortest_edge": transform.min_pixels, "longest_edge": transform.max_pixels}


class PaddedBatches(Dataset[dict[str, Any]]):
    """Batch `i` of consecutive samples, as a data collator makes it."""

    def __init__(self, rows: PhotoRows, processor: Any, fps: float, batch_size: int) -> None:
        self.rows, self.processor, self.fps, self.batch_size = rows, processor, fps, batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        first = index * self.batch_size
        texts: list[str] = []
        images: list[Image.Image] = []
        videos: list[Any] = []
        metadata: list[dict[str, Any]] = []
        for i in range(first, min(first + self.batch_size, len(self.rows))):
            messages = self.rows.table[i]["messages"]
            for message in messages:
                for part in message["content"]:
                    if "image" in part:
                        part["type"] = "image"
                        with Image.open(self.rows.folder / part["image"]) as image:
                            images.append(image.convert("RGB"))
                    elif "video" in part:
                        part["type"] = "video"
                        clip, about = self._clip(part)
                        videos.append(clip)
                        metadata.append(about)
                    else:
                        part["type"] = "text"
            texts.append(self.processor.apply_chat_template(messages, tokenize=False))
        videos_kwargs = (
            {"videos": videos, "video_metadata": metadata, "do_sample_frames": False}
            if videos
            else {}
        )
        batch = self.processor(
            text=texts,
            images=images or None,
            padding="longest",
            return_tensors="pt",
            **videos_kwargs,
        )
        labels = batch["input_ids"].clone()
        labels[batch["attention_mask"] == 0] = -100
        for token in (self.processor.image_token_id, self.processor.video_token_id):
            labels[labels == token] = -100
        return {**batch, "labels": labels}

    def _clip(self, part: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Frames at the sampled moments; decoding is the same in both ways."""
        reader = open_auto(VideoFile(self.rows.folder / part["video"]))
        rate = reader.num_frames / reader.duration_s
        first, stop = round(part["start"] * rate), round(part["end"] * rate)
        kept = sample_indices(
            stop - first, part["end"] - part["start"], fps=self.fps, min_frames=4, max_frames=768
        )
        frames = torch.from_numpy(reader.get([first + i for i in kept])).permute(0, 3, 1, 2)
        about = {
            "fps": rate,
            "frames_indices": kept,
            "total_num_frames": stop - first,
            "duration": part["end"] - part["start"],
        }
        return frames, about


def padded_loader(
    rows: PhotoRows, processor: Any, fps: float, batch_size: int, workers: int
) -> DataLoader[dict[str, Any]]:
    """The batches, prepared ahead by processes."""
    return DataLoader(
        PaddedBatches(rows, processor, fps, batch_size),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
