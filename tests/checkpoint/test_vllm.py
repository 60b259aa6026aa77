"""vLLM answers from an exported run as vlmkit does; in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.untrained import save_run
from vlmkit.convert import from_run, write
from vlmkit.data.collate import collate_prompt
from vlmkit.data.media import ImageFile
from vlmkit.data.record import Conversation, ImagePart, Message, TextPart
from vlmkit.models.generation import Decoding, Request, generate_many
from vlmkit.runs import load_run

PYTHON = os.environ.get("VLMKIT_VLLM_PYTHON")
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
TEXT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    PYTHON is None, reason="VLMKIT_VLLM_PYTHON names no interpreter with vLLM (docs/serving.md)"
)
def test_greedy_tokens_and_log_probabilities(tmp_path: Path) -> None:
    heads = [
        "size.head_dim=32",
        "size.mrope_section=[8,4,4]",
    ]  # vLLM's CPU kernel has no heads of 16
    run = save_run(tmp_path / "run", *heads)
    write(from_run(run), tmp_path / "exported")
    picture = tmp_path / "picture.png"
    Image.effect_noise((200, 150), 80).convert("RGB").save(picture)
    vision = "<|vision_start|><|image_pad|><|vision_end|>"
    questions = [
        {"prompt": TEXT.format("Hello!"), "image": None},
        {"prompt": TEXT.format(vision + "What is it?"), "image": str(picture)},
    ]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    script = Path(__file__).parent / "vllm_answers.py"
    done = subprocess.run(
        [PYTHON or "", str(script), str(tmp_path / "exported"), str(tmp_path / "questions.json")],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | QUIET,
        cwd=tmp_path,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert lines, done.stderr[-3000:]
    theirs = json.loads(lines[-1].removeprefix("ANSWERS "))

    found = load_run(run)
    parts = [
        (TextPart("Hello!"),),
        (ImagePart(ImageFile(picture)), TextPart("What is it?")),
    ]
    decoding = Decoding(max_new_tokens=8, stop_ids=(), top_logprobs=0)
    requests = [
        Request(
            prompt=collate_prompt(
                Conversation(messages=(Message(role="user", parts=own),)), found.processor
            ),
            decoding=decoding,
        )
        for own in parts
    ]
    ours = generate_many(found.model, requests, tokenizer=found.processor.tokenizer)
    errors = []
    for own, request, other in zip(ours, requests, theirs, strict=True):
        assert other["prompt_token_ids"] == request.prompt.input_ids[0].tolist()
        assert other["token_ids"] == list(own.token_ids)
        assert own.logprobs is not None
        pairs = zip(own.logprobs, other["logprobs"], strict=True)
        errors.append(max(abs(token.logprob - value) for token, value in pairs))
    assert max(errors) <= 1e-5  # measured 9.6e-7, vLLM 0.32.0 on a CPU
