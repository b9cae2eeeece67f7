//! Connections: how many there may be, how long they may be silent, and how they end.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::app::{self, App};
use crate::error::ApiError;
use crate::{chat, completions, guard};

/// A client sends the head of a request within this time, also of the next one on a connection that is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// After an error in accepting, such as too many open files.
const PAUSE: Duration = Duration::from_millis(200);

/// All paths.
pub fn router(app: Arc<App>) -> Router {
    let unknown = || async { ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this path").code("unknown_path") };
    let method = || async { ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method") };
    Router::new()
        .route("/v1/chat/completions", post(chat::completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/models", get(app::models))
        .route("/v1/models/{name}", get(app::one_model))
        .route("/health", get(app::health))
        .route("/metrics", get(app::metrics))
        .fallback(unknown)
        .method_not_allowed_fallback(method)
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

/// Connections that are open.
pub struct Open {
    /// Closed when there are none left.
    ended: mpsc::Receiver<()>,
}

impl Open {
    /// Waits until all have ended.
    pub async fn ended(&mut self) {
        while self.ended.recv().await.is_some() {}
    }
}

/// Waits until the server is told to end.
pub async fn told(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left to say it.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Accepts connections, at most `most` at a time, until `stop` says true. Those that are open then finish the request that they are at.
pub async fn accept(listener: TcpListener, router: Router, most: usize, mut stop: watch::Receiver<bool>) -> Open {
    let places = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
    let (alive, ended) = mpsc::channel(1);
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = told(&mut stop) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Events are small, and are wanted at once.
        let _ = stream.set_nodelay(true);
        let (router, alive, mut stop) = (router.clone(), alive.clone(), stop.clone());
        tokio::spawn(async move {
            let (_place, _alive) = (place, alive);
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                result = connection.as_mut() => Some(result),
                () = told(&mut stop) => None,
            };
            let result = match ended {
                Some(result) => result,
                None => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = result {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }
    Open { ended }
}
