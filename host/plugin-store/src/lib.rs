//! Plugins of other people: fetched from files, `https` addresses and OCI registries, checked, and kept by their digests.
//!
//! A [`Manager`] brings plugins into the user's [`Store`] and signs, pushes and audits them. [`Pins`] say which bytes a project uses. Whatever comes
//! from a server or a file is untrusted: it is bounded, compared with its digest and its signature, and inspected, before anything is kept; and the
//! store hashes it again each time it is read.

mod audit;
mod digest;
mod error;
mod fetch;
mod files;
mod http;
mod keys;
mod manage;
mod minisign;
pub mod oci;
mod pins;
mod policy;
mod publish;
mod reference;
mod settings;
mod store;

pub use audit::{Audit, Audited, Finding, Level, Report, Used};
pub use digest::Digest;
pub use error::StoreError;
pub use keys::{KeyInfo, KeyRing, SignerKey, Verdict};
pub use manage::{AddOptions, Added, Change, Manager, Removed, Updated};
pub use pins::{PIN_FILE, Pin, Pins};
pub use policy::Policy;
pub use publish::Pushed;
pub use reference::{OciReference, Reference};
pub use settings::Settings;
pub use store::{Entry, Index, Store};
