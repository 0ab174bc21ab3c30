//! `/metrics`, `/livez`, `/healthz`, `/readyz`, `/status.json` and the status page at `/`.
//!
//! In: where to listen, a [`Board`]. Out: a task beside the relay's loop on the same thread: it only reads the board,
//! so a slow or stuck client costs the relay nothing but the bytes that it asked for.

use super::metrics::Metrics;
use super::page;
use crate::relay::status::Board;
use anyhow::Context as _;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Path of the status as JSON, which `walrelay status` reads.
pub(crate) const STATUS_PATH: &str = "/status.json";

struct Site {
    board: Board,
    metrics: Metrics,
}

type Served = Shared<Arc<Site>>;

/// A listener that serves until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Listens and serves.
    ///
    /// # Errors
    /// The address cannot be listened on; the message names the key.
    pub async fn start(listen: SocketAddr, name: &str, board: Board) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!(
                "http.listen: cannot listen on {listen} (each relay needs an address of its own; \"\" turns it off)"
            )
        })?;
        let address = listener.local_addr()?;
        let site = Arc::new(Site {
            board,
            metrics: Metrics::new(name),
        });
        let router = axum::Router::new()
            .route("/", get(status_page))
            .route("/metrics", get(metrics))
            .route("/livez", get(live))
            .route("/healthz", get(live))
            .route("/readyz", get(ready))
            .route(STATUS_PATH, get(status_json))
            .with_state(site);
        let task = tokio::spawn(async move {
            // It ends only with its task: accepting goes on through every error.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Server { address, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn status_page(Shared(site): Served) -> Html<String> {
    Html(page::render(&site.board.status()))
}

async fn metrics(Shared(site): Served) -> impl IntoResponse {
    let text = site.metrics.render(&site.board.status());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

/// The process answers. Whether events flow is for `/readyz` to say: a restart does not help a relay that waits.
async fn live() -> &'static str {
    "ok\n"
}

async fn ready(Shared(site): Served) -> (StatusCode, String) {
    let status = site.board.status();
    let code = match status.is_ready() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let name = status.state.name();
    let text = match status.reason {
        Some(reason) => format!("{name}: {reason}\n"),
        None => format!("{name}\n"),
    };
    (code, text)
}

async fn status_json(Shared(site): Served) -> impl IntoResponse {
    let body = serde_json::to_string(&site.board.status())
        .expect("numbers and strings always have a JSON form");
    ([(header::CONTENT_TYPE, "application/json")], body)
}
