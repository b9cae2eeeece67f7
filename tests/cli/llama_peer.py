"""What llama.cpp makes of a GGUF file: the greedy tokens after given ids, and the text of a chat.

    llama_peer.py FILE IDS COUNT   prints one JSON object: {"ids": [...], "text": "...", "chat": {...}}
"""

import json
import sys

import xllamacpp as llama

path, ids, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
params = llama.CommonParams()
params.model.path = path
params.n_ctx = 1024
params.n_parallel = 1
params.n_gpu_layers = 0
params.cpuparams.n_threads = 1
params.cpuparams_batch.n_threads = 1
params.warmup = False
params.sampling.seed = 1
params.use_jinja = True
server = llama.Server(params)


def ask(handler, request):
    answer = handler(request)
    answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
    assert "error" not in answer and answer.get("code", 200) == 200, answer
    return answer


greedy = {"temperature": 0.0, "top_k": 1, "seed": 1, "cache_prompt": False}
# The ids stand with the log-probabilities.
done = ask(server.handle_completions, {"prompt": ids, "max_tokens": count, "logprobs": 1, **greedy})["choices"][0]
chat = ask(
    server.handle_chat_completions,
    {"messages": [{"role": "user", "content": "Solve for x: 3(x + 1) = 12."}], "max_tokens": count, **greedy},
)
message = chat["choices"][0]["message"]
print(json.dumps({"ids": [token["id"] for token in done["logprobs"]["content"]], "text": done["text"], "chat": message}))
