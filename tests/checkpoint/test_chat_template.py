"""The chat template that is saved beside a tokenizer, as text."""

from __future__ import annotations

from typing import Any

import pytest

from vlmkit.assets import asset_path

processing = pytest.importorskip("transformers.utils.chat_template_utils")

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


def render(messages: list[dict[str, Any]], **settings: Any) -> str:
    """As transformers renders it."""
    template = asset_path("chat_template.jinja").read_text(encoding="utf-8")
    rendered, _ = processing.render_jinja_template([messages], chat_template=template, **settings)
    return rendered[0]


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


def test_calls_and_their_results() -> None:
    messages = [
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
    assert render(messages) == (
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
