"""The chat templates that are saved beside a tokenizer, as text, and which of ours a checkpoint gets."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pytest

from vlmkit.assets import asset_path
from vlmkit.build import build_model
from vlmkit.checkpoint.chat_template import published_template, template_overrides
from vlmkit.data.template import ChatTemplate, InstructTemplate, ThinkingTemplate
from vlmkit.data.tokenizer import build_qwen_tokenizer
from vlmkit.pretrained import load_processor, save_pretrained

processing = pytest.importorskip("transformers.utils.chat_template_utils")

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


def render(
    messages: list[dict[str, Any]], file: str = "chat_template.jinja", **settings: Any
) -> str:
    """As transformers renders it."""
    template = asset_path(file).read_text(encoding="utf-8")
    rendered, _ = processing.render_jinja_template([messages], chat_template=template, **settings)
    return rendered[0]


def think(messages: list[dict[str, Any]], **settings: Any) -> str:
    return render(messages, "chat_template_thinking.jinja", **settings)


def user(*parts: Any) -> dict[str, Any]:
    kinds = {"image": {"type": "image"}, "video": {"type": "video", "video": "a.mp4"}}
    return {
        "role": "user",
        "content": [kinds.get(part, {"type": "text", "text": part}) for part in parts],
    }


def test_turns_and_media() -> None:
    messages = [user("image", "What", " is this?"), {"role": "assistant", "content": "An owl."}]
    assert render(messages) == (
        f"<|im_start|>user\n{IMAGE}What is this?<|im_end|>\n<|im_start|>assistant\nAn owl.<|im_end|>\n"
    )
    assert render(messages[:1], add_generation_prompt=True) == (
        f"<|im_start|>user\n{IMAGE}What is this?<|im_end|>\n<|im_start|>assistant\n"
    )
    url = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}
    assert render([url]) == f"<|im_start|>user\n{IMAGE}<|im_end|>\n"


def test_only_an_opening_system_message_counts() -> None:
    system = {"role": "system", "content": "Be brief."}
    listed = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    hello = {"role": "user", "content": "Hi"}
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert render([system, hello]) == render([listed, hello]) == expected
    assert render([hello, system]) == "<|im_start|>user\nHi<|im_end|>\n"


def test_media_are_counted_over_the_whole_conversation() -> None:
    messages = [
        user("image", "video", "image", "one"),
        {"role": "assistant", "content": "<think>a</think>two"},
        user("image", "three"),
    ]
    assert render(messages, add_vision_id=True) == (
        f"<|im_start|>user\nPicture 1: {IMAGE}Video 1: {VIDEO}Picture 2: {IMAGE}one<|im_end|>\n"
        "<|im_start|>assistant\n<think>a</think>two<|im_end|>\n"
        f"<|im_start|>user\nPicture 3: {IMAGE}three<|im_end|>\n"
    )


TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"name": "zoom", "unit": "°"}\n{"name": "search"}\n</tools>\n\n'
    "For each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_tools_always_open_a_system_turn(system: str | None) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    opening = "<|im_start|>system\n"
    if system:
        messages.insert(0, {"role": "system", "content": system})
        opening += f"{system}\n\n"
    tools = [{"name": "zoom", "unit": "°"}, {"name": "search"}]
    assert render(messages, tools=tools) == (opening + TOOLS + "<|im_start|>user\nHi<|im_end|>\n")


CALLS = [
    {"role": "user", "content": "Look."},
    {
        "role": "assistant",
        "content": "Zooming.",
        "tool_calls": [
            {"type": "function", "function": {"name": "zoom", "arguments": {"é": [1, 2]}}},
            {"name": "search", "arguments": '{"raw":1}'},
        ],
    },
    {"role": "tool", "content": "sharp"},
    {"role": "tool", "content": [{"type": "image"}, {"type": "text", "text": "found"}]},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "zoom", "arguments": {}}]},
    {"role": "tool", "content": "again"},
]


def test_calls_and_their_results() -> None:
    assert render(CALLS) == (
        "<|im_start|>user\nLook.<|im_end|>\n"
        "<|im_start|>assistant\nZooming."
        '\n<tool_call>\n{"name": "zoom", "arguments": {"é": [1, 2]}}\n</tool_call>'
        '\n<tool_call>\n{"name": "search", "arguments": {"raw":1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsharp\n</tool_response>"
        f"\n<tool_response>\n{IMAGE}found\n</tool_response><|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "zoom", "arguments": {}}\n</tool_call>'
        "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nagain\n</tool_response><|im_end|>\n"
    )


def test_thinking_stays_after_the_last_question_only() -> None:
    reasoned = {"role": "assistant", "content": "Two.", "reasoning_content": "\n1 + 1\n"}
    inline = {"role": "assistant", "content": "<think>\n1 + 1\n</think>\n\nTwo."}
    thought = "<|im_start|>assistant\n<think>\n1 + 1\n</think>\n\nTwo.<|im_end|>\n"
    count, sure = {"role": "user", "content": "1 + 1?"}, {"role": "user", "content": "Sure?"}
    asked = "<|im_start|>user\n1 + 1?<|im_end|>\n"
    for answer in (reasoned, inline):
        assert think([count, answer]) == asked + thought
        assert think([count, answer, sure], add_generation_prompt=True) == (
            f"{asked}<|im_start|>assistant\nTwo.<|im_end|>\n"
            "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n<think>\n"
        )
    assert think([count, {"role": "assistant", "content": "Two."}]) == (
        f"{asked}<|im_start|>assistant\n<think>\n\n</think>\n\nTwo.<|im_end|>\n"
    )


def test_results_of_tools_are_no_question() -> None:
    zoom = {**CALLS[1], "reasoning_content": "Closer."}
    written = think([CALLS[0], zoom, *CALLS[2:4]], add_generation_prompt=True)
    assert (
        written
        == render([CALLS[0], CALLS[1], *CALLS[2:4]], add_generation_prompt=True).replace(
            "Zooming.", "<think>\nCloser.\n</think>\n\nZooming."
        )
        + "<think>\n"
    )
    as_user = {"role": "user", "content": "<tool_response>\nsharp\n</tool_response>"}
    assert "Closer." in think([CALLS[0], zoom, as_user])
    as_user["content"] += "?"
    assert "Closer." not in think([CALLS[0], zoom, as_user])


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template_thinking.jinja"])
def test_engines_that_do_not_trim_blocks_write_the_same(file: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, user("video", "image", "x"), *CALLS]
    settings = {"tools": [{"name": "zoom"}], "add_generation_prompt": True, "add_vision_id": True}
    environment = jinja2.Environment()
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    plain = environment.from_string(asset_path(file).read_text(encoding="utf-8"))
    assert plain.render(messages=messages, **settings) == render(messages, file, **settings)


TEMPLATES = [
    kind(add_vision_id=labels)
    for kind in (InstructTemplate, ThinkingTemplate)
    for labels in (False, True)
]


@pytest.mark.parametrize("template", TEMPLATES, ids=repr)
def test_a_saved_template_is_found_again(template: ChatTemplate, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(published_template(template), encoding="utf-8")
    name = type(template).__name__.removesuffix("Template").lower()
    labels = ["template.add_vision_id=true"] if template.add_vision_id else []
    assert template_overrides(tmp_path) == [f"template={name}", *labels]
    assert not template_overrides(tmp_path / "nowhere")


def test_labels_can_be_left_out_by_the_reader() -> None:
    jinja = published_template(ThinkingTemplate(add_vision_id=True))

    def written(**settings: Any) -> str:
        chats, _ = processing.render_jinja_template(
            [[user("image")]], chat_template=jinja, **settings
        )
        return chats[0]

    assert written() == f"<|im_start|>user\nPicture 1: {IMAGE}<|im_end|>\n"
    assert written(add_vision_id=False) == f"<|im_start|>user\n{IMAGE}<|im_end|>\n"


def test_a_template_of_ones_own_is_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    class Mine(InstructTemplate):
        pass

    assert published_template(Mine()) == published_template(InstructTemplate())
    assert "this processor by its own Mine" in caplog.text


def test_a_thinking_checkpoint_gets_its_template(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_pretrained(build_model("model=qwen3vl_tiny"), tmp_path, build_qwen_tokenizer(998))
    assert load_processor(tmp_path).template == InstructTemplate()
    jinja = published_template(ThinkingTemplate())
    (tmp_path / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    assert load_processor(tmp_path).template == ThinkingTemplate()
    assert load_processor(tmp_path, "template=instruct").template == InstructTemplate()
    assert not caplog.text
