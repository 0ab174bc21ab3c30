//! OTLP over HTTP: one request, one answer.
//!
//! In: a message's bytes. Out: the answer's, or why there is none and whether to try again. Guarantee: each request has a deadline,
//! each answer a limit.

use super::settings::Target;
use crate::relay::open_error::with_cause;
use crate::tls::{self, TlsError};
use axum::http::{Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::time::Duration;

/// Largest answer that is read, in bytes: the real ones have some hundred.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Longest pause that an answer may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Sends one signal's messages.
#[derive(Debug)]
pub(super) struct Client {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    target: Target,
}

/// Why an export failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(super) struct NotExported {
    pub(super) text: String,
    /// It may be tried again, after so long where the answer says so.
    pub(super) again: Option<Option<Duration>>,
}

impl NotExported {
    pub(super) fn for_good(text: String) -> Self {
        NotExported { text, again: None }
    }

    fn for_now(text: String) -> Self {
        NotExported {
            text,
            again: Some(None),
        }
    }
}

impl Client {
    /// Reads the files that TLS wants; connects nowhere.
    pub(super) fn new(target: Target) -> Result<Self, TlsError> {
        let config = match target.uri.scheme_str() {
            Some("https") => tls::client_config(&target.roots, target.identity.as_ref())?,
            _ => tls::client_without_roots(),
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .build();
        let http = legacy::Client::builder(TokioExecutor::new()).build(connector);
        Ok(Client { http, target })
    }

    /// Where it sends, without what may be a secret.
    pub(super) fn shown(&self) -> String {
        let uri = &self.target.uri;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        format!(
            "{}://{authority}{}",
            uri.scheme_str().unwrap_or_default(),
            uri.path()
        )
    }

    pub(super) async fn post(&self, message: Bytes) -> Result<Bytes, NotExported> {
        let timeout = self.target.timeout;
        let posted = tokio::time::timeout(timeout, self.exchange(message)).await;
        posted.unwrap_or_else(|_| {
            Err(NotExported::for_now(format!(
                "no answer within {timeout:?}"
            )))
        })
    }

    async fn exchange(&self, message: Bytes) -> Result<Bytes, NotExported> {
        let mut request = Request::new(Full::new(message));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.uri.clone();
        *request.headers_mut() = self.target.headers.clone();
        let headers = request.headers_mut();
        let kind = header::HeaderValue::from_static("application/x-protobuf");
        headers.insert(header::CONTENT_TYPE, kind);
        let agent = concat!("walrelay/", env!("CARGO_PKG_VERSION"));
        headers.insert(header::USER_AGENT, header::HeaderValue::from_static(agent));
        let response = self.http.request(request).await;
        let response = response.map_err(|error| NotExported::for_now(with_cause(&error)))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        if head.status != StatusCode::OK {
            return Err(refused(head.status, &head.headers));
        }
        match body {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => Err(NotExported::for_good(format!(
                "the answer cannot be read: {error}"
            ))),
        }
    }
}

/// Which answers may be followed by another attempt: OTLP/HTTP, retryable response codes.
fn refused(status: StatusCode, headers: &header::HeaderMap) -> NotExported {
    let text = format!("the answer is {status}");
    if ![429, 502, 503, 504].contains(&status.as_u16()) {
        return NotExported::for_good(text);
    }
    let after = headers.get(header::RETRY_AFTER);
    let seconds = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let after = seconds.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    NotExported {
        text,
        again: Some(after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let mut headers = header::HeaderMap::new();
        let again = |status: u16, headers: &header::HeaderMap| {
            refused(StatusCode::from_u16(status).expect("a status"), headers).again
        };
        for status in [400, 401, 403, 404, 413, 500, 501, 301] {
            assert_eq!(again(status, &headers), None, "{status}");
        }
        assert_eq!(again(503, &headers), Some(None));
        headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("7"));
        assert_eq!(again(429, &headers), Some(Some(Duration::from_secs(7))));
        headers.insert(
            header::RETRY_AFTER,
            header::HeaderValue::from_static("86400"),
        );
        assert_eq!(again(429, &headers), Some(Some(RETRY_AFTER_MAX)));
    }
}
