//! `/metrics`, `/livez`, `/healthz`, `/readyz`, `/status.json` and the status page at `/`.
//!
//! In: where to listen, a [`Board`] for each lane. Out: a task beside the relay's loop on the same thread: it only reads the board,
//! so a slow or stuck client costs the relay nothing but the bytes that it asked for.

mod connections;
mod guard;

use super::history::History;
use super::metrics::{self, Format};
use super::page;
use crate::relay::board::Board;
use crate::relay::status::Status;
use anyhow::Context as _;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use connections::Connections;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Path of the status as JSON, which `walrelay status` reads.
pub(crate) const STATUS_PATH: &str = "/status.json";

type Served = Shared<Arc<Vec<Board>>>;
type Pictured = Shared<(Arc<Vec<Board>>, History)>;

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
    pub async fn start(listen: SocketAddr, lanes: Vec<Board>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!(
                "http.listen: cannot listen on {listen} (each relay needs an address of its own; \"\" turns it off)"
            )
        })?;
        let address = listener.local_addr()?;
        let lanes = Arc::new(lanes);
        let history = History::of(lanes.len());
        let page = axum::Router::new()
            .route("/", get(status_page))
            .with_state((Arc::clone(&lanes), history.clone()));
        let router = axum::Router::new()
            .route("/metrics", get(metrics_text))
            .route("/livez", get(live))
            .route("/healthz", get(live))
            .route("/readyz", get(ready))
            .route(STATUS_PATH, get(status_json))
            .route("/page.css", get(|| asset("text/css", page::STYLE)))
            .route("/page.js", get(|| asset("text/javascript", page::SCRIPT)))
            .with_state(Arc::clone(&lanes))
            .merge(page)
            .layer(from_fn_with_state(address.ip().is_loopback(), guard::guard));
        let task = tokio::spawn(async move {
            // Neither ends but with its task: accepting goes on through every error.
            let served = axum::serve(Connections::of(listener), router);
            let _ = tokio::join!(served.into_future(), history.keep(lanes));
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

async fn status_page(Shared((lanes, history)): Pictured) -> Html<String> {
    Html(page::render(&statuses(&lanes), &history.now()))
}

async fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, kind)], text)
}

async fn metrics_text(Shared(lanes): Served, asked: HeaderMap) -> impl IntoResponse {
    let accept = asked
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    let format = Format::asked_for(accept);
    let text = metrics::render(&statuses(&lanes), format);
    ([(header::CONTENT_TYPE, format.content_type())], text)
}

/// The process answers. Whether events flow is for `/readyz` to say: a restart does not help a relay that waits.
async fn live() -> &'static str {
    "ok\n"
}

async fn ready(Shared(lanes): Served) -> (StatusCode, String) {
    let mut code = StatusCode::OK;
    let mut text = String::new();
    for status in statuses(&lanes) {
        if !status.is_ready() {
            code = StatusCode::SERVICE_UNAVAILABLE;
        }
        let share = status.share.filter(|_| lanes.len() > 1);
        let share = share.map_or_else(String::new, |share| format!("share {share}: "));
        let reason = status
            .reason
            .map_or_else(String::new, |reason| format!(": {reason}"));
        text.push_str(&format!("{share}{}{reason}\n", status.state.name()));
    }
    (code, text)
}

/// One object, or a list of a process with several lanes.
async fn status_json(Shared(lanes): Served) -> impl IntoResponse {
    let statuses = statuses(&lanes);
    let body = match &statuses[..] {
        [status] => serde_json::to_string(status),
        statuses => serde_json::to_string(statuses),
    };
    let body = body.expect("numbers and strings always have a JSON form");
    ([(header::CONTENT_TYPE, "application/json")], body)
}

fn statuses(lanes: &[Board]) -> Vec<Status> {
    lanes.iter().map(Board::status).collect()
}
