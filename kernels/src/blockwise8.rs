//! Blockwise 8-bit quantization with dynamic maps.
