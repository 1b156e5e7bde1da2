# SPDX-License-Identifier: Apache-2.0
"""Holds the server against OpenAI's Python client, used as it is. make check-openai runs it: KVIST_URL is that of a
server whose API key is KVIST_KEY."""

import concurrent.futures
import os

import openai

url, key = os.environ["KVIST_URL"] + "/v1", os.environ["KVIST_KEY"]
client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)

assert [m.id for m in client.models.list()] == ["smollm2"]
assert client.models.retrieve("smollm2").id == "smollm2"

ask = dict(
    model="smollm2",
    temperature=0,
    max_completion_tokens=24,
    messages=[
        {"role": "system", "content": "Answer in one short sentence."},
        {"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]},
    ],
)
whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
text = whole.choices[0].message.content
assert "Paris" in text, text
assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
assert whole.choices[0].logprobs.content[0].top_logprobs[0].logprob <= 0

parts = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == text
assert parts[-1].usage.total_tokens == whole.usage.total_tokens
with client.chat.completions.stream(**ask) as stream:
    assert stream.get_final_completion().choices[0].message.content == text

plain = client.completions.create(model="smollm2", prompt="The capital of Germany is", max_tokens=4, temperature=0)
assert "Berlin" in plain.choices[0].text, plain
hinted = client.chat.completions.create(**ask, extra_body={"kvist": {"fade": 0.5, "forget": True}, "top_k": 5})
assert hinted.choices[0].message.content

for kind, call in {
    openai.AuthenticationError: lambda: openai.OpenAI(base_url=url, api_key="wrong").models.list(),
    openai.BadRequestError: lambda: client.chat.completions.create(**ask, n=2),
    openai.NotFoundError: lambda: client.chat.completions.create(**{**ask, "model": "gpt-9"}),
}.items():
    try:
        call()
    except kind as e:
        assert e.code, e
    else:
        raise AssertionError(f"no {kind}")


def talk(number):
    """Twenty turns of one client: each goes on from the last."""
    said, cached = [], 0
    for turn in range(20):
        said.append({"role": "user", "content": f"Client {number}, turn {turn}: name something that begins with {chr(97 + turn)}."})
        out = client.chat.completions.create(model="smollm2", messages=said, temperature=0, max_tokens=12)
        said.append({"role": "assistant", "content": out.choices[0].message.content})
        cached += out.usage.prompt_tokens_details.cached_tokens
    return out.usage.prompt_tokens, cached


with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for tokens, cached in pool.map(talk, range(8)):
        assert tokens > 400, tokens
print("the Python client: chat, streams, text, log probabilities, hints, errors, 8 clients of 20 turns")
