"""What the transformers processor returns, as our batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vlmkit.batch import IGNORED_LABEL
from vlmkit.models.hf_batch import batch_from_hf
from vlmkit.sequence import SpecialTokens

TOKENS = SpecialTokens(
    pad_id=0, im_start_id=1, im_end_id=2, vision_start_id=3, vision_end_id=4, image_id=5, video_id=6
)
I, V = TOKENS.image_id, TOKENS.video_id  # noqa: E741


def patches(grids: list[list[int]], first: int) -> Tensor:
    """(patches, 1), numbered from `first`."""
    count = sum(t * h * w for t, h, w in grids)
    return torch.arange(first, first + count)[:, None]


def inputs(
    rows: list[list[int]],
    images: list[list[int]] | None = None,
    videos: list[list[int]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """As the processor returns them; patches are numbered, those of videos from 100."""
    made: dict[str, Any] = {"input_ids": torch.tensor(rows), **more}
    if images:
        made |= {"image_grid_thw": torch.tensor(images), "pixel_values": patches(images, 0)}
    if videos:
        made |= {
            "video_grid_thw": torch.tensor(videos),
            "pixel_values_videos": patches(videos, 100),
        }
    return made


def test_positions_of_the_worked_examples() -> None:
    image = [9, 9, 9, 3, *[I] * 6, 4, 9, 9]
    batch = batch_from_hf(inputs([image], images=[[1, 4, 6]]), TOKENS)
    assert batch.position_ids[:, 0].tolist() == [
        [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 7, 8, 9],
        [0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 7, 8, 9],
        [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9],
    ]
    frame = [9, 9, 9, 3, V, V, V, V, 4]
    batch = batch_from_hf(inputs([[9, 9, *frame, *frame, 9]], videos=[[2, 4, 4]]), TOKENS)
    assert batch.position_ids[1, 0].tolist() == (
        [0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 13, 14, 14, 15, 16]
    )
    assert batch.padding_mask is None
    assert batch.segments.lengths == (21,)
    assert batch.num_tokens == 21


def test_positions_and_sides_of_padding_equal_transformers() -> None:
    from tests.checkpoint.toy import toy_model
    from vlmkit.checkpoint.parity_cases import CASES, Case, InputSpec, make_inputs

    spec = InputSpec(vocab_size=300, special=TOKENS, merge_size=2, patch_dim=1536)
    reference = toy_model().model
    for pad_left in (False, True):
        made = make_inputs(Case(rows=CASES["mix"].rows, pad_left=pad_left), spec, seed=0)
        names = ("input_ids", "attention_mask", "mm_token_type_ids", *_grids(made))
        expected, _ = reference.get_rope_index(**{name: made[name] for name in names})
        batch = batch_from_hf(made, TOKENS)
        assert torch.equal(batch.position_ids, expected)
        real = made["attention_mask"].bool()
        assert batch.padding_mask is not None
        assert torch.equal(batch.padding_mask, ~real)
        assert batch.num_tokens == real.sum()
        lengths = real.sum(1).tolist()
        padding = real.shape[1] - lengths[1]
        row = [padding, lengths[1]] if pad_left else [lengths[1], padding]
        assert batch.segments.lengths == (lengths[0], *row)


def _grids(made: dict[str, Tensor]) -> list[str]:
    return [name for name in made if name.endswith("grid_thw")]


def test_patches_follow_the_tokens_row_by_row() -> None:
    rows = [[3, V, 4, 3, I, I, 4, 3, V, 4], [3, I, 4, 3, V, 4, 9, 9, 9, 9]]
    batch = batch_from_hf(
        inputs(rows, images=[[1, 2, 4], [1, 2, 2]], videos=[[2, 2, 2], [1, 2, 2]]), TOKENS
    )
    assert batch.vision is not None
    # the first clip is cut in two by the picture between its frames
    assert batch.vision.grids == ((1, 2, 2), (1, 2, 4), (1, 2, 2), (1, 2, 2), (1, 2, 2))
    first = [100, 101, 102, 103, *range(8), 104, 105, 106, 107]
    second = [8, 9, 10, 11, 108, 109, 110, 111]
    assert batch.vision.patches.flatten().tolist() == first + second
    assert batch.visual_index.tolist() == [1, 4, 5, 8, 11, 14]


def test_media_that_touch_are_cut_by_their_grids() -> None:
    batch = batch_from_hf(
        inputs([[9, *[I] * 5, *[V] * 4, 9]], images=[[1, 2, 6], [1, 4, 2]], videos=[[2, 2, 4]]),
        TOKENS,
    )
    # pictures of 1 x 3 and 2 x 1 tokens, then two frames of 1 x 2
    assert batch.position_ids[:, 0].tolist() == [
        [0, 1, 1, 1, 4, 4, 6, 6, 8, 8, 10],
        [0, 1, 1, 1, 4, 5, 6, 6, 8, 8, 10],
        [0, 1, 2, 3, 4, 4, 6, 7, 8, 9, 10],
    ]
    assert batch.vision is not None
    assert batch.vision.grids == ((1, 2, 6), (1, 4, 2), (2, 2, 4))


@pytest.mark.parametrize("pad_left", [False, True])
def test_labels_move_one_place_and_padding_is_not_scored(pad_left: bool) -> None:
    rows, mask = [[7, 8, 9, 0], [7, 8, 9, 9]], [[1, 1, 1, 0], [1, 1, 1, 1]]
    labels = [[-100, 8, 9, 0], [7, -100, -100, 9]]
    if pad_left:
        rows, mask, labels = ([row[::-1] for row in part] for part in (rows, mask, labels))
    batch = batch_from_hf(
        inputs(rows, attention_mask=torch.tensor(mask), labels=torch.tensor(labels)), TOKENS
    )
    none = IGNORED_LABEL
    if pad_left:  # rows read 0 9 8 7 and 9 9 8 7 with labels 0 9 8 - and 9 - - 7
        expected = [[none, 8, none, none], [none, none, 7, none]]
    else:
        expected = [[8, 9, none, none], [none, none, 9, none]]
    assert batch.labels is not None
    assert batch.labels.tolist() == expected
    assert batch.scored_index is not None
    assert batch.scored_index.tolist() == ([1, 6] if pad_left else [0, 1, 6])
    assert batch.sample_ids is not None
    assert batch.sample_ids.tolist() == (
        [[-1, 0, 0, 0], [1, 1, 1, 1]] if pad_left else [[0, 0, 0, -1], [1, 1, 1, 1]]
    )
    assert batch.num_samples == 2


def test_text_alone() -> None:
    batch = batch_from_hf({"input_ids": [[7, 8, 9]]})
    assert batch.vision is None
    assert batch.labels is None
    assert len(batch.visual_index) == 0
    assert batch.position_ids.tolist() == [[[0, 1, 2]]] * 3


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (inputs([[9, I, 9]], images=[[1, 2, 4]]), r"1 placeholders of id 5, .* 2 visual tokens"),
        (inputs([[9, I, I]]), r"2 placeholders of id 5, the grids give 0"),
        (inputs([[9, 9]], videos=[[1, 2, 2]]), r"0 placeholders of id 6, the grids give 1"),
        (
            inputs([[I, 9, I, I]], images=[[1, 2, 4], [1, 2, 2]]),
            r"a run of 1 placeholders of id 5 meets .* 2 visual tokens \(2 x 4 patches\)",
        ),
        (
            inputs([[9, I]], images=[[1, 2, 2]]) | {"pixel_values": torch.zeros(5, 1)},
            r"hold 4 patches, pixel_values has 5",
        ),
        (
            {"input_ids": [[9, I]], "pixel_values": torch.zeros(4, 1)},
            r"pixel_values comes with image_grid_thw, which is missing",
        ),
        (inputs([[9, 9, 9]], attention_mask=[[1, 0, 1]]), r"row 0 has holes: 2 real tokens over 3"),
    ],
)
def test_counts_that_disagree_are_shown(made: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        batch_from_hf(made, TOKENS)
