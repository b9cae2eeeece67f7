//! Model folders: config.json, safetensors checkpoints (16-bit and bitsandbytes 4-bit) and PEFT adapters, read with checks and written atomically.
