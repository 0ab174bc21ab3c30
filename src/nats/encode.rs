//! Writes the client's operations of the NATS protocol.
//!
//! In: subjects, header blocks, payloads. Out: frames appended to a buffer, nothing sent.
//! A subject that could break out of its line is a bug of the caller's and panics: names from outside are checked before.

use bytes::BytesMut;
use serde::Serialize;

/// What CONNECT tells the server; absent credentials are left out.
#[derive(Serialize)]
pub struct Connect<'a> {
    /// Whether the server answers `+OK` to each operation; never.
    pub verbose: bool,
    /// Whether the server checks subjects strictly; never.
    pub(crate) pedantic: bool,
    /// Whether this connection insists on TLS.
    pub tls_required: bool,
    /// The client's name, shown by the server's monitoring.
    pub name: &'a str,
    /// The client's language.
    pub(crate) lang: &'a str,
    /// The client's version.
    pub version: &'a str,
    /// Level of the protocol; 1 asks for INFO while connected, which announces lame duck mode.
    pub protocol: u8,
    /// Whether we get our own messages back; never.
    pub echo: bool,
    /// Whether we understand headers.
    pub headers: bool,
    /// Whether a request that nobody answers is answered with 503.
    pub(crate) no_responders: bool,
    /// User name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
    /// Password of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pass: Option<&'a str>,
    /// Token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) auth_token: Option<&'a str>,
    /// User JWT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<&'a str>,
    /// Public key of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nkey: Option<&'a str>,
    /// The server's nonce, signed; base64 for URLs without padding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sig: Option<&'a str>,
}

impl<'a> Connect<'a> {
    /// The options of every walrelay connection, without credentials.
    #[must_use]
    pub fn new(name: &'a str) -> Self {
        Self {
            verbose: false,
            pedantic: false,
            tls_required: false,
            name,
            lang: "rust",
            version: env!("CARGO_PKG_VERSION"),
            protocol: 1,
            echo: false,
            headers: true,
            no_responders: true,
            user: None,
            pass: None,
            auth_token: None,
            jwt: None,
            nkey: None,
            sig: None,
        }
    }
}

/// Appends `CONNECT {…}`.
pub fn connect(out: &mut BytesMut, options: &Connect<'_>) {
    let json = serde_json::to_vec(options).expect("strings and booleans always serialize");
    out.extend_from_slice(b"CONNECT ");
    out.extend_from_slice(&json);
    out.extend_from_slice(b"\r\n");
}

/// Appends `PING`.
pub fn ping(out: &mut BytesMut) {
    out.extend_from_slice(b"PING\r\n");
}

/// Appends `PONG`.
pub(crate) fn pong(out: &mut BytesMut) {
    out.extend_from_slice(b"PONG\r\n");
}

/// Appends `SUB <subject> <sid>`.
///
/// # Panics
/// Where the subject is empty or holds a blank or a control character.
pub fn subscribe(out: &mut BytesMut, subject: &str, sid: u64) {
    out.extend_from_slice(b"SUB ");
    push_subject(out, subject);
    push_number(out, sid);
    out.extend_from_slice(b"\r\n");
}

/// Appends `PUB <subject> [reply] <bytes>` and the payload.
///
/// # Panics
/// Where a subject is empty or holds a blank or a control character.
pub fn publish(out: &mut BytesMut, subject: &str, reply: Option<&str>, payload: &[u8]) {
    out.reserve(subject.len() + reply.map_or(0, str::len) + payload.len() + 32);
    out.extend_from_slice(b"PUB ");
    push_subject(out, subject);
    if let Some(reply) = reply {
        push_subject(out, reply);
    }
    push_number(out, payload.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Appends a request: a publish with a reply subject, with a header block or without one.
///
/// # Panics
/// As [`publish`].
pub fn request(
    out: &mut BytesMut,
    subject: &str,
    reply: &str,
    headers: Option<&[u8]>,
    payload: &[u8],
) {
    match headers {
        Some(headers) => publish_with_headers(out, subject, Some(reply), headers, payload),
        None => publish(out, subject, Some(reply), payload),
    }
}

/// Appends `HPUB <subject> [reply] <header bytes> <total bytes>`, the header block and the payload.
///
/// `headers` is a whole block, as [`super::headers::write_block`] writes it.
///
/// # Panics
/// Where a subject is empty or holds a blank or a control character.
pub fn publish_with_headers(
    out: &mut BytesMut,
    subject: &str,
    reply: Option<&str>,
    headers: &[u8],
    payload: &[u8],
) {
    let total = headers.len() + payload.len();
    out.reserve(subject.len() + reply.map_or(0, str::len) + total + 48);
    out.extend_from_slice(b"HPUB ");
    push_subject(out, subject);
    if let Some(reply) = reply {
        push_subject(out, reply);
    }
    push_number(out, headers.len() as u64);
    out.extend_from_slice(b" ");
    push_number(out, total as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(headers);
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

fn push_subject(out: &mut BytesMut, subject: &str) {
    let legal = !subject.is_empty() && subject.bytes().all(|byte| byte > b' ' && byte != 0x7f);
    assert!(
        legal,
        "subject {subject:?} is empty or holds a blank or a control character"
    );
    out.extend_from_slice(subject.as_bytes());
    out.extend_from_slice(b" ");
}

fn push_number(out: &mut BytesMut, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> String {
        let mut out = BytesMut::new();
        write(&mut out);
        String::from_utf8(out.to_vec()).expect("text")
    }

    #[test]
    fn writes_the_frames_of_the_protocol() {
        assert_eq!(
            written(|out| subscribe(out, "_INBOX.a.>", 1)),
            "SUB _INBOX.a.> 1\r\n"
        );
        assert_eq!(
            written(|out| publish(out, "a.b", None, b"hi")),
            "PUB a.b 2\r\nhi\r\n"
        );
        assert_eq!(
            written(|out| publish(out, "a", Some("r"), b"")),
            "PUB a r 0\r\n\r\n"
        );
        let block = b"NATS/1.0\r\nA: b\r\n\r\n";
        let frame = written(|out| publish_with_headers(out, "a", Some("r"), block, b"hi"));
        assert_eq!(frame, "HPUB a r 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n");
        assert_eq!(written(ping), "PING\r\n");
        assert_eq!(written(pong), "PONG\r\n");
    }

    #[test]
    fn connect_leaves_absent_credentials_out() {
        let json = written(|out| {
            connect(
                out,
                &Connect {
                    user: Some("u\"x"),
                    ..Connect::new("walrelay")
                },
            )
        });
        assert!(json.contains(r#""user":"u\"x""#) && json.contains(r#""echo":false"#));
        assert!(!json.contains("pass") && !json.contains("auth_token"));
    }

    #[test]
    #[should_panic(expected = "subject")]
    fn a_subject_cannot_leave_its_line() {
        written(|out| publish(out, "a\r\nPUB b 0", None, b""));
    }
}
