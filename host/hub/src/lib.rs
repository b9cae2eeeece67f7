//! Models and data sets from Hugging Face and ModelScope.
//!
//! A [`RepoRef`] names a repository (`hf://org/name@revision`). [`Hub::snapshot`] gives a folder with the files that are wanted of it: from the cache
//! that the hub's own Python package uses, or downloaded into it. [`Hub::data_files`] does the same for a split of a data set, and [`push`] sends a
//! folder to a hub.
//!
//! Whatever a server says is untrusted: paths are checked before they touch the disk, sizes and redirects are bounded, contents are compared with
//! their checksums before they get their names, and a token goes to the hub's own server and nowhere else.

mod cache;
mod data;
mod digest;
mod download;
mod error;
mod headers;
mod http;
mod huggingface;
mod listing;
mod lock;
mod modelscope;
mod name;
mod path;
pub mod push;
mod settings;
mod snapshot;
mod spans;
mod watch;
mod yaml;

pub use error::HubError;
pub use headers::Headers;
pub use name::{HubKind, NameError, RepoKind, RepoRef};
pub use path::BadPath;
pub use settings::{Endpoint, Settings, SettingsError, Token};
pub use snapshot::{Hub, Snapshot, SnapshotFile, Wanted};
pub use watch::{Silent, Watch};
