use super::*;
use crate::pipeline::position::POSITION_HEADER;

#[test]
fn a_message_is_found_by_its_aggregate_its_id_or_a_header() {
    let mut wanted = Wanted {
        slot: "s".to_owned(),
        past_slots: BTreeSet::from(["gone".to_owned()]),
        is_shared: false,
        shown: shown_anywhere("a"),
        is_exact: true,
        table: None,
        beside: None,
        ids: BTreeSet::from(["e1".to_owned()]),
        lanes: vec!["S".to_owned()],
        column: "who".to_owned(),
        headers: vec!["user".to_owned()],
        other_headers: vec!["maker".to_owned()],
    };
    find_in_a_stream_of_its_own(&wanted);
    find_among_others(&wanted);
    find_what_only_a_row_tells(&wanted);
    // Another table's aggregate may have the same id.
    let body = r#"{"id":"e9","aggregate_id":"a"}"#;
    wanted.is_shared = true;
    assert_eq!(find(&wanted, &[], body), None);
    assert_eq!(
        find(&wanted, &[(POSITION_HEADER, "s 0/10:1")], body),
        Some(Found::Event)
    );
    let of_table = (REPLAY_HEADER, "0a1b table:s 7:e9");
    let kind = (KIND_HEADER, "replay");
    assert_eq!(find(&wanted, &[kind, of_table], body), Some(Found::Outside));
    let of_another = (REPLAY_HEADER, "0a1b table:t 7:e9");
    assert_eq!(find(&wanted, &[kind, of_another], body), None);
    // A share that is no more has no lane.
    assert_eq!(
        find(&wanted, &[(POSITION_HEADER, "gone 0/10:1")], body),
        Some(Found::Outside)
    );
}

fn find(wanted: &Wanted, headers: &[(&str, &str)], body: &str) -> Option<Found> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, *value);
    }
    wanted.find(Some(&map), body.as_bytes(), false)
}

/// It does not tell its aggregate; `headers` have its id.
fn of_row(id: Option<&str>, headers: &[&str]) -> Option<Found> {
    Some(Found::OfRow(Rowless {
        id: id.map(str::to_owned),
        in_header: headers.iter().map(|&name| name.to_owned()).collect(),
    }))
}

fn find_what_only_a_row_tells(wanted: &Wanted) {
    let find = |headers: &[(&str, &str)]| find(wanted, headers, "anything");
    assert_eq!(find(&[("id", "e2")]), of_row(Some("e2"), &[]));
    assert_eq!(find(&[("id", "e2"), ("user", "b")]), None);
    // A header of before, which may have told the aggregate or who made it.
    let before = ("before", "a");
    assert_eq!(
        find(&[("id", "e2"), before]),
        of_row(Some("e2"), &["before"])
    );
    assert_eq!(
        find(&[("id", "e2"), ("before", "b")]),
        of_row(Some("e2"), &[])
    );
    assert_eq!(find(&[("id", "e2"), before, ("user", "b")]), None);
    // What is known to be something else.
    for other in ["maker", "Nats-Msg-Id", "Walrelay-Note"] {
        assert_eq!(find(&[("id", "e2"), (other, "a")]), of_row(Some("e2"), &[]));
    }
    assert_eq!(find(&[("id", "a")]), of_row(Some("a"), &[]));
}

fn find_among_others(wanted: &Wanted) {
    let body = br#"{"id":"e1","aggregate_id":"a"}"#;
    let find = |name: &str, value: &str| {
        let mut map = HeaderMap::new();
        map.insert(name, value);
        wanted.find(Some(&map), body, true)
    };
    assert_eq!(find("user", "a"), None);
    assert_eq!(find(POSITION_HEADER, "s 0/10:1"), Some(Found::Event));
    assert_eq!(find(REPLAY_HEADER, "0a1b S 7"), Some(Found::Event));
    assert_eq!(find(REPLAY_HEADER, "0a1b T 7"), None);
}

fn find_in_a_stream_of_its_own(wanted: &Wanted) {
    let find = |headers: &[(&str, &str)], body: &str| find(wanted, headers, body);
    assert_eq!(
        find(&[], r#"{"id":"e9","aggregate_id":"a"}"#),
        Some(Found::Event)
    );
    assert_eq!(find(&[], r#"{"id":"e9","aggregate_id":"b"}"#), None);
    assert_eq!(find(&[("id", "e1")], "anything"), Some(Found::Event));
    assert_eq!(
        find(&[("id", "e2"), ("user", "\"a\"")], "anything"),
        Some(Found::Event)
    );
    // Another row had the same id before.
    let others = r#"{"id":"e1","aggregate_id":"b"}"#;
    assert_eq!(find(&[], others), None);
    assert_eq!(find(&[("id", "e1"), ("user", "b")], "anything"), None);
    // A payload may have a field of that name.
    let payload = r#"{"aggregate_id":"a"}"#;
    assert_eq!(find(&[("id", "e2")], payload), of_row(Some("e2"), &[]));
    let letter = (KIND_HEADER, KIND_DEAD_LETTER);
    assert_eq!(
        find(&[letter], r#"{"id":null,"aggregate_id":"a"}"#),
        Some(Found::DeadLetter)
    );
    let retried = (KIND_HEADER, KIND_RETRIED);
    assert_eq!(find(&[retried], r#"{"id":"e1"}"#), None);
    let retry = (KIND_HEADER, "retry");
    assert_eq!(find(&[retry], r#"{"id":"e1"}"#), Some(Found::Outside));
    assert_eq!(find(&[letter], "{}"), of_row(None, &[]));
    // Its row has none.
    assert_eq!(find(&[letter], r#"{"row":{"who":null}}"#), None);
    // The same id may be in a further table.
    let further = (TABLE_HEADER, "public.audit");
    assert_eq!(find(&[further], r#"{"id":"e1","aggregate_id":"a"}"#), None);
    let other = (POSITION_HEADER, "t 0/10:1");
    assert_eq!(find(&[other], r#"{"id":"e1","aggregate_id":"a"}"#), None);
}
