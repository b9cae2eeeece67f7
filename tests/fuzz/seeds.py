"""Writes seeds of the fuzz targets, a folder for each, from the reference's files and by hand: python3 seeds.py FOLDER"""

import json
import pathlib
import struct
import sys

REFERENCE = pathlib.Path(__file__).resolve().parent.parent / "reference"
WEIGHT = "model.layers.0.mlp.up_proj.weight"


def tensors() -> list:
    layer = [
        ("input_layernorm", [8]), ("post_attention_layernorm", [8]), ("self_attn.q_norm", [4]), ("self_attn.k_norm", [4]),
        ("self_attn.q_proj", [8, 8]), ("self_attn.k_proj", [4, 8]), ("self_attn.v_proj", [4, 8]), ("self_attn.o_proj", [8, 8]),
        ("mlp.gate_proj", [16, 8]), ("mlp.up_proj", [16, 8]), ("mlp.down_proj", [8, 16]),
    ]
    named = [(f"model.layers.0.{name}.weight", shape) for name, shape in layer]
    return [("model.embed_tokens.weight", [10, 8]), ("model.norm.weight", [8])] + named


def header(all_tensors: list, dtype: str = "F32", size: int = 4) -> tuple:
    out, at = {}, 0
    for name, shape in all_tensors:
        count = size
        for side in shape:
            count *= side
        out[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + count]}
        at += count
    return json.dumps(out).encode(), at


def safetensors() -> dict:
    seeds = {}
    for dtype, size in [("F32", 4), ("BF16", 2), ("F16", 2)]:
        text, data = header(tensors(), dtype, size)
        seeds[dtype] = struct.pack("<H", data) + text
        index = json.dumps({"metadata": {}, "weight_map": {name: "model-00001-of-00001.safetensors" for name, _ in tensors()}})
        seeds[f"{dtype}-index"] = struct.pack("<H", data) + text + b"\0" + index.encode()
        seeds[f"{dtype}-whole"] = struct.pack("<H", 0x8000) + struct.pack("<Q", len(text)) + text + bytes(data)
    return seeds


def quant_state() -> dict:
    single = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [16, 8]}
    nested = {**single, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.02}
    # Two scales, of two blocks.
    return {"single": bytes([2 << 1]) + json.dumps(single).encode(), "nested": bytes([2 << 1 | 1]) + json.dumps(nested).encode()}


def config() -> dict:
    seeds = {}
    for folder in ["model/nf4", "model/tied_f32", "model/untied_bf16", "quant/dynamic_nf4_bf16"]:
        path = REFERENCE / folder
        generation = path / "generation_config.json"
        text = (path / "config.json").read_bytes()
        seeds[folder.replace("/", "-")] = text + b"\0" + (generation.read_bytes() if generation.exists() else b'{"eos_token_id": [1, 2]}')
    return seeds


def adapter() -> dict:
    a, b = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight" for part in "AB")
    text, data = header([(a, [4, 8]), (b, [8, 4])])
    base = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    configs = {
        "plain": base,
        "patterns": {**base, "rank_pattern": {r"layers\.1\..*q_proj": 2}, "alpha_pattern": {"(q|v)_proj": 12}, "use_rslora": True},
        "expression": {**base, "target_modules": r".*layers\.[0-2]\..*_proj", "exclude_modules": ["k_proj"]},
        "layers": {**base, "layers_to_transform": [0, 1], "layers_pattern": "layers", "bias": "lora_only", "lora_dropout": 0.05},
        "all": {**base, "target_modules": "all-linear"},
    }
    seeds = {name: json.dumps(c).encode() + b"\0" + struct.pack("<H", data) + text for name, c in configs.items()}
    for path in REFERENCE.glob("model/*_goldens/*/adapter_config.json"):
        seeds[f"{path.parent.parent.name}-{path.parent.name}"] = path.read_bytes()
    return seeds


def gguf() -> dict:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def string(key: str, value: str) -> bytes:
        return text(key) + struct.pack("<I", 8) + text(value)

    def number(key: str, value: int) -> bytes:
        return text(key) + struct.pack("<II", 4, value)

    def real(key: str, value: float) -> bytes:
        return text(key) + struct.pack("<If", 6, value)

    def texts(key: str, values: list) -> bytes:
        return text(key) + struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(text, values))

    def integers(key: str, values: list) -> bytes:
        return text(key) + struct.pack("<IIQ", 9, 5, len(values)) + struct.pack(f"<{len(values)}i", *values)

    sizes = {
        "block_count": 1, "context_length": 64, "embedding_length": 8, "feed_forward_length": 16, "attention.head_count": 2,
        "attention.head_count_kv": 1, "attention.key_length": 4, "attention.value_length": 4,
    }
    pairs = [string("general.architecture", "qwen3")] + [number(f"qwen3.{key}", value) for key, value in sizes.items()]
    pairs += [real("qwen3.attention.layer_norm_rms_epsilon", 1e-6), real("qwen3.rope.freq_base", 1e6)]
    pairs += [string("tokenizer.ggml.model", "gpt2"), string("tokenizer.ggml.pre", "qwen2")]
    pairs += [string("tokenizer.chat_template", "{{ messages }}"), number("tokenizer.ggml.eos_token_id", 8)]
    pairs += [texts("tokenizer.ggml.tokens", ["a", "b", "c", "ab", "abc", "d", "e", "f", "<|im_end|>", "<think>"])]
    pairs += [integers("tokenizer.ggml.token_type", [1] * 8 + [3, 4]), texts("tokenizer.ggml.merges", ["a b", "ab c"])]
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }
    infos, at = [], 0
    for name, shape in tensors():
        short = name.removeprefix("model.layers.0.").removesuffix(".weight")
        plain = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
        known = plain[short] if short in plain else f"blk.0.{names[short]}"
        count = 4
        for side in shape:
            count *= side
        infos.append(text(f"{known}.weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), 0, at))
        at = -(-(at + count) // 32) * 32
    seeds = {}
    for version in (2, 3):
        head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos)
        seeds[f"v{version}"] = head + bytes(-len(head) % 32) + b"\x10\x20\x30\x3d" * (at // 4)
    return seeds


def tokenizer() -> dict:
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    letters = [chr(c) for c in list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256)) + list(range(256, 324))]
    vocab = {letter: i for i, letter in enumerate(letters)}
    for pair in ["ll", "Ġl", "he"]:
        vocab[pair] = len(vocab)
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    file = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": len(vocab), "content": "<|im_end|>", **special}, {"id": len(vocab) + 1, "content": "<think>", **special}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}, byte_level],
        },
        "post_processor": byte_level, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab,
            "merges": [["l", "l"], ["Ġ", "l"], ["h", "e"]],
        },
    }
    text = json.dumps(file, ensure_ascii=False).encode()
    companions = b'\0{"eos_token": "<|im_end|>", "pad_token": {"content": "<think>"}}\0{"eos_token_id": [' + str(len(vocab)).encode() + b"]}"
    general = json.dumps({**file, "normalizer": None}, ensure_ascii=False).encode()
    small = {**file, "model": {**file["model"], "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}, "added_tokens": []}
    return {"qwen": text + companions, "general": general, "small": json.dumps(small).encode()}


def main() -> None:
    for make in (safetensors, quant_state, config, adapter, gguf, tokenizer):
        folder = pathlib.Path(sys.argv[1]) / make.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in make().items():
            (folder / name).write_bytes(data)


main()
