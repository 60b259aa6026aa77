"""Over a socket, with the client that people use."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.serving.running import running
from tests.serving.served import Tiny, as_data_url, image, png, user
from vlmkit.data.media import ImageBlob, InMemory
from vlmkit.data.record import ImagePart
from vlmkit.models.generation import Sampling

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def address(tiny: Tiny):
    with running(tiny.app(api_key="k")) as address:
        yield address


@pytest.fixture
def client(address: str):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0) as client:
        yield client


def test_many_clients_get_the_answers_that_each_gets_alone(client, tiny: Tiny) -> None:
    colors = ["red", "green", "blue", "white"]
    questions = [f"What about {color}?" for color in colors]

    def ask(number: int) -> str:
        color, question = colors[number % 4], questions[number % 4]
        asked = {
            "model": "tiny",
            "messages": user(image(as_data_url(png(color=color))), question),
            "max_tokens": 12 + 3 * (number % 4),
            "seed": number,
            "temperature": 1.0 if number % 2 else 0.0,
        }
        if number < 6:
            return client.chat.completions.create(**asked).choices[0].message.content
        return "".join(
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(**asked, stream=True)
        )

    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(ask, range(12)))
    for number, text in enumerate(made):
        color = colors[number % 4]
        picture = ImagePart(ImageBlob(InMemory(png(color=color), color)))
        sampling = Sampling(temperature=1.0 if number % 2 else 0.0, seed=number)
        alone = tiny.expected(
            picture, questions[number % 4], max_new_tokens=12 + 3 * (number % 4), sampling=sampling
        )
        assert text == alone.text, number
    assert len(set(made)) >= 8


def test_the_client_understands_answers_and_errors(client, address: str) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    made = client.chat.completions.create(
        model="tiny",
        messages=user("Hi"),
        n=2,
        temperature=0.8,
        max_completion_tokens=5,
        logprobs=True,
        top_logprobs=2,
        extra_body={"min_p": 0.02, "top_k": -1},
    )
    lengths = [len(choice.logprobs.content) for choice in made.choices]
    assert max(lengths) <= 5
    assert made.usage.completion_tokens == sum(lengths)
    with pytest.raises(openai.BadRequestError, match="temperature must be finite") as caught:
        client.chat.completions.create(model="tiny", messages=user("Hi"), temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.chat.completions.create(model="other", messages=user("Hi"))
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong").models.list()


def test_hanging_up_ends_the_answer(client, address: str) -> None:
    options = {"model": "tiny", "messages": user("Hi"), "max_tokens": 8000}
    stream = client.chat.completions.create(**options, stream=True)
    for _, _chunk in zip(range(4), stream, strict=False):
        pass
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(**options)
    assert httpx.get(f"{address}/health").json()["answers"] >= 1
    stream.close()
    for _ in range(500):
        if httpx.get(f"{address}/health").json()["answers"] == 0:
            break
        time.sleep(0.02)
    else:
        raise AssertionError("it goes on")


def test_a_server_that_stops_says_so(tiny: Tiny) -> None:
    body = {"messages": user("Hi"), "max_tokens": 8000, "stream": True}
    with httpx.Client(timeout=60) as client:
        with running(tiny.app(), timeout_graceful_shutdown=1) as address:
            asked = client.build_request("POST", f"{address}/v1/chat/completions", json=body)
            response = client.send(asked, stream=True)
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
        *_, last, _, done, _ = lines
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
    assert done == "data: [DONE]"
