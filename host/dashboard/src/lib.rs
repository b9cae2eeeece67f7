//! A local page with live charts of the runs below a folder. It only reads, listens on this machine alone unless told otherwise, and answers
//! only requests that name it by an address or by a name that was allowed, so that a web page elsewhere cannot read it through a name of its
//! own that resolves to this machine.

mod guard;
mod pages;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

pub use guard::host_is_allowed;

/// What to show, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// A run, or a folder with runs in it.
    pub folder: PathBuf,
    /// The address to listen on.
    pub host: IpAddr,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// Names in the `Host` header that are answered besides addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
}

/// Why the page cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DashboardError {
    /// Nothing to show.
    #[error("{} is no folder; give a run directory, or the folder that holds the runs", path.display())]
    NoFolder {
        /// The path.
        path: PathBuf,
    },
    /// The address is not to be had.
    #[error("cannot listen on {address}: {source}; another --port may be free")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The system refused something else.
    #[error("the page cannot be served: {0}")]
    Serve(#[from] std::io::Error),
}

/// Serves until `stop` is done. `ready` gets the address once it answers.
///
/// # Errors
/// See [`DashboardError`].
pub fn serve(
    options: Options,
    ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), DashboardError> {
    if !options.folder.is_dir() {
        return Err(DashboardError::NoFolder { path: options.folder });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let address = SocketAddr::new(options.host, options.port);
        let listener = tokio::net::TcpListener::bind(address).await.map_err(|source| DashboardError::Listen { address, source })?;
        ready(listener.local_addr()?);
        axum::serve(listener, pages::router(Arc::new(options))).with_graceful_shutdown(stop).await?;
        Ok(())
    })
}
