"""Ranks that have drifted apart are found, and what differs is named."""

import pytest
import torch

from tests.training.survival.tiny_fit import Line, fit, over_gloo, two_ranks
from vlmkit.training.survival.rank_agreement import RankAgreement, RankDisagreementError


class Drifting(Line):
    """Its bias moves by one unit in the last place on rank 1 after step 4."""

    def on_train_batch_end(self, *args) -> None:
        if self.trainer.global_step == 4 and self.global_rank == 1:
            with torch.no_grad():
                self.layer.bias.copy_(torch.nextafter(self.layer.bias, torch.tensor(9.0)))


def drifting_run(what: str) -> None:
    import os

    torch.manual_seed(0)
    config_hash = os.environ["LOCAL_RANK"] if what == "config" else "same"
    model = Drifting() if what == "weights" else Line()
    agreement = RankAgreement(every_n_steps=3, config_hash=config_hash)
    try:
        fit([agreement], model, **over_gloo(), max_steps=7)
    except RankDisagreementError as error:
        print(f"found: {error}", flush=True)
        raise SystemExit(3) from None


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("nothing", 0, ""),
        ("weights", 3, "step 6: the ranks disagree. ranks 0 / 1 differ in weights of layer.bias."),
        ("config", 3, "step 0: the ranks disagree. ranks 0 / 1 differ in the config."),
    ],
)
def test_ranks_that_differ_are_found_on_all_of_them(what, code, words, tmp_path):
    for rank in two_ranks(tmp_path, drifting_run, what):
        assert rank.exit_code(60) == code, rank.output
        assert words in rank.output


def test_one_rank_agrees_with_itself():
    fit([RankAgreement(every_n_steps=1)], Line(), max_steps=2)


def test_who_differs_is_named():
    from vlmkit.training.survival.rank_agreement import _who

    assert _who(["a", "a", "b", "a"]) == "rank 2 differs"
    assert _who(["a", "b", "c", "a", "a"]) == "ranks 1, 2 differ"
    assert _who(["a", "b", None, "b"]) == "ranks 0 / 1, 3 / 2 differ"
