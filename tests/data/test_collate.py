from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.samples import (
    PAD_ID,
    TOKENS,
    example,
    image_example,
    picture,
    text,
    text_example,
    two_images_example,
    video_example,
)
from vlmkit.batch import IGNORED_LABEL
from vlmkit.data.collate import collate
from vlmkit.position.ids import mrope_position_ids

MAKERS = [text_example, image_example, two_images_example, video_example]
mixes = st.lists(st.tuples(st.sampled_from(MAKERS), st.integers(0, 99)), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(mixes, st.integers(1, 3))
def test_everything_travels_with_its_sample(mix, per_row):
    examples = [make(seed) for make, seed in mix]
    rows = [examples[i : i + per_row] for i in range(0, len(examples), per_row)]
    batch = collate(rows, pad_id=PAD_ID, merge_size=2)
    assert batch.num_samples == len(examples)
    visual = torch.zeros(batch.input_ids.numel(), dtype=torch.bool)
    visual[batch.visual_index] = True
    patch_start = 0
    for sample, item in enumerate(examples):
        mine = batch.sample_ids == sample
        alone = collate([[item]], pad_id=PAD_ID, merge_size=2)
        assert torch.equal(batch.input_ids[mine], alone.input_ids[0])
        assert torch.equal(batch.labels[mine], alone.labels[0])
        assert torch.equal(batch.position_ids[:, mine], mrope_position_ids(item.spans))
        assert int(visual[mine.flatten()].sum()) == len(alone.visual_index)
        if item.grids:
            stop = patch_start + len(item.patches)
            assert torch.equal(batch.vision.patches[patch_start:stop], item.patches)
            patch_start = stop
    padding = batch.sample_ids < 0
    assert int(padding.sum()) == batch.num_padding
    assert (batch.input_ids[padding] == PAD_ID).all()
    assert (batch.labels[padding] == IGNORED_LABEL).all()
    assert batch.segments.num_tokens == batch.input_ids.numel()


def test_labels_are_the_next_token_within_the_sample():
    item = example(
        [text(0, 3), text(1, 2, scored=True), text(2, 1), text(3, 1, scored=True)], [], 0
    )
    batch = collate([[item, text_example(5)]], pad_id=PAD_ID, merge_size=2)
    ids, skip = batch.input_ids[0].tolist(), IGNORED_LABEL
    assert batch.labels[0, :7].tolist() == [skip, skip, ids[3], ids[4], skip, ids[6], skip]
    assert batch.scored_index[:3].tolist() == [2, 3, 5]


def test_touching_runs_of_two_messages_are_two_responses():
    spans = [text(0, 2), text(1, 3, scored=True), replace(text(2, 4, scored=True), response=5)]
    batch = collate([[text_example(0)], [example(spans, [], 0)]], pad_id=PAD_ID, merge_size=2)
    assert batch.response_ids[1].tolist() == [-1, 1, 1, 1, 2, 2, 2, 2, -1]
    assert torch.equal(batch.response_ids >= 0, batch.labels != IGNORED_LABEL)
    assert batch.num_responses == 3


def test_placeholders_are_the_visual_index():
    batch = collate([[image_example(1), video_example(2)]], pad_id=PAD_ID, merge_size=2)
    ids = batch.input_ids.flatten()
    expected = ((ids == TOKENS.image_id) | (ids == TOKENS.video_id)).nonzero().squeeze(1)
    assert torch.equal(batch.visual_index, expected)


def test_rows_have_the_length_asked_for():
    batch = collate([[text_example(0)]], pad_id=PAD_ID, merge_size=2, row_tokens=32)
    assert batch.input_ids.shape == (1, 32)
    assert batch.num_tokens == 9
    with pytest.raises(ValueError, match="row of 9 tokens does not fit row_tokens 8"):
        collate([[text_example(0)]], pad_id=PAD_ID, merge_size=2, row_tokens=8)


def test_spans_and_grids_must_agree():
    wrong = example([text(0, 2), picture(2, 2)], [(1, 4, 6)], 0)
    with pytest.raises(ValueError, match=r"4 visual placeholders, .*give 6 features"):
        collate([[wrong]], pad_id=PAD_ID, merge_size=2)


def test_batches_move_between_devices():
    batch = collate([[image_example(1)]], pad_id=PAD_ID, merge_size=2).to("meta")
    assert batch.vision.patches.is_meta
    assert batch.vision.segments.cu_seqlens.is_meta
    assert batch.input_ids.is_meta


def test_samples_are_numbered_by_source():
    rows = [[text_example(0), image_example(1)], [text_example(2)]]
    names = ["sample 2", "sample 0"]
    batch = collate(rows, pad_id=PAD_ID, merge_size=2, sources=names)
    assert batch.source_ids.tolist() == [1, -1, 0]


def test_a_row_without_samples_is_padding():
    batch = collate([[]], pad_id=PAD_ID, merge_size=2)
    assert (batch.num_samples, batch.num_tokens, batch.vision) == (0, 0, None)
    assert (batch.input_ids == PAD_ID).all()
