//! The relay's own site, asked by hand.

use std::net::{SocketAddr, TcpListener};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An address that nobody listens on.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
}

/// Status line and body; nothing while nobody listens.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Option<(String, String)> {
    get_with(address, path, "").await
}

/// The same, with further header lines.
pub(crate) async fn get_with(
    address: SocketAddr,
    path: &str,
    headers: &str,
) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.to_owned();
    Some((status, body.to_owned()))
}
