import math

import pytest
import torch

from vlmkit.position.axes import chunked, interleaved
from vlmkit.position.mrope import MRoPE, YaRN, apply_rotary

IDS = torch.tensor([5, 7, 11]).view(3, 1, 1)


def letters(axes: list[int]) -> str:
    return "".join("THW"[axis] for axis in axes)


def test_layouts():
    assert letters(interleaved([24, 20, 20])) == "THW" * 20 + "TTTT"
    assert letters(interleaved([4, 2, 2])) == "THWTHWTT"
    assert letters(interleaved([6, 5, 5])) == "THWTHWTHWTHWTHWT"
    assert letters(chunked([2, 3, 3])) == "TTHHHWWW"


@pytest.mark.parametrize("section", [[2, 3, 3], [0, 4, 4], [1, 1, 6]])
def test_interleaving_that_misses_its_counts_is_refused(section):
    with pytest.raises(ValueError, match="cannot be interleaved"):
        interleaved(section)


@pytest.mark.parametrize("section", [[8], [4, 4], [-1, 4, 5]])
def test_section_must_be_three_counts(section):
    with pytest.raises(ValueError, match="three counts"):
        chunked(section)


def test_section_must_fill_the_head():
    with pytest.raises(ValueError, match=r"names 8 frequencies, head_dim 128 has 64"):
        MRoPE(128, 5e6, interleaved([4, 2, 2]))


def test_interleaved_golden_values():
    cos, sin = MRoPE(128, 5e6, interleaved([24, 20, 20]))(IDS, torch.float32)
    expected = [0.283662, 0.709241, 0.872925, -0.754943, -0.890570, -0.988046, 0.383284, 0.271945]
    assert cos[0, 0, :8].tolist() == pytest.approx(expected, abs=1e-6)
    tail = [5.40e-6, 5.95e-6, 7.34e-6, 2.62e-6, 2.06e-6, 1.62e-6, 1.27e-6]
    assert sin[0, 0, 57:64].tolist() == pytest.approx(tail, rel=5e-3)  # printed with three digits
    assert torch.equal(cos[..., :64], cos[..., 64:])


def test_chunked_golden_values():
    cos, sin = MRoPE(128, 1e6, chunked([16, 24, 24]))(IDS, torch.float32)
    chosen = cos[0, 0, [0, 1, 2, 3, 15, 16, 39, 40]].tolist()
    expected = [0.283662, -0.631261, -0.994459, -0.865275, 0.980813, 0.975600, 0.999999, 0.999998]
    assert chosen == pytest.approx(expected, abs=1e-6)
    assert float(sin[0, 0, 63]) == pytest.approx(1.36503e-5, rel=1e-4)


@pytest.mark.parametrize("layout", [chunked, interleaved])
def test_equal_ids_are_ordinary_rope(layout):
    positions = torch.tensor([0, 1, 9, 200_000])
    cos, sin = MRoPE(16, 1e4, layout([4, 2, 2]))(positions.expand(3, 1, -1), torch.float32)
    frequency = torch.tensor([1e4 ** (-2 * i / 16) for i in range(8)], dtype=torch.float32)
    angle = (positions[:, None].float() * frequency).repeat(1, 2)
    # float32 frequencies at position 2e5: measured 2.5e-4
    assert torch.allclose(cos[0], angle.cos(), atol=2e-3)
    assert torch.allclose(sin[0, :3], angle[:3].sin(), atol=1e-6)


def test_rotation_depends_on_the_difference_only():
    rope = MRoPE(16, 1e4, interleaved([4, 2, 2]))
    query, key = torch.randn(2, 1, 1, 1, 16)

    def score(q: list[int], k: list[int]) -> float:
        at = [rope(torch.tensor(ids).view(3, 1, 1), torch.float32) for ids in (q, k)]
        return float((apply_rotary(query, at[0]) * apply_rotary(key, at[1])).sum())

    # measured 1.2e-7
    assert score([5, 7, 9], [2, 3, 1]) == pytest.approx(score([15, 27, 39], [12, 23, 31]), abs=1e-5)


def test_frequencies_survive_casting_and_to_empty():
    rope = MRoPE(128, 5e6, interleaved([24, 20, 20]))
    before = rope.inv_freq().clone()
    assert torch.equal(rope.to(torch.bfloat16).inv_freq(), before)
    with torch.device("meta"):
        rope = MRoPE(128, 5e6, interleaved([24, 20, 20]))
    assert torch.equal(rope.to_empty(device="cpu").inv_freq(), before)


def test_yarn_blends_between_the_published_bounds():
    yarn = YaRN(factor=3.0, original_max_positions=262_144)
    assert yarn.ramp_bounds(128, 5e6) == (29, 45)
    plain = MRoPE(128, 5e6, interleaved([24, 20, 20]))
    scaled = MRoPE(128, 5e6, interleaved([24, 20, 20]), yarn)
    ratio = plain.inv_freq() / scaled.inv_freq()
    assert torch.allclose(ratio[:30], torch.ones(30))
    assert torch.allclose(ratio[45:], torch.full((19,), 3.0))
    assert scaled.attention_factor == pytest.approx(0.1 * math.log(3) + 1)


@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_yarn_equals_transformers(factor):
    init = pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS["yarn"]
    from transformers import Qwen3Config

    config = Qwen3Config(
        head_dim=128,
        max_position_embeddings=1_000_000,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 5e6,
            "factor": factor,
            "original_max_position_embeddings": 262_144,
        },
    )
    expected, attention_factor = init(config, device="cpu")
    rope = MRoPE(128, 5e6, interleaved([24, 20, 20]), YaRN(factor))
    # measured 9e-13 on frequencies up to 1
    assert torch.allclose(rope.inv_freq(), expected, rtol=1e-6, atol=0)
    assert rope.attention_factor == pytest.approx(attention_factor)
