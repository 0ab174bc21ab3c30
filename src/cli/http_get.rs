//! One page of a server in this network.
//!
//! In: address and path. Out: the body, bounded.

use anyhow::anyhow;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Larger than any answer that is asked for.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// The body; HTTP/1.0, so that the answer comes in one piece and ends with the connection. `address` is host:port.
///
/// # Errors
/// No connection, or an answer that is not HTTP.
pub(super) async fn get(address: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    let head = memchr::memmem::find(&answer, b"\r\n\r\n")
        .ok_or_else(|| anyhow!("the answer is not HTTP"))?;
    Ok(answer.split_off(head + 4))
}
