//! Builds Rust guests into components without extra tools, and rebuilds the official ones to compare them with the embedded bytes.
//!
//! The way of a plugin: [`toolchain`] finds a compiler that can make `wasm32-unknown-unknown` modules, [`guest`] runs cargo with it so
//! that the bytes do not depend on where the sources lie, [`component`] wraps the module into a component and puts its manifest where
//! the host looks for it, and [`official`] does so for the plugins that this repository ships, records what they were built from, and
//! checks later that the same sources still give the same bytes. [`bindings`] writes the guest SDK's bindings from the WIT, [`foreign`] those of
//! other languages, and [`adapter`] holds what stands for WASI there.

pub mod adapter;
pub mod bindings;
pub mod component;
mod error;
pub mod foreign;
pub mod guest;
pub mod official;
pub mod toolchain;
mod typescript;

pub use error::Error;
