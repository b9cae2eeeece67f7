//! NF4 with double quantization.
