"""Run by an interpreter that has vLLM: answers prompts about pictures with a checkpoint, as JSON.

python vllm_answers.py <checkpoint> <questions.json>
"""

from __future__ import annotations

import json
import sys

if __name__ == "__main__":
    from PIL import Image
    from vllm import LLM, SamplingParams

    checkpoint, questions = sys.argv[1:]
    engine = LLM(
        model=checkpoint,
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_seqs=2,
        limit_mm_per_prompt={"image": 1, "video": 0},
    )
    asked = []
    with open(questions) as file:
        for question in json.load(file):
            prompt = {"prompt": question["prompt"]}
            if question["image"]:
                image = Image.open(question["image"]).convert("RGB")
                prompt["multi_modal_data"] = {"image": image}
            asked.append(prompt)
    settings = SamplingParams(temperature=0, max_tokens=8, logprobs=0, ignore_eos=True)
    answers = [
        {
            "prompt_token_ids": list(made.prompt_token_ids),
            "token_ids": list(made.outputs[0].token_ids),
            "logprobs": [
                step[token].logprob
                for token, step in zip(
                    made.outputs[0].token_ids, made.outputs[0].logprobs, strict=True
                )
            ],
        }
        for made in engine.generate(asked, settings)
    ]
    print("ANSWERS " + json.dumps(answers))
