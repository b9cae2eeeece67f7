"""What transformers, PEFT and bitsandbytes make of models of this program, and models that they make.

    look FOLDER IDS OUT [ADAPTER]   loads a checkpoint (in f32 arithmetic) with an adapter; writes OUT/tree.txt and OUT/logits.safetensors
    quantize FOLDER OUT SETTINGS    loads a dense checkpoint into bitsandbytes' 4 bits and saves it
    make OUT SEED                   a random model with random settings, in 4 bits, saved
    adapter FOLDER OUT SETTINGS     a random LoRA adapter on a model, saved
"""

import json
import random
import sys

import torch
from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise
from safetensors.torch import save_file
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

torch.set_grad_enabled(False)


def unpacked(module):
    """The weight of a 4-bit layer in f32, code times scale. bitsandbytes' own function does the same on a card and for rows of whole blocks; on a CPU
    (0.50) it is wrong for others: 14 to 27 % off a weight that NF4 is 9 % off from."""
    state, packed = module.weight.quant_state, module.weight.data.flatten()
    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    values = state.code[torch.stack([packed >> 4, packed & 15], 1).flatten().long()][: state.shape.numel()].float()
    weight = (values * scales.float().repeat_interleave(state.blocksize)[: values.numel()]).reshape(state.shape)
    if state.shape[-1] % state.blocksize == 0:
        state.dtype = torch.float32
        assert torch.equal(weight, dequantize_4bit(module.weight.data, state))
    return weight


def in_f32(model):
    """All arithmetic in f32."""
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.forward = lambda x, m=module, w=unpacked(module): linear(x, w, m.bias)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.float()
    return model.eval()


def look(folder, ids, out, adapter=None):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v}
    assert not wrong, wrong
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    model = in_f32(model)
    with open(f"{out}/tree.txt", "w") as f:
        f.write(repr(model) + "\n")
    logits = model(input_ids=torch.tensor([json.loads(ids)]), attention_mask=None).logits[0]
    save_file({"logits": logits.float().contiguous()}, f"{out}/logits.safetensors")
    # The folder is whole: tokenizer with template, generation settings that can be used.
    tokenizer = AutoTokenizer.from_pretrained(adapter or folder)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", text
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id is not None and generation.pad_token_id is not None, generation
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>", (tokenizer.eos_token, tokenizer.pad_token)


def settings_of(double, skip, dtype):
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )


def quantize(folder, out, settings):
    s = json.loads(settings)
    config = settings_of(s["double"], s["skip"], torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16, device_map="cpu")
    model.save_pretrained(out)


def make(out, seed):
    r = random.Random(int(seed))
    head_dim, kv = r.choice([8, 16, 32]), r.choice([1, 2])
    heads = kv * r.choice([1, 2, 3])
    layers = r.randint(2, 4)
    config = Qwen3Config(
        vocab_size=r.randint(50, 300),
        hidden_size=8 * r.randint(3, 12),
        intermediate_size=8 * r.randint(3, 20),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=head_dim,
        max_position_embeddings=512,
        tie_word_embeddings=r.random() < 0.5,
        attention_bias=r.random() < 0.5,
        rope_theta=r.choice([1e4, 1e6]),
        eos_token_id=2,
        pad_token_id=1,
        bos_token_id=None,
        dtype=r.choice(["bfloat16", "float16", "float32"]),
    )
    torch.manual_seed(int(seed))
    model = Qwen3ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data = torch.randn_like(parameter) * 0.1 + (0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.data = torch.randn_like(parameter) * parameter.shape[-1] ** -0.5
    dense = f"{out}/dense"
    dtype = getattr(torch, r.choice(["bfloat16", "float16", "float32"]))
    model.to(dtype).save_pretrained(dense)
    projections = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    skip = ["lm_head"] + [f"model.layers.{i}.{p}" for i in range(layers) for p in projections if r.random() < 0.25]
    if r.random() < 0.3:
        skip.append(f"model.layers.{r.randrange(layers)}.mlp")
    quantized = AutoModelForCausalLM.from_pretrained(
        dense, quantization_config=settings_of(r.random() < 0.5, skip, dtype), dtype=dtype, device_map="cpu"
    )
    quantized.save_pretrained(f"{out}/model", max_shard_size=r.choice(["20KB", "5GB"]))
    again = in_f32(AutoModelForCausalLM.from_pretrained(f"{out}/model"))
    ids = [r.randrange(config.vocab_size) for _ in range(17)]
    logits = again(input_ids=torch.tensor([ids])).logits[0]
    save_file({"logits": logits.float().contiguous()}, f"{out}/logits.safetensors")
    with open(f"{out}/ids.json", "w") as f:
        json.dump(ids, f)
    with open(f"{out}/tree.txt", "w") as f:
        f.write(repr(again) + "\n")


def adapter(folder, out, settings):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(11)
    s = json.loads(settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), LoraConfig(task_type="CAUSAL_LM", **s))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.05
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)


{"look": look, "quantize": quantize, "make": make, "adapter": adapter}[sys.argv[1]](*sys.argv[2:])
