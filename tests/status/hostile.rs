//! The listener under clients that are slow, many, half there, too talkative, or sent by a foreign page.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::platform::Platform;
use crate::site::{free_address, get};
use crate::{LIMIT, wait_for};

async fn listening() -> (Platform, crate::platform::Relay, SocketAddr) {
    let mut platform = Platform::start().await;
    let address = free_address();
    platform.set("WALRELAY_HTTP_LISTEN", &address.to_string());
    let relay = platform.relay();
    wait_for(address, "/readyz", |status, _| status == "200").await;
    (platform, relay, address)
}

/// Sends bytes and reads until the server ends the connection.
async fn answer(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    // The server may end it before it has all.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let ended = timeout(LIMIT, stream.read_to_end(&mut answer)).await;
    let _ = ended.expect("the server ends it in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn slow_half_open_and_too_many_clients_keep_nobody_from_an_answer_for_long() {
    let (platform, relay, address) = listening().await;
    // More than there are places: half of a request each, and silence.
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHo")
            .await
            .expect("sent");
        slow.push(stream);
    }
    // One that asks for much and reads nothing.
    let mut greedy = TcpStream::connect(address).await.expect("connected");
    let many = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(2_000);
    let greed = tokio::spawn(async move {
        let _ = greedy.write_all(many.as_bytes()).await;
        greedy
    });
    // The relay goes on beside them, and a further client has its turn.
    platform.insert(20).await;
    platform.wait_for(20).await;
    wait_for(address, "/livez", |status, _| status == "200").await;
    let first = &mut slow[0];
    let ended = timeout(LIMIT, first.read_to_end(&mut Vec::new())).await;
    ended.expect("it was ended").expect("in good order");
    greed.abort();
    relay.stop().await;
}

#[tokio::test]
async fn clients_that_send_nothing_give_way_to_one_that_asks() {
    let (_platform, relay, address) = listening().await;
    let mut silent = Vec::new();
    for _ in 0..193 {
        silent.push(TcpStream::connect(address).await.expect("connected"));
    }
    assert_eq!(get(address, "/livez").await.expect("alive").0, "200");
    // The oldest ones had to go, and those before it had not to be waited for.
    let is_open = |stream: &TcpStream| {
        let read = stream.try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    assert!(is_open(&silent[160]));
    assert!(!is_open(&silent[0]));
    relay.stop().await;
}

#[tokio::test]
async fn what_is_too_long_or_no_http_is_refused_and_the_next_client_answered() {
    let (_platform, relay, address) = listening().await;
    let long = "x".repeat(1 << 20);
    for (request, code) in [
        (
            format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            "431",
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"),
            "431",
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n",
                "X: y\r\n".repeat(500)
            ),
            "431",
        ),
        ("\0\x01\x02\r\n\r\n".to_owned(), "400"),
        (
            format!(
                "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{long}",
                long.len()
            ),
            "405",
        ),
    ] {
        let told = answer(address, request.as_bytes()).await;
        // Or it hangs up on the sender, whose answer is then lost on the way.
        let is_refused = told.is_empty() || told.starts_with(&format!("HTTP/1.1 {code} "));
        assert!(is_refused, "{code}: {told:.200}");
        assert_eq!(get(address, "/livez").await.expect("alive").0, "200");
    }
    relay.stop().await;
}

#[tokio::test]
async fn a_name_that_is_not_ours_is_refused_and_the_page_may_ask_nobody_else() {
    let (platform, relay, address) = listening().await;
    let request = |path: &str, host: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").into_bytes()
    };
    for path in ["/", "/status.json", "/metrics", "/page.js", "/none"] {
        let told = answer(address, &request(path, "rebound.example.org")).await;
        assert!(told.starts_with("HTTP/1.1 421 "), "{path}: {told}");
        assert!(!told.contains("OUTBOX"), "{told}");
    }
    for host in ["localhost", "127.0.0.1:1", "[::1]", "a.localhost:7187"] {
        let told = answer(address, &request("/", host)).await;
        assert!(told.starts_with("HTTP/1.1 200 "), "{host}: {told}");
        let (head, page) = told.split_once("\r\n\r\n").expect("a page");
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
        ] {
            assert!(head.contains(header), "{header} is not in {head}");
        }
        // Neither another host, nor what the policy refuses.
        assert!(!page.contains("://") && !page.contains("style="), "{page}");
        assert_eq!(page.matches("<script").count(), 1);
    }
    for (path, kind) in [
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        let told = answer(address, &request(path, "localhost")).await;
        assert!(told.contains(&format!("content-type: {kind}")), "{told}");
    }
    relay.stop().await;

    // On an address for others they call it as they like: Prometheus and kubelets by names of their own.
    let mut platform = platform;
    let address = free_address();
    let everywhere = format!("0.0.0.0:{}", address.port());
    platform.set("WALRELAY_HTTP_LISTEN", &everywhere);
    let relay = platform.relay();
    wait_for(address, "/readyz", |status, _| status == "200").await;
    let told = answer(address, &request("/livez", "walrelay:7187")).await;
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    relay.stop().await;
}

/// RFC 9112, 3.2, and RFC 9110, 12.5.1.
#[tokio::test]
async fn a_request_has_one_host_and_the_format_with_the_greater_weight() {
    let (_platform, relay, address) = listening().await;
    let request = |version: &str, lines: &str| {
        format!("GET /metrics HTTP/{version}\r\n{lines}Connection: close\r\n\r\n").into_bytes()
    };
    let host = "Host: localhost\r\n";
    for (version, lines, code) in [
        ("1.1", "", "400"),
        ("1.1", &*host.repeat(2), "400"),
        ("1.0", &host.repeat(2), "400"),
        ("1.1", host, "200"),
        ("1.0", "", "200"),
        ("1.0", host, "200"),
    ] {
        let told = answer(address, &request(version, lines)).await;
        let status = told.split(' ').nth(1);
        assert_eq!(status, Some(code), "{version} {lines}: {told:.200}");
    }
    let open = "content-type: application/openmetrics-text";
    for (accept, is_open) in [
        ("Accept: application/openmetrics-text\r\n", true),
        (
            "Accept: application/openmetrics-text;q=0.1,text/plain;q=0.9\r\n",
            false,
        ),
        (
            "Accept: text/plain;q=0.5\r\nAccept: application/openmetrics-text;q=0.6\r\n",
            true,
        ),
    ] {
        let told = answer(address, &request("1.1", &format!("{host}{accept}"))).await;
        assert_eq!(told.contains(open), is_open, "{accept}: {told:.300}");
    }
    relay.stop().await;
}
