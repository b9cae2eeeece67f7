//! Server-sent events.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::answers::InFlight;
use crate::error::{ApiError, Result};

/// Events that a client may be behind; beyond, the answer waits for it.
const AHEAD: usize = 32;

/// Where events go.
pub struct Events(Sender<Bytes>);

impl Events {
    async fn put(&self, text: String) -> Result<()> {
        // Nobody sees this error.
        self.0.send(text.into()).await.map_err(|_| ApiError::internal("the client has gone away"))
    }

    /// Sends an object.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub async fn send(&self, value: &Value) -> Result<()> {
        self.put(format!("data: {value}\n\n")).await
    }

    /// Says that the server is still there, in a way that clients pass over.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub async fn alive(&self) -> Result<()> {
        self.put(": waiting\n\n".into()).await
    }

    /// The last event.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub async fn done(&self) -> Result<()> {
        self.put("data: [DONE]\n\n".into()).await
    }
}

/// A response of events that `write` sends, until a deadline. An error becomes the last event.
pub fn stream<F>(flight: InFlight, deadline: tokio::time::Instant, write: impl FnOnce(Events) -> F) -> Response
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, receiver) = channel(AHEAD);
    let writing = write(Events(sender.clone()));
    tokio::spawn(async move {
        let result = tokio::select! {
            result = flight.until(deadline, writing) => result,
            // Dropping the other future ends the answers.
            () = sender.closed() => return,
        };
        if let Err(error) = result {
            // Where the client does not read, there is no room, and it finds out by itself.
            let _ = sender.try_send(format!("data: {}\n\n", error.json()).into());
        }
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::new(Stream(receiver))).into_response()
}

/// The body of such a response.
struct Stream(Receiver<Bytes>);

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<std::result::Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|b| Ok(Frame::data(b))))
    }
}
