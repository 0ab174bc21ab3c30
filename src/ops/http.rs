//! `/metrics`, `/livez`, `/healthz`, `/readyz`, `/status.json`, the status page at `/` and a page for each dead letter.
//!
//! In: where to listen, settings and a [`Board`] for each lane. Out: a task beside the relay's loop on the same thread: it reads
//! the board, and a dead letter from the stream, so a slow or stuck client costs the relay nothing but the bytes that it asked
//! for. Guarantee: a row leaves the machine by none of them.

mod connections;
mod guard;

use super::history::History;
use super::metrics::{self, Format};
use super::page::{self, Rows};
use crate::relay::board::Board;
use crate::relay::settings::Settings;
use crate::relay::status::Status;
use crate::relay::stored_letter::StoredLetter;
use anyhow::Context as _;
use axum::extract::{Path, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use connections::Connections;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Path of the status as JSON, which `walrelay status` reads.
pub(crate) const STATUS_PATH: &str = "/status.json";

type Served = Shared<Arc<Vec<Board>>>;

/// What the page is made of.
#[derive(Debug, Clone)]
struct Pictured {
    /// Each with the settings that its dead letters are read by.
    lanes: Arc<Vec<(Settings, Board)>>,
    history: History,
    rows: Rows,
}

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
    pub async fn start(listen: SocketAddr, lanes: Vec<(Settings, Board)>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!(
                "http.listen: cannot listen on {listen} (each relay needs an address of its own; \"\" turns it off)"
            )
        })?;
        let address = listener.local_addr()?;
        let history = History::of(lanes.len());
        let on_loopback = address.ip().is_loopback();
        let boards: Vec<Board> = lanes.iter().map(|(_, board)| board.clone()).collect();
        let pictured = Pictured {
            lanes: Arc::new(lanes),
            history: history.clone(),
            rows: match on_loopback {
                true => Rows::OnDemand,
                false => Rows::ByCommand,
            },
        };
        let page = axum::Router::new()
            .route("/", get(status_page))
            .route("/dead-letters/{lane}/{sequence}", get(dead_letter))
            .with_state(pictured);
        let lanes = Arc::new(boards);
        let router = axum::Router::new()
            .route("/metrics", get(metrics_text))
            .route("/livez", get(live))
            .route("/healthz", get(live))
            .route("/readyz", get(ready))
            .route(STATUS_PATH, get(status_json))
            .route("/page.css", get(|| asset("text/css", page::STYLE)))
            .route("/page.js", get(|| asset("text/javascript", page::SCRIPT)))
            .route("/icon.svg", get(|| asset("image/svg+xml", page::ICON)))
            .with_state(Arc::clone(&lanes))
            .merge(page)
            .layer(from_fn_with_state(on_loopback, guard::guard));
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

async fn status_page(Shared(pictured): Shared<Pictured>) -> Html<String> {
    let boards = pictured.lanes.iter().map(|(_, board)| board);
    let lanes: Vec<page::Lane> = boards
        .zip(pictured.history.now())
        .map(|(board, past)| page::Lane {
            status: board.status(),
            past,
            letters: board.letters(),
        })
        .collect();
    Html(page::render(&lanes, pictured.rows))
}

/// One with its row, by a connection of its own to the broker.
async fn dead_letter(
    Shared(pictured): Shared<Pictured>,
    Path((lane, sequence)): Path<(usize, u64)>,
) -> Response {
    if pictured.rows == Rows::ByCommand {
        let text = "Rows are shown here only where http.listen is on loopback: `walrelay dead-letters show POSITION` shows them.\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    let not_found = || {
        (
            StatusCode::NOT_FOUND,
            "The stream has no such dead letter.\n",
        )
    };
    let Some((settings, _)) = pictured.lanes.get(lane) else {
        return not_found().into_response();
    };
    match StoredLetter::read(settings, sequence).await {
        Ok(Some(stored)) => Html(page::letter(&stored)).into_response(),
        Ok(None) => not_found().into_response(),
        Err(error) => {
            let text = format!("The stream cannot be read: {error:#}\n");
            (StatusCode::BAD_GATEWAY, text).into_response()
        }
    }
}

async fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, kind)], text)
}

async fn metrics_text(Shared(lanes): Served, asked: HeaderMap) -> impl IntoResponse {
    // In several lines it is one list.
    let accept = asked.get_all(header::ACCEPT).iter();
    let accept: Vec<&str> = accept.filter_map(|line| line.to_str().ok()).collect();
    let format = Format::asked_for(&accept.join(","));
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
