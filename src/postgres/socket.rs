//! A connected socket to a Postgres server: TCP with or without TLS, or unix.
//!
//! In: one address of a `Conninfo`. Out: a byte stream. Guarantees: small writes leave at once (`TCP_NODELAY`), and a
//! peer that has vanished is noticed within about 90 s, whether or not something is sent, unless the URL says otherwise.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::postgres::auth_watch::AuthWatch;
use crate::postgres::conninfo::{AuthenticationRules, ChannelBinding, Host, HostPort, TcpSettings};
use crate::postgres::encryption::{self, Encrypted};
use crate::tls::{self, Certificate};

/// A byte stream to the server.
#[derive(Debug)]
pub struct Socket {
    stream: Stream,
    watch: Option<AuthWatch>,
    /// What a channel binding binds to (`tls-server-end-point`).
    end_point: Option<Vec<u8>>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<Encrypted>),
}

impl Socket {
    /// Plain text over TCP.
    pub(crate) fn tcp(stream: TcpStream) -> Socket {
        Socket::of(Stream::Tcp(stream))
    }

    /// Plain text over a unix socket.
    pub(crate) fn unix(stream: UnixStream) -> Socket {
        Socket::of(Stream::Unix(stream))
    }

    /// TLS over TCP.
    pub(crate) fn tls(stream: Box<Encrypted>) -> Socket {
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let end_point = certificate.and_then(|der| Certificate::read(der)?.end_point_hash(der));
        Socket {
            end_point,
            ..Socket::of(Stream::Tls(stream))
        }
    }

    fn of(stream: Stream) -> Socket {
        Socket {
            stream,
            watch: None,
            end_point: None,
        }
    }

    /// Watches over the start-up that begins now, and binds it to the channel unless that is not wanted.
    pub(crate) fn keep(mut self, rules: AuthenticationRules) -> Socket {
        if rules.channel_binding == ChannelBinding::Disable {
            self.end_point = None;
        }
        self.watch = Some(AuthWatch::new(rules, self.end_point.is_some()));
        self
    }

    /// Whether nobody between can read along.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }

    /// What a channel binding binds to, where there can be one.
    pub(crate) fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }
}

/// A TCP connection to `server`, whose `hostaddr` is set.
pub(crate) async fn connect_tcp(
    server: &HostPort,
    address: std::net::IpAddr,
    settings: &TcpSettings,
) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((address, server.port)).await?;
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(&stream);
    if settings.keepalives {
        let mut keepalive = socket2::TcpKeepalive::new();
        if !settings.idle.is_zero() {
            keepalive = keepalive.with_time(settings.idle);
        }
        if !settings.interval.is_zero() {
            keepalive = keepalive.with_interval(settings.interval);
        }
        if settings.count > 0 {
            keepalive = keepalive.with_retries(settings.count);
        }
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(target_os = "linux")]
    if !settings.user_timeout.is_zero() {
        socket.set_tcp_user_timeout(Some(settings.user_timeout))?;
    }
    Ok(stream)
}

/// A connection to the unix socket of `server`.
pub(crate) async fn connect_unix(server: &HostPort) -> io::Result<UnixStream> {
    UnixStream::connect(unix_path(server)).await
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

impl Stream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => tls::poll_read_records(stream, cx, buf)
                .map_err(|error| tls::explained(error, "this host", encryption::TERMS)),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(this.stream.poll_read(cx, buf))?;
        if let Some(watch) = &mut this.watch {
            let is_over = watch
                .observe(&buf.filled()[before..])
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if is_over {
                this.watch = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
