"""Writes the adversarial outputs of the parser's tests as seeds of its fuzz target: python3 seeds.py FOLDER"""

import json
import pathlib
import sys

TOKENS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>", "<|endoftext|>", "<|fim_pad|>"]


def seed(case: dict) -> bytes:
    """The first byte says whether the prompt has opened the thinking; the bytes 1 to 7 are special tokens."""
    output = case["output"]
    if isinstance(output, str):
        data = output.encode()
        for number, token in enumerate(TOKENS, 1):
            data = data.replace(token.encode(), bytes([number]))
    else:
        data = b"".join(bytes([TOKENS.index(p[0]) + 1]) if isinstance(p, list) else p.encode() for p in output)
    return bytes([1 if case.get("in_reasoning") else 0]) + data


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    corpus = pathlib.Path(__file__).resolve().parent.parent / "qwen3-chat" / "tests" / "corpus"
    for file in sorted(corpus.glob("*.jsonl")):
        for number, line in enumerate(file.read_text().split("\n")):
            if line:
                (folder / f"{file.stem}-{number}").write_bytes(seed(json.loads(line)))


main()
