//! Captured answers, errors, damaged bytes.

use super::*;
use proptest::prelude::*;

const INFO: &str = r#"{"type":"io.nats.jetstream.api.v1.stream_info_response","total":0,"offset":0,"limit":0,
    "config":{"name":"OUTBOX","subjects":["outbox.>"],"retention":"limits","max_consumers":-1,"max_msgs":-1,
    "max_bytes":-1,"max_age":60000000000,"max_msgs_per_subject":-1,"max_msg_size":-1,"discard":"old","storage":"file",
    "num_replicas":1,"duplicate_window":120000000000,"compression":"none","allow_direct":true,"mirror_direct":false,
    "sealed":false,"deny_delete":false,"deny_purge":false,"allow_rollup_hdrs":false,"consumer_limits":{},
    "allow_msg_ttl":false,"allow_batched":true,"allow_atomic":true,"metadata":{"_nats.level":"3"},
    "sources":[{"name":"OTHER"}]},
    "created":"2026-11-23T14:00:00.123456789Z",
    "state":{"messages":2,"bytes":90,"first_seq":1,"first_ts":"2026-11-23T14:00:00Z","last_seq":3,
    "last_ts":"2026-11-23T14:00:00Z","num_deleted":1,"num_subjects":1,"consumer_count":0},
    "cluster":{"leader":"n1"},"ts":"2026-11-23T14:00:00Z"}"#;

#[test]
fn reads_stream_info() {
    let info = StreamInfo::parse(INFO.as_bytes()).expect("an answer");
    assert_eq!(info.created, "2026-11-23T14:00:00.123456789Z");
    assert!(info.config.allow_batched && info.config.allow_atomic && !info.config.sealed);
    assert_eq!(info.config.max_age, Duration::from_secs(60));
    assert_eq!(info.config.sources[0].name, "OTHER");
    assert_eq!((info.state.last_seq, info.state.num_deleted), (3, 1));
    assert_eq!(
        info.cluster.and_then(|cluster| cluster.leader).as_deref(),
        Some("n1")
    );
}

#[test]
fn reads_errors() {
    let payload = br#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#;
    let error = StreamInfo::parse(payload).expect_err("an error");
    assert!(matches!(error, AnswerError::Api(error) if error.is_stream_not_found()));
    assert!(matches!(
        StreamInfo::parse(b"{}"),
        Err(AnswerError::Json(_))
    ));
    assert!(matches!(StreamInfo::parse(b""), Err(AnswerError::Json(_))));
    let transient = |code, err_code| {
        ApiError {
            code,
            err_code,
            ..ApiError::default()
        }
        .is_transient()
    };
    assert!(transient(503, 10008) && transient(429, 10167));
    assert!(!transient(503, 10039) && !transient(503, 10076) && !transient(400, 10071));
}

#[test]
fn reads_stored_messages() {
    let payload =
        br#"{"type":"t","message":{"subject":"outbox.a","seq":7,"hdrs":"TkFUUy8xLjANCkE6IGINCg0K",
        "data":"e30=","time":"2026-11-23T14:00:00Z"}}"#;
    let message = StoredMessage::parse(payload)
        .expect("an answer")
        .expect("a message");
    assert_eq!(
        (message.seq, message.subject.as_str(), &message.data[..]),
        (7, "outbox.a", &b"{}"[..])
    );
    assert_eq!(message.header("A"), Some(&b"b"[..]));
    let gone = br#"{"error":{"code":404,"err_code":10037,"description":"no message found"}}"#;
    assert_eq!(StoredMessage::parse(gone).expect("an answer"), None);
    let other = br#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#;
    assert!(matches!(
        StoredMessage::parse(other),
        Err(AnswerError::Api(_))
    ));
    let bad = br#"{"message":{"subject":"a","seq":7,"data":"*","time":""}}"#;
    assert!(matches!(
        StoredMessage::parse(bad),
        Err(AnswerError::Base64 { field: "data" })
    ));
}

#[test]
fn writes_requests() {
    let api = StreamApi::new(DEFAULT_PREFIX, "OUTBOX").expect("a legal name");
    assert_eq!(api.info_request().subject, "$JS.API.STREAM.INFO.OUTBOX");
    let request = api.message_get_request(7);
    assert_eq!(request.subject, "$JS.API.STREAM.MSG.GET.OUTBOX");
    assert_eq!(request.payload, br#"{"seq":7}"#);
    assert_eq!(
        api.last_by_subject_request("*.>").payload,
        br#"{"last_by_subj":"*.>"}"#
    );
    assert_eq!(
        api.next_by_subject_request(7, "a.>").payload,
        br#"{"next_by_subj":"a.>","seq":7}"#
    );
    for name in ["", "a.b", "a b", "*", ">", "a\r\nPUB", "a/b"] {
        assert!(StreamApi::new(DEFAULT_PREFIX, name).is_err(), "{name:?}");
    }
}

#[test]
fn an_api_that_is_neither_ours_nor_a_domains_is_imported() {
    let is_imported = |prefix| StreamApi::new(prefix, "S").unwrap().is_imported();
    assert!(!is_imported(DEFAULT_PREFIX) && !is_imported("$JS.hub.API"));
    assert!(is_imported("js.of.a") && is_imported("$JS.a.b.API") && is_imported("$JS.API.x"));
}

proptest! {
    #[test]
    fn damaged_answers_never_panic(at in 0..INFO.len(), byte in any::<u8>()) {
        let mut bytes = INFO.as_bytes().to_vec();
        bytes[at] = byte;
        let _ = (StreamInfo::parse(&bytes), StoredMessage::parse(&bytes));
    }
}
