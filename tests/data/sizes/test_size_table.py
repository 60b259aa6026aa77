"""Tables of sizes: what they keep, and that training with one is training without one."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.toys import WORK, Numbered, sizes_of
from vlmkit.build import build, compose_config
from vlmkit.data.datamodule import VLMDataModule
from vlmkit.data.media import ImageArray
from vlmkit.data.order.mixture import Mixture, TokenUnit, Weighted
from vlmkit.data.order.over_length import ShrinkMedia
from vlmkit.data.order.samples import Samples, measure, table_key
from vlmkit.data.order.steps import FixedRows, FixedSamples
from vlmkit.data.order.work import Limits, Sizes
from vlmkit.data.processor import Processor
from vlmkit.data.record import Conversation, ImagePart, Message, TextPart
from vlmkit.data.rows import Rows
from vlmkit.data.sizes.size_table import MOST_SAMPLES, REASONS, SizeTable, is_measurable
from vlmkit.errors import ConfigError, Reason

ROWS = Rows(row_tokens=160)
BROKEN = frozenset({3, 17, 30, 31})


def tiny(*overrides: str) -> Processor:
    return build(compose_config("model=qwen3vl_tiny", *overrides).processor)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return tiny("processor.image.min_pixels=1024", "processor.image.max_pixels=16384")


def table_of(part: Weighted, processor: Processor, limits: Limits) -> SizeTable:
    found = [measure(part, processor, limits, i) for i in range(len(part.source))]
    sizes = Sizes.of([])
    for size, _ in found:
        sizes = sizes + size
    codes = [0 if reason is None else REASONS.index(reason) + 1 for _, reason in found]
    return SizeTable(
        sizes=sizes,
        codes=np.array(codes, dtype=np.uint8),
        key=table_key(part, processor, limits),
    )


def data_module(mixture: Mixture, processor: Processor, planner) -> VLMDataModule:
    return VLMDataModule(
        mixture=mixture, validation={}, processor=processor, rows=ROWS, planner=planner, work=WORK,
        num_steps=8,
    )  # fmt: skip


def test_a_table_comes_back_as_it_was_written(tmp_path):
    codes = np.array([0, 1, len(REASONS)], dtype=np.uint8)
    table = SizeTable(sizes=sizes_of([10, 0, 30], [4, 0, 16]), codes=codes, key="k")
    table.save(tmp_path / "new" / "a.parquet")
    read = SizeTable.load(tmp_path / "new" / "a.parquet")
    for name, column in vars(table.sizes).items():
        assert getattr(read.sizes, name).tolist() == column.tolist()
    assert read.codes.tolist() == codes.tolist()
    assert read.key == "k"
    assert len(read) == 3
    assert read.usable.tolist() == [True, False, False]
    assert read.mean_tokens == pytest.approx(10 / 3)
    assert [read.reason(i) for i in range(3)] == [None, REASONS[0], REASONS[-1]]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.parquet"]


def test_reasons_keep_their_names_when_others_are_added(tmp_path):
    """A file written when there were other reasons, in another order."""
    path = tmp_path / "a.parquet"
    SizeTable(sizes=sizes_of([1, 2, 3]), codes=np.array([0, 2, 1], np.uint8), key="").save(path)
    written = pq.read_table(path)
    about = json.loads(written.schema.metadata[b"vlmkit"])
    about["reasons"] = ["too_long", "bad_record"]
    pq.write_table(written.replace_schema_metadata({b"vlmkit": json.dumps(about)}), path)
    read = SizeTable.load(path)
    assert [read.reason(i) for i in range(3)] == [None, Reason.BAD_RECORD, Reason.TOO_LONG]


def test_what_is_no_table_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    with pytest.raises(ConfigError, match="cannot be read"):
        SizeTable.load(path)
    table = SizeTable(sizes=sizes_of([1] * 5000), codes=np.zeros(5000, np.uint8))
    table.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="cannot be read"):
        SizeTable.load(path)
    pq.write_table(pa.table({"tokens": [1]}), path)
    with pytest.raises(ConfigError, match="not a table that this version of vlmkit wrote"):
        SizeTable.load(path)


@pytest.mark.parametrize("planner", [FixedSamples(24, WORK), FixedRows(3, WORK)])
def test_steps_are_the_same_with_and_without_tables(processor, planner):
    """Rows, order and what is left out; with tables nothing is opened to know them."""
    sources = {"a": Numbered(61, BROKEN), "b": Numbered(40)}
    parts = {name: Weighted(source=source) for name, source in sources.items()}
    tables = {name: table_of(part, processor, ROWS.limits) for name, part in parts.items()}
    planned = []
    for chosen in (parts, {n: replace(part, sizes=tables[n]) for n, part in parts.items()}):
        for source in sources.values():
            source.opened.clear()
        samples = Samples(Mixture(chosen, seed=3), processor, ROWS.limits)
        tickets = islice(planner.tickets(samples, planner.start()), 8)
        planned.append([planner.rows(samples, ticket) for ticket in tickets])
    assert not any(source.opened for source in sources.values())
    for without, with_table in zip(*planned, strict=True):
        assert with_table.rows == without.rows
        assert with_table.costs.tolist() == without.costs.tolist()
        left_out = [[(s.index, s.code) for s in step.skipped] for step in (without, with_table)]
        assert left_out[0] == left_out[1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"source": Numbered(12)}, "samples was 61, now it is 12"),
        ({"over_length": (ShrinkMedia(),)}, "over_length was"),
        ({"processor": tiny("template.add_vision_id=true")}, "template was"),
        ({"processor": tiny("model=qwen3vl_tiny_moe", "size.vocab_ranks=500")}, "tokenizer was"),
        ({"processor": tiny("processor.image.max_pixels=32768")}, "image was"),
        ({"limits": Limits(96)}, "row_tokens was 160, now it is 96"),
        ({"limits": Limits(160, 64)}, "row_patches was None, now it is 64"),
    ],
)
def test_a_table_of_something_else_is_refused_and_says_what_differs(processor, changed, words):
    part = Weighted(source=Numbered(61))
    part = replace(part, sizes=table_of(part, processor, ROWS.limits))
    limits = changed.pop("limits", ROWS.limits)
    used = changed.pop("processor", processor)
    Samples(Mixture({"a": part}), processor, ROWS.limits)  # its own
    with pytest.raises(ConfigError, match=words) as error:
        Samples(Mixture({"a": replace(part, **changed)}), used, limits)
    assert "the sizes of a do not belong to this run" in str(error.value)


def test_keys_name_no_objects_and_no_processes(processor):
    same = tiny("processor.image.min_pixels=1024", "processor.image.max_pixels=16384")
    slow = tiny(
        "processor.image.min_pixels=1024", "processor.image.max_pixels=16384",
        "frame_reader.time_limit_s=600",
    )  # fmt: skip
    keys = {
        table_key(Weighted(source=Numbered(5)), each, ROWS.limits)
        for each in (processor, same, slow)
    }
    assert len(keys) == 1
    assert "0x" not in keys.pop()


def test_a_folder_of_tables(processor, tmp_path, caplog):
    parts = {"a": Weighted(source=Numbered(30)), "b": Weighted(source=Numbered(40))}
    with pytest.raises(ConfigError, match=r"holds no a\.parquet, b\.parquet"):
        Mixture(parts, sizes=tmp_path)
    table_of(parts["a"], processor, ROWS.limits).save(tmp_path / "a.parquet")
    with caplog.at_level(logging.INFO):
        mixture = Mixture(parts, sizes=str(tmp_path))
    assert f"no sizes of b in {tmp_path}" in caplog.text
    assert mixture.parts["a"].sizes is not None
    assert mixture.parts["b"].sizes is None
    with pytest.raises(ValueError, match=r"\['b'\] have none"):
        Mixture(parts, sizes=tmp_path, unit=TokenUnit())
    table_of(parts["b"], processor, ROWS.limits).save(tmp_path / "b.parquet")
    assert Mixture(parts, sizes=tmp_path, unit=TokenUnit()).shares.sum() == pytest.approx(1)
    none = SizeTable(sizes=sizes_of([0] * 30), codes=np.ones(30, np.uint8))
    useless = {"a": replace(parts["a"], sizes=none)}
    with pytest.raises(ValueError, match=r"no sample of \['a'\] can be used"):
        Mixture(useless, unit=TokenUnit())


def test_tokens_of_sources_are_in_the_ratio_of_their_weights(processor):
    """Also where one of them has samples that bring none."""
    sources = {"a": Numbered(90, frozenset(range(0, 90, 2))), "b": Numbered(80)}
    parts = {name: Weighted(source=source) for name, source in sources.items()}
    tables = {name: table_of(part, processor, ROWS.limits) for name, part in parts.items()}
    parts = {name: replace(part, sizes=tables[name]) for name, part in parts.items()}
    mixture = Mixture(parts, unit=TokenUnit(), block=5000)
    at = mixture.locate(np.arange(mixture.block))
    tokens = [
        tables[name].sizes.tokens[at.position[at.part == i]].sum() for i, name in enumerate(parts)
    ]
    assert tokens[0] / tokens[1] == pytest.approx(1, abs=0.03)  # measured 0.0008


def test_filling_rows_from_headers_says_that_measuring_helps(processor, tmp_path, caplog):
    part = Weighted(source=Numbered(30))
    endless = Weighted(source=Numbered(MOST_SAMPLES + 1))
    assert is_measurable(part.source)
    assert not is_measurable(endless.source)
    table = table_of(part, processor, ROWS.limits)
    for chosen, planner, said in (
        ({"a": part, "b": endless}, FixedRows(2, WORK), True),
        ({"a": replace(part, sizes=table)}, FixedRows(2, WORK), False),
        ({"b": endless}, FixedRows(2, WORK), False),
        ({"a": part}, FixedSamples(4, WORK), False),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            data_module(Mixture(chosen), processor, planner).train_dataloader()
        assert ("headers of all samples of a: python -m vlmkit.stats" in caplog.text) == said


@dataclass
class Growing:
    """Pictures of a side that can be changed after they were measured."""

    side: int = 64

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Conversation:
        picture = ImagePart(ImageArray(np.zeros((self.side, self.side, 3), np.uint8)))
        asked = Message(role="user", parts=(picture, TextPart("what?")))
        said = Message(role="assistant", parts=(TextPart("nothing"),))
        return Conversation(messages=(asked, said), key=index, origin=f"growing:{index}")


def test_a_picture_that_grew_since_is_left_out_where_it_does_not_fit(processor):
    source = Growing()
    part = Weighted(source=source)
    part = replace(part, sizes=table_of(part, processor, ROWS.limits))
    data = data_module(Mixture({"a": part}), processor, FixedRows(2, WORK))
    steps = data.training_steps()
    ticket = next(iter(data.planner.tickets(data.samples, data.planner.start())))
    before = steps[ticket]
    assert not before.skipped
    source.side = 128
    after = steps[ticket]
    assert all(micro.input_ids.shape[1] <= ROWS.row_tokens for micro in after.micro_batches)
    assert 0 < after.samples["a"] < before.samples["a"]
    assert {item.code for item in after.skipped} == {Reason.TOO_LONG}
    assert "its files have changed since" in after.skipped[0].message
