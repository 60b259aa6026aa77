"""conf/source: each option builds from the command line's words."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from tests.data.sources.writers import png, write_lines, write_tar
from vlmkit.build import CONF_DIR, build
from vlmkit.data.sources.records import Records
from vlmkit.errors import ConfigError

TURNS = [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": "y"}]


def configured(name: str, **values) -> Records:
    config = OmegaConf.load(CONF_DIR / "source" / f"{name}.yaml")
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), str(value))
    return build(config)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / "a.json").write_text(json.dumps([{"conversations": TURNS, "image": "a.png"}]))
    write_lines(tmp_path / "b.jsonl", [{"conversations": TURNS, "images": ["a.png"]}])
    content = [{"image": "a.png"}, {"text": "x"}]
    write_lines(tmp_path / "c.jsonl", [{"messages": [{"role": "user", "content": content}]}])
    write_tar(tmp_path / "a.tar", [("0.png", png()), ("0.txt", b"x")])
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png())
    (tmp_path / "pictures" / "a.txt").write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "key", "path"),
    [
        ("llava", "table__paths", "a.json"),
        ("sharegpt", "table__paths", "b.jsonl"),
        ("messages", "table__paths", "c.jsonl"),
        ("webdataset", "table__paths", "a.tar"),
        ("image_folder", "table__root", "pictures"),
        ("text", "table__paths", "a.txt"),
    ],
)
def test_every_option_builds_and_reads(files, name, key, path):
    values = {key: files / path}
    if name in ("llava", "sharegpt", "messages"):
        values["media__root"] = files
    source = configured(name, **values)
    (conversation,) = [source[i] for i in range(len(source))]
    assert conversation.source == name
    for part in conversation.parts:
        if hasattr(part, "image"):
            assert part.image.size() == (3, 4)


def test_every_option_is_tested():
    options = {path.stem for path in (CONF_DIR / "source").glob("*.yaml")}
    (mark,) = test_every_option_builds_and_reads.pytestmark
    assert {name for name, *_ in mark.args[1]} == options


def test_a_path_that_is_not_given_is_named():
    with pytest.raises(ConfigError, match=r"paths"):
        configured("llava")
    with pytest.raises(ConfigError, match=r"there is no file nowhere.jsonl"):
        configured("llava", table__paths="nowhere.jsonl")
