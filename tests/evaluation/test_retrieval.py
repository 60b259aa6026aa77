"""Recall at 1, with captions that come twice."""

import pytest
import torch

from vlmkit.evaluation.retrieval import RetrievalRecall


def test_recall_counts_a_caption_that_reads_the_same_as_right():
    images = torch.eye(4)
    texts = torch.stack([images[1], images[0], images[2], images[2]])  # 0 and 1 swapped, 3 like 2
    keys = torch.tensor([5, 5, 6, 7])  # 0 and 1 read the same
    metric = RetrievalRecall(chunk=3)
    metric.update(images[:1], texts[:1], keys[:1])
    metric.update(images[1:], texts[1:], keys[1:])
    found = metric.compute()
    assert float(found["image_to_text"]) == pytest.approx(3 / 4)
    assert float(found["text_to_image"]) == pytest.approx(3 / 4)
    assert float(found["chance"]) == pytest.approx((2 + 2 + 1 + 1) / 16)


def test_no_pair_gives_no_score():
    metric = RetrievalRecall()
    metric.update(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert all(value.isnan() for value in metric.compute().values())
