//! No code: gives shared dependencies the same features whatever is built (see `Cargo.toml`).
