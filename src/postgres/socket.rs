//! A connected socket to a Postgres server: TCP or unix.
//!
//! In: one host of a `Conninfo`. Out: a byte stream. Guarantees: small writes leave at once (`TCP_NODELAY`), and a
//! peer that has vanished is noticed within about 90 s, whether or not something is sent.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::postgres::conninfo::{Host, HostPort};

/// Idle time before the first keepalive probe: under the five minutes after which common NAT gateways and load
/// balancers forget a connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Time between probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered probes after which the kernel gives the connection up.
const KEEPALIVE_RETRIES: u32 = 3;
/// How long sent bytes may stay unacknowledged. Keepalive probes do not run while a status update is under way, and
/// Linux would send that again for a quarter of an hour before it gives a vanished peer up.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(90);

/// A byte stream to the server.
#[derive(Debug)]
pub enum Socket {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A connection over a unix socket.
    Unix(UnixStream),
}

impl Socket {
    /// Connects to one host; a name with several addresses is tried address by address.
    ///
    /// # Errors
    /// The last address' error.
    pub async fn connect(server: &HostPort) -> io::Result<Socket> {
        match (&server.host, server.hostaddr) {
            (_, Some(address)) => Socket::tcp(TcpStream::connect((address, server.port)).await?),
            (Host::Tcp(name), None) => {
                Socket::tcp(TcpStream::connect((name.as_str(), server.port)).await?)
            }
            (Host::Unix(_), None) => {
                Ok(Socket::Unix(UnixStream::connect(unix_path(server)).await?))
            }
        }
    }

    fn tcp(stream: TcpStream) -> io::Result<Socket> {
        stream.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES);
        let socket = socket2::SockRef::from(&stream);
        socket.set_tcp_keepalive(&keepalive)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
        Ok(Socket::Tcp(stream))
    }
}

/// host:port, or the socket's path: what a message about this server shows.
pub(crate) fn address_text(server: &HostPort) -> String {
    match &server.host {
        Host::Tcp(name) if name.contains(':') => format!("[{name}]:{}", server.port),
        Host::Tcp(name) => format!("{name}:{}", server.port),
        Host::Unix(_) => unix_path(server).display().to_string(),
    }
}

/// `<dir>/.s.PGSQL.<port>`; a leading `@` means Linux' abstract namespace, which tokio spells with a NUL.
fn unix_path(server: &HostPort) -> PathBuf {
    let Host::Unix(dir) = &server.host else {
        return PathBuf::new();
    };
    let path = dir.join(format!(".s.PGSQL.{}", server.port));
    match path.to_str().and_then(|text| text.strip_prefix('@')) {
        Some(name) => PathBuf::from(format!("\0{name}")),
        None => path,
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
