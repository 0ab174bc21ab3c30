//! A collector: OTLP over HTTP, read by the types that OpenTelemetry generates of its own schema.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::Listener;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

const LIMIT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What it does with an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Takes,
    /// `503`, to be tried again.
    Busy,
    /// `400`, for good.
    Refuses,
    /// Takes none of the spans, and says so in a `200`.
    RefusesInPart,
    /// `200` with a page of HTML.
    Garbage,
    /// Half of an endless answer.
    Endless,
    /// No answer.
    Silent,
}

#[derive(Debug, Default)]
struct Taken {
    metrics: Vec<ExportMetricsServiceRequest>,
    spans: Vec<ResourceSpans>,
    headers: Vec<HeaderMap>,
    attempts: usize,
}

#[derive(Debug, Clone)]
struct Collector {
    taken: Arc<Mutex<Taken>>,
    mood: Arc<Mutex<Mood>>,
}

/// Listens until it is dropped.
pub struct Receiver {
    pub address: SocketAddr,
    collector: Collector,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    pub async fn start(mood: Mood) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        Receiver::serve(listener, address, mood)
    }

    pub async fn with_tls(config: ServerConfig) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TlsListener { listener, acceptor };
        Receiver::serve(listener, address, Mood::Takes)
    }

    fn serve<L: Listener>(listener: L, address: SocketAddr, mood: Mood) -> Receiver
    where
        L::Addr: std::fmt::Debug,
    {
        let collector = Collector {
            taken: Arc::default(),
            mood: Arc::new(Mutex::new(mood)),
        };
        let router = Router::new()
            .route("/v1/{signal}", post(export))
            .with_state(collector.clone());
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("it serves");
        });
        Receiver {
            address,
            collector,
            task,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, mood: Mood) {
        *self.collector.mood.lock().unwrap() = mood;
    }

    fn taken<T>(&self, read: impl Fn(&Taken) -> T) -> T {
        read(&self.collector.taken.lock().unwrap())
    }

    pub fn attempts(&self) -> usize {
        self.taken(|taken| taken.attempts)
    }

    pub fn headers(&self) -> Vec<HeaderMap> {
        self.taken(|taken| taken.headers.clone())
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.taken(|taken| {
            let scopes = taken.spans.iter().flat_map(|spans| &spans.scope_spans);
            scopes.flat_map(|scope| scope.spans.clone()).collect()
        })
    }

    pub fn resources(&self) -> Vec<ResourceSpans> {
        self.taken(|taken| taken.spans.clone())
    }

    /// The latest export of the metrics.
    pub fn metrics(&self) -> Option<ExportMetricsServiceRequest> {
        self.taken(|taken| taken.metrics.last().cloned())
    }

    /// Waits for a state of it.
    pub async fn until(&self, what: &str, reached: impl Fn(&Receiver) -> bool) {
        let waiting = async {
            while !reached(self) {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        if tokio::time::timeout(LIMIT, waiting).await.is_err() {
            panic!("{what}: {} attempts, {:#?}", self.attempts(), self.spans());
        }
    }
}

async fn export(
    State(collector): State<Collector>,
    Path(signal): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mood = *collector.mood.lock().unwrap();
    collector.taken.lock().unwrap().attempts += 1;
    assert_eq!(headers["content-type"], "application/x-protobuf");
    match mood {
        Mood::Takes | Mood::RefusesInPart => {}
        Mood::Busy => {
            return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")]).into_response();
        }
        Mood::Refuses => return StatusCode::BAD_REQUEST.into_response(),
        Mood::Garbage => return "<!doctype html><title>Sign in</title>".into_response(),
        Mood::Endless => return vec![b'x'; 1 << 20].into_response(),
        Mood::Silent => std::future::pending().await,
    }
    let body = match headers.get("content-encoding") {
        Some(encoding) if encoding == "gzip" => unzipped(&body).await,
        Some(other) => panic!("{other:?} is not understood"),
        None => body,
    };
    let mut taken = collector.taken.lock().unwrap();
    taken.headers.push(headers);
    let mut answer = ExportTraceServiceResponse::default();
    match signal.as_str() {
        "metrics" => {
            let request = ExportMetricsServiceRequest::decode(body).expect("metrics");
            taken.metrics.push(request);
        }
        "traces" => {
            let request = ExportTraceServiceRequest::decode(body).expect("spans");
            if mood == Mood::RefusesInPart {
                let scopes = (request.resource_spans.iter()).flat_map(|spans| &spans.scope_spans);
                let count: usize = scopes.map(|scope| scope.spans.len()).sum();
                answer.partial_success = Some(ExportTracePartialSuccess {
                    rejected_spans: count as i64,
                    error_message: "no room".to_owned(),
                });
            } else {
                taken.spans.extend(request.resource_spans);
            }
        }
        other => panic!("{other} is no signal"),
    }
    // The answers to both signals have the same encoding where nothing was refused.
    (
        [("content-type", "application/x-protobuf")],
        answer.encode_to_vec(),
    )
        .into_response()
}

/// By the program that every system has: a library for one test would be built for all of them.
async fn unzipped(body: &[u8]) -> Bytes {
    let mut gzip = Command::new("gzip")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("gzip");
    let mut stdin = gzip.stdin.take().expect("a pipe");
    let write = async move { stdin.write_all(body).await };
    let (written, output) = tokio::join!(write, gzip.wait_with_output());
    written.expect("written");
    let output = output.expect("it ends");
    assert!(output.status.success(), "{output:?}");
    output.stdout.into()
}

struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await.expect("a connection");
            // A client that trusts others ends it here.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
