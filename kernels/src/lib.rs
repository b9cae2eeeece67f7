//! The operations of the engine behind one trait, with their CPU reference: quantization, optimizer and every forward and backward.
//!
//! Each kernel stands beside its CPU reference; the decoder layer in `trainer-engine` is written once over [`ops::Ops`].

pub mod adamw;
pub mod blockwise8;
pub mod cpu;
pub mod nf4;
pub mod ops;
pub mod rng;
pub mod sampling;
