//! The lane's socket, with or without TLS.
//!
//! In: a TCP connection. Out: bytes. Guarantee: dropped without [`Socket::close`], it resets the connection, so that what an
//! abandoned epoch has written and the kernel has not sent never reaches the server.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, Error};

use crate::tls::poll_read_records;

/// What is read of the socket at once: rustls itself would ask for 4 kB, and a record has up to 16.
const READ_BYTES_MAX: usize = 64 * 1024;

/// A connection to the server.
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<BufReader<TcpStream>>>),
}

impl Socket {
    /// TLS over this connection, with a server of this name or address.
    pub(super) async fn encrypt(
        tcp: TcpStream,
        name: &str,
        config: ClientConfig,
    ) -> io::Result<Socket> {
        let name = ServerName::try_from(name.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let tcp = BufReader::with_capacity(READ_BYTES_MAX, tcp);
        let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        Ok(Socket::Tls(Box::new(stream.await?)))
    }

    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self, Socket::Tls(_))
    }

    /// Writes as much of `bytes` as the kernel takes, or as TLS takes for it.
    pub(super) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Socket::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    /// Sends what TLS has taken and not yet sent; ready with nothing to send.
    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Socket::Plain(_) => Poll::Ready(Ok(())),
            Socket::Tls(stream) if !stream.get_ref().1.wants_write() => Poll::Ready(Ok(())),
            Socket::Tls(stream) => {
                ready!(Pin::new(stream).poll_flush(context))?;
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Closes in good order: the server still gets what the kernel took.
    pub(super) async fn close(&mut self) {
        // A failure means that the socket is gone already, which is what was asked for.
        let _ = match self {
            Socket::Plain(stream) => stream.shutdown().await,
            Socket::Tls(stream) => stream.shutdown().await,
        };
    }

    /// Has a drop reset the connection instead of sending the rest in the background.
    pub(super) fn reset(&self) {
        let tcp = match self {
            Socket::Plain(stream) => stream,
            Socket::Tls(stream) => stream.get_ref().0.get_ref(),
        };
        // Where it fails the socket is gone already.
        let _ = tcp.set_zero_linger();
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_read(context, buf),
            Socket::Tls(stream) => poll_read_records(stream, context, buf),
        }
    }
}

/// Whether TLS itself failed, and not the network under it.
pub(super) fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Error>())
}
