//! Builds Rust guests into components without extra tools, and rebuilds the official ones to compare them with the embedded bytes.
