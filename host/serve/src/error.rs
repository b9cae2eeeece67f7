//! Errors as OpenAI's interface gives them: a status, and an object with message, type, parameter and code.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// What is wrong with a request, or with this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// In words: what, and how to do better.
    pub message: String,
    /// The parameter, such as `messages[0].content`.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
    /// How many seconds to wait before trying again.
    pub retry_after: Option<u32>,
}

/// Shorthand.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// As it is sent.
#[derive(Serialize)]
struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl ApiError {
    /// An error without parameter or code.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A parameter that cannot be used.
    pub fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError { param: Some(param.into()), code: Some("invalid_value"), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// A parameter that this server does not offer.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError { code: Some("unsupported_parameter"), ..Self::param(param, message) }
    }

    /// Something failed here.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The server is about to end.
    pub fn closing() -> Self {
        ApiError {
            code: Some("shutting_down"),
            retry_after: Some(5),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down")
        }
    }

    /// With a code.
    pub fn code(self, code: &'static str) -> Self {
        ApiError { code: Some(code), ..self }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The JSON text.
    pub fn json(&self) -> String {
        let inner = Inner { message: &self.message, r#type: self.kind(), param: self.param.as_deref(), code: self.code };
        // Strings only: it cannot fail.
        serde_json::to_string(&Body { error: inner }).unwrap_or_default()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], self.json()).into_response();
        let mut add = |name: HeaderName, value: HeaderValue| response.headers_mut().insert(name, value);
        if let Some(seconds) = self.retry_after {
            add(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            add(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
