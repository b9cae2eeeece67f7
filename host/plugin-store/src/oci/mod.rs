//! Components in OCI registries, as the CNCF's guidance for Wasm artifacts has them and `wkg oci push` and `wkg oci pull` treat them: an image
//! manifest with a configuration of type `application/vnd.wasm.config.v0+json` and one layer of type `application/wasm`.
//!
//! A signature is an annotation of the manifest ([`SIGNATURE`]): other programs ignore it, a second layer would make them refuse the artifact, and
//! registries that know no referrers keep it. It signs the component, so it stays good when the artifact is copied or tagged anew.

mod artifact;
mod auth;
mod client;

pub(crate) use client::Registry;

/// The annotation that holds the text of a `.minisig` file.
pub const SIGNATURE: &str = "trainer.plugin.minisig";
