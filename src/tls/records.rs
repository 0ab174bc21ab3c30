//! Reading what TLS hands out in small pieces.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

/// Fills `buf` as far as there is something: a record may have one row or one answer, and one read of rustls one record.
pub(crate) fn poll_read_records<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut TlsStream<S>,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let before = buf.filled().len();
    while buf.remaining() > 0 {
        let filled = buf.filled().len();
        match Pin::new(&mut *stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) if buf.filled().len() > filled => {}
            // What is wrong now is wrong at the next read too.
            _ if filled > before => break,
            other => return other,
        }
    }
    Poll::Ready(Ok(()))
}
