//! Captured frames, truncation and splits at every byte, arbitrary bytes.

use super::*;
use proptest::prelude::*;

/// What nats-server 2.15 sends, shortened, and the operations that it holds.
const CAPTURED: &[u8] =
    b"INFO {\"server_id\":\"NDX\",\"server_name\":\"n1\",\"version\":\"2.15.0-dev\",\"proto\":1,\
\"headers\":true,\"max_payload\":1048576,\"jetstream\":true,\"nonce\":\"abc\",\"xkey\":\"X\"} \r\n\
PING\r\nPONG\r\n+OK\r\n-ERR 'Authorization Violation'\r\n\
MSG _INBOX.a.r1 1 5\r\nhello\r\n\
MSG _INBOX.a.r2 1 reply.to 0\r\n\r\n\
HMSG _INBOX.a.r3 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n\
HMSG a.b 7 back 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n";

/// All operations of `bytes`, fed in the given pieces.
fn parse(pieces: &[&[u8]]) -> (Vec<Op>, Option<ProtocolError>) {
    let (mut parser, mut received, mut ops) = (Parser::default(), BytesMut::new(), Vec::new());
    for piece in pieces {
        received.extend_from_slice(piece);
        loop {
            match parser.next(&mut received) {
                Ok(Some(op)) => ops.push(op),
                Ok(None) => break,
                Err(error) => return (ops, Some(error)),
            }
        }
    }
    (ops, None)
}

fn error(bytes: &[u8]) -> ProtocolError {
    parse(&[bytes]).1.expect("an error")
}

#[test]
fn reads_captured_frames() {
    let (ops, error) = parse(&[CAPTURED]);
    assert!(error.is_none());
    let Op::Info(info) = &ops[0] else {
        panic!("INFO comes first")
    };
    assert_eq!(
        (info.server_id.as_str(), info.nonce.as_deref()),
        ("NDX", Some("abc"))
    );
    assert!(info.version.at_least(2, 15) && !info.version.at_least(2, 16));
    assert!(info.headers && info.jetstream && !info.lame_duck_mode && !info.tls_required);
    assert_eq!(ops[1..4], [Op::Ping, Op::Pong, Op::Ok]);
    assert_eq!(ops[4], Op::Err("Authorization Violation".into()));
    let messages: Vec<_> = ops[5..]
        .iter()
        .map(|op| {
            if let Op::Msg(msg) = op {
                msg
            } else {
                panic!("{op:?}")
            }
        })
        .collect();
    assert_eq!(
        (&messages[0].subject[..], &messages[0].payload[..]),
        (&b"_INBOX.a.r1"[..], &b"hello"[..])
    );
    assert_eq!(
        (messages[0].reply.as_deref(), messages[1].reply.as_deref()),
        (None, Some(&b"reply.to"[..]))
    );
    assert_eq!(
        (messages[2].status(), messages[2].payload.len()),
        (Some(503), 0)
    );
    assert_eq!(
        (messages[3].sid, messages[3].reply.as_deref()),
        (7, Some(&b"back"[..]))
    );
    assert_eq!(
        (&messages[3].headers[..], &messages[3].payload[..]),
        (&b"NATS/1.0\r\nA: b\r\n\r\n"[..], &b"hi"[..])
    );
    assert_eq!(messages.len(), 4);
}

#[test]
fn splits_at_every_byte_change_nothing() {
    let whole = parse(&[CAPTURED]).0;
    for at in 0..CAPTURED.len() {
        let (ops, error) = parse(&[&CAPTURED[..at], &CAPTURED[at..]]);
        assert!(error.is_none() && ops == whole, "split at byte {at}");
    }
    let bytes: Vec<&[u8]> = CAPTURED.chunks(1).collect();
    assert_eq!(parse(&bytes).0, whole);
}

