"""The server of `trainer serve` as OpenAI's own client sees it. Arguments: the server's address, and a case of nano's tools_eval as JSON."""

import json
import sys

import openai

address, case = sys.argv[1], json.loads(sys.argv[2])
client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0)

models = [m.id for m in client.models.list()]
assert models == ["nano"], models
assert client.models.retrieve("nano").id == "nano"

ask = dict(model="nano", messages=[{"role": "user", "content": "What is 17 * 3?"}], seed=7)
whole = client.chat.completions.create(**ask, n=2, logprobs=True, top_logprobs=3, temperature=0.8)
assert [c.index for c in whole.choices] == [0, 1]
for choice in whole.choices:
    tokens = choice.logprobs.content
    assert all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in tokens)
    said = bytes(b for t in tokens for b in t.bytes).decode()
    assert choice.message.content.strip() in said, (choice, said)
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

texts, usage = {0: "", 1: ""}, None
stream = client.chat.completions.create(
    **ask, n=2, logprobs=True, top_logprobs=3, temperature=0.8, stream=True, stream_options={"include_usage": True}
)
for chunk in stream:
    usage = chunk.usage or usage
    for choice in chunk.choices:
        texts[choice.index] += choice.delta.content or ""
assert texts == {c.index: c.message.content for c in whole.choices}, (texts, whole)
assert usage.completion_tokens == whole.usage.completion_tokens

# The client's own accumulator of streams, with tools.
with client.chat.completions.stream(model="nano", messages=case["messages"], tools=case["tools"], temperature=0) as events:
    for _ in events:
        pass
    final = events.get_final_completion()
message = final.choices[0].message
assert final.choices[0].finish_reason == "tool_calls", final
calls = [{"name": c.function.name, "arguments": json.loads(c.function.arguments)} for c in message.tool_calls]
assert calls == case["expected_calls"], calls
results = [
    {"role": "tool", "tool_call_id": c.id, "content": json.dumps(f["response"])}
    for c, f in zip(message.tool_calls, case["tool_fixtures"])
]
history = [*case["messages"], message.to_dict(), *results]
answer = client.chat.completions.create(model="nano", messages=history, tools=case["tools"], temperature=0)
assert all(part in answer.choices[0].message.content for part in case["answer_contains"]), answer

text = client.completions.create(model="nano", prompt=["1 + 1 =", "2 + 2 ="], max_tokens=5, temperature=0, logprobs=2, echo=True)
assert [c.text[:7] for c in text.choices] == ["1 + 1 =", "2 + 2 ="]
assert text.choices[0].logprobs.token_logprobs[0] is None
pieces = "".join(c.choices[0].text for c in client.completions.create(model="nano", prompt="1 + 1 =", max_tokens=5, temperature=0, stream=True))
assert "1 + 1 =" + pieces == text.choices[0].text, (pieces, text)


def refused(kind, **more):
    try:
        client.chat.completions.create(**{**ask, **more})
    except kind as error:
        return error
    raise AssertionError(more)


assert refused(openai.NotFoundError, model="other").code == "model_not_found"
assert refused(openai.BadRequestError, temperature=9).param == "temperature"
assert refused(openai.BadRequestError, presence_penalty=3).code == "invalid_value"
assert refused(openai.BadRequestError, response_format={"type": "json_object"}).code == "unsupported_parameter"
print("ok")
