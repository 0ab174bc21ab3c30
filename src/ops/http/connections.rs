//! The connections to the page: few, and short.
//!
//! In: a listener. Out: its connections. Guarantee: never more than [`CONNECTIONS_MAX`] at once, and none for longer than
//! [`LIFE`]. So a client that sends half a request, reads nothing or has gone takes no file descriptor from the relay for longer. One that
//! sends nothing has [`SILENCE`], and less where another one wants its place: probes do not wait for those.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, Sleep, sleep};

/// Probes, a Prometheus or two, some pages that are open.
const CONNECTIONS_MAX: usize = 64;
/// An answer takes milliseconds. Clients that keep a connection make a new one.
const LIFE: Duration = Duration::from_secs(10);

/// Who connects has something to ask.
const SILENCE: Duration = Duration::from_secs(5);

/// A listener whose further clients wait.
#[derive(Debug)]
pub(super) struct Connections {
    listener: TcpListener,
    places: Arc<Semaphore>,
    /// Connections that may have sent nothing yet, the oldest first.
    silent: VecDeque<Silent>,
}

/// A connection that can be closed while it has sent nothing.
#[derive(Debug)]
struct Silent {
    has_sent: Arc<AtomicBool>,
    close: oneshot::Sender<()>,
}

impl Silent {
    fn is_there(&self) -> bool {
        !self.has_sent.load(Ordering::Relaxed) && !self.close.is_closed()
    }
}

impl Connections {
    pub(super) fn of(listener: TcpListener) -> Self {
        Connections {
            listener,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            silent: VecDeque::new(),
        }
    }

    /// A place; where there is none, that of the oldest connection that has sent nothing.
    async fn place(&mut self) -> OwnedSemaphorePermit {
        self.silent.retain(Silent::is_there);
        if self.places.available_permits() == 0
            && let Some(oldest) = self.silent.pop_front()
        {
            // One that ends by itself leaves its place too.
            let _ended = oldest.close.send(());
        }
        let place = Arc::clone(&self.places).acquire_owned().await;
        place.expect("nobody closes it")
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // It goes on through every error.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let place = self.place().await;
        let (close, closed) = oneshot::channel();
        let has_sent = Arc::new(AtomicBool::new(false));
        self.silent.push_back(Silent {
            has_sent: Arc::clone(&has_sent),
            close,
        });
        let connection = Connection {
            stream,
            began: Instant::now(),
            end: Box::pin(sleep(SILENCE)),
            closed: Some(closed),
            has_sent,
            _place: place,
        };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when its time is over.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    began: Instant,
    end: Pin<Box<Sleep>>,
    /// Another one wants its place; none once it cannot be closed for that any more.
    closed: Option<oneshot::Receiver<()>>,
    has_sent: Arc<AtomicBool>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn stream_in_time<'s>(
        mut self: Pin<&'s mut Self>,
        cx: &mut Context<'_>,
    ) -> io::Result<Pin<&'s mut TcpStream>> {
        let closed = self.closed.as_mut().map(|closed| Pin::new(closed).poll(cx));
        match closed {
            Some(Poll::Ready(Ok(()))) if !self.has_sent.load(Ordering::Relaxed) => {
                self.closed = None;
                return Err(io::ErrorKind::TimedOut.into());
            }
            Some(Poll::Ready(_)) => self.closed = None,
            _ => {}
        }
        match self.end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(Pin::new(&mut self.get_mut().stream)),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let read = self.as_mut().stream_in_time(cx)?.poll_read(cx, out);
        if out.filled().len() > before && !self.has_sent.swap(true, Ordering::Relaxed) {
            let end = self.began + LIFE;
            self.end.as_mut().reset(end);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream_in_time(cx)?.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream_in_time(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream_in_time(cx)?.poll_shutdown(cx)
    }
}