#[test]
fn truncation_gives_a_prefix_and_no_error() {
    let whole = parse(&[CAPTURED]).0;
    for at in 0..CAPTURED.len() {
        let (ops, error) = parse(&[&CAPTURED[..at]]);
        assert!(
            error.is_none() && whole.starts_with(&ops) && ops.len() < whole.len(),
            "cut at byte {at}"
        );
    }
}

#[test]
fn errors_name_operation_field_and_offset() {
    use ProtocolError as E;
    assert!(matches!(
        error(b"PING\r\nHTTP/1.1 400 Bad Request\r\n"),
        E::UnknownOperation { offset: 6, .. }
    ));
    assert!(matches!(error(b"INFO {]\r\n"), E::Info { offset: 0, .. }));
    assert!(matches!(
        error(b"INFO {\"version\":\"two\"}\r\n"),
        E::Info { .. }
    ));
    assert!(matches!(
        error(b"MSG a 1\r\n"),
        E::Field {
            field: "number of arguments",
            operation: Operation::Msg,
            ..
        }
    ));
    assert!(matches!(
        error(b"MSG a 1 b c 2\r\n"),
        E::Field {
            field: "number of arguments",
            ..
        }
    ));
    assert!(matches!(
        error(b"HMSG a 1 2 3 4 5 6 7\r\n"),
        E::Field {
            field: "number of arguments",
            ..
        }
    ));
    assert!(matches!(
        error(b"+OK\r\nMSG a x 2\r\n"),
        E::Field {
            field: "sid",
            offset: 5,
            ..
        }
    ));
    assert!(matches!(
        error(b"MSG a 1 -2\r\n"),
        E::Field {
            field: "total bytes",
            ..
        }
    ));
    assert!(matches!(
        error(b"HMSG a 1 5 4\r\n"),
        E::Field {
            field: "header bytes",
            operation: Operation::Hmsg,
            ..
        }
    ));
    assert!(matches!(
        error(b"MSG a 1 2\r\nhello\r\n"),
        E::Field {
            field: "end of the payload",
            ..
        }
    ));
    assert!(matches!(
        error(b"MSG a 1 99999999999999999999\r\n"),
        E::Field {
            field: "total bytes",
            ..
        }
    ));
    assert!(matches!(
        error(b"MSG a 1 999999999999\r\n"),
        E::MessageTooLarge {
            bytes: 999_999_999_999,
            ..
        }
    ));
    assert!(matches!(
        error(&vec![b'x'; LINE_BYTES_MAX + 1]),
        E::LineTooLong { offset: 0 }
    ));
}

#[test]
fn a_payload_is_a_slice_of_the_buffer() {
    let mut received = BytesMut::from(&b"MSG a 1 5\r\nhello\r\n"[..]);
    let place = received.as_ptr().wrapping_add(11);
    let op = Parser::default()
        .next(&mut received)
        .expect("legal")
        .expect("whole");
    let Op::Msg(msg) = op else {
        panic!("a message")
    };
    assert_eq!(msg.payload.as_ptr(), place);
}

#[test]
fn says_how_much_a_message_still_needs() {
    let mut received = BytesMut::from(&b"MSG a 1 5\r\nhel"[..]);
    let mut parser = Parser::default();
    assert_eq!(parser.next(&mut received).expect("legal"), None);
    assert_eq!(parser.missing_bytes(&received), 4);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        parse(&[&bytes]);
    }

    #[test]
    fn damaged_frames_never_panic_and_split_alike(
        at in 0..CAPTURED.len(), byte in any::<u8>(), cut in 0..CAPTURED.len(),
    ) {
        let mut bytes = CAPTURED.to_vec();
        bytes[at] = byte;
        let (whole, whole_error) = parse(&[&bytes]);
        let (parts, parts_error) = parse(&[&bytes[..cut], &bytes[cut..]]);
        prop_assert_eq!(whole, parts);
        prop_assert_eq!(format!("{whole_error:?}"), format!("{parts_error:?}"));
    }
}
