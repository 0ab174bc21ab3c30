//! The search for a lane's last message, from the stream's end backwards.

use walrelay::pipeline::end_search::{
    EndSearch, FOREIGN_MESSAGES_MAX, FoundEnd, Lookup, StoredMessage,
};
use walrelay::pipeline::lane_end::{LaneEnd, Memory};
use walrelay::pipeline::record::LaneRecord;

use crate::case::{CREATED, Case, active, at, memory, message, record, usual};

/// What the search makes of a stream, from its end backwards.
fn search(
    messages: &[(u64, Option<StoredMessage<'_>>)],
    record: Option<&LaneRecord>,
    memory: Option<Memory>,
) -> FoundEnd {
    let last_sequence = messages.first().map_or(0, |(seq, _)| *seq);
    let mut search = EndSearch::new("s", last_sequence, CREATED, record, memory.as_ref());
    for (sequence, message) in messages {
        assert_eq!(search.wanted(), Some(Lookup::Message(*sequence)));
        let message = message.map(|message| StoredMessage {
            sequence: *sequence,
            ..message
        });
        if let Some(lane_end) = search.take(message) {
            return lane_end;
        }
    }
    assert_eq!(search.wanted(), None);
    search.end()
}

/// A message that was to follow `expected`.
fn stored<'a>(
    expected: &'a str,
    position: Option<&'a str>,
    tail: Option<&'a str>,
) -> Option<StoredMessage<'a>> {
    Some(StoredMessage {
        sequence: 0,
        position,
        tail,
        expected_sequence: (!expected.is_empty()).then_some(expected),
        is_fence: false,
        in_batch: false,
        id: [None; 2],
        kind: None,
        table: None,
        body: br#"{"id":"e50","payload_json":{}}"#,
    })
}

fn found(sequence: u64, commit_lsn: u64, id: Option<&str>) -> FoundEnd {
    FoundEnd::Found(LaneEnd {
        sequence,
        position: at(commit_lsn),
        event_id: id.map(str::to_owned),
        table: Some(String::new()),
    })
}

/// The same, told by a message that does not say which table it is of.
fn found_by_tail(sequence: u64, commit_lsn: u64, id: Option<&str>) -> FoundEnd {
    match found(sequence, commit_lsn, id) {
        FoundEnd::Found(lane_end) => FoundEnd::Found(LaneEnd {
            table: None,
            ..lane_end
        }),
        other => other,
    }
}

/// Somebody else's message.
fn foreign<'a>() -> Option<StoredMessage<'a>> {
    stored("", None, None)
}

#[test]
fn the_search_for_the_tail() {
    let search = |messages: &[_], record| search(messages, record, None);
    assert_eq!(search(&[], None), FoundEnd::Nothing);
    let ours = stored("2", Some("s 0/32:1"), None);
    assert_eq!(search(&[(3, ours)], None), found(3, 50, Some("e50")));
    // Foreign messages are passed over, also those with a header that no relay writes.
    let others = [
        (3, foreign()),
        (2, stored("1", Some("s nonsense"), None)),
        (1, stored("0", Some("s 0/32:1"), None)),
    ];
    assert_eq!(search(&others, None), found(1, 50, Some("e50")));
    // A replay tells where the lane was.
    let replay = stored("2", Some("s 0/10:1"), Some("s 0/32:1 e50"));
    assert_eq!(
        search(&[(3, replay)], None),
        found_by_tail(3, 50, Some("e50"))
    );
    let replay = stored("2", Some("s 0/10:1"), Some("s 0/32:1 -"));
    assert_eq!(search(&[(3, replay)], None), found_by_tail(3, 50, None));
    assert_eq!(
        search(&[(3, foreign()), (2, None)], None),
        FoundEnd::Removed { sequence: 2 }
    );
    let other = FoundEnd::OtherSlot {
        sequence: 3,
        slot: "t".into(),
    };
    let theirs = stored("2", Some("t 0/32:1"), None);
    assert_eq!(search(&[(3, theirs)], None), other);
    // What was there before an adoption does not count, in that very stream.
    let adopted = LaneRecord {
        adopted_sequence: 2,
        ..record(0, 40)
    };
    assert_eq!(search(&[(3, foreign())], Some(&adopted)), FoundEnd::Nothing);
}

#[test]
fn a_copy_of_a_message_is_not_the_tail() {
    let copy = stored("", Some("s 0/10:1"), None);
    let elsewhere = stored("7", Some("s 0/10:1"), None);
    let ours = stored("0", Some("s 0/32:1"), None);
    for copy in [copy, elsewhere] {
        let stream = [(3, copy), (2, foreign()), (1, ours)];
        assert_eq!(search(&stream, None, None), found(1, 50, Some("e50")));
        // Nothing else tells how far the lane came.
        let stream = [(3, copy), (2, foreign()), (1, foreign())];
        assert_eq!(
            search(&stream, None, None),
            FoundEnd::Copied { sequence: 3 }
        );
        let adopted = LaneRecord {
            adopted_sequence: 2,
            ..record(0, 40)
        };
        assert_eq!(
            search(&stream[..1], Some(&adopted), None),
            FoundEnd::Nothing
        );
        // It had published behind the adoption.
        let went_on = LaneRecord {
            position: Some(at(50)),
            ..adopted
        };
        assert_eq!(
            search(&stream[..1], Some(&went_on), None),
            FoundEnd::Copied { sequence: 3 }
        );
    }
    // Of what the lane published behind its end: the broker has lost that, or the stream was made from another one.
    let further = stored("", Some("s 0/33:1"), None);
    let stream = [(4, copy), (3, further), (2, foreign()), (1, ours)];
    assert_eq!(
        search(&stream, None, None),
        FoundEnd::Copied { sequence: 4 }
    );
    // The fence of a time when others wrote to the stream too.
    let fence = stored("", None, Some("s 0/32:1 e50")).map(|fence| StoredMessage {
        is_fence: true,
        ..fence
    });
    assert_eq!(
        search(&[(3, fence)], None, None),
        found_by_tail(3, 50, Some("e50"))
    );
    // Another slot's.
    let stream = [(2, stored("", Some("t 0/10:1"), None)), (1, ours)];
    assert_eq!(search(&stream, None, None), found(1, 50, Some("e50")));
}

#[test]
fn a_removed_message_behind_a_settled_one_is_none_of_the_lanes() {
    // 48 was the lane's last one; 49 and 50 were a retry and a backfill.
    let settled = || memory(CREATED, 48, 40);
    let ours = stored("47", Some("s 0/30:1"), None);
    let stream = [(50, None), (48, ours)];
    assert_eq!(search(&stream, None, settled()), found(48, 48, Some("e50")));
    // Everything has expired.
    let removed = FoundEnd::Removed { sequence: 48 };
    assert_eq!(search(&[(50, None), (48, None)], None, settled()), removed);
    // The broker had lost it, and somebody else has its place: the search goes on to the true end.
    let before = stored("46", Some("s 0/2F:1"), None);
    let lost = [(50, None), (48, foreign()), (47, before)];
    assert_eq!(search(&lost, None, settled()), found(47, 47, Some("e50")));
    let removed = FoundEnd::Removed { sequence: 50 };
    assert_eq!(search(&[(50, None)], None, None), removed);
}

#[test]
fn a_message_that_the_lane_has_left_behind_must_still_be_its_own() {
    let ours = stored("49", Some("s 0/32:1"), None);
    let left = stored("47", Some("s 0/30:1"), None);
    let known = record(48, 40);
    for intact in [left, None] {
        let stream = [(50, ours), (48, intact)];
        let lane_end = search(&stream, Some(&known), memory(CREATED, 50, 40));
        assert_eq!(lane_end, found(50, 50, Some("e50")));
    }
    let stream = [(50, ours), (48, foreign())];
    let replaced = FoundEnd::Replaced { sequence: 48 };
    assert_eq!(search(&stream, Some(&known), None), replaced);
    assert_eq!(search(&stream, None, memory(CREATED, 48, 40)), replaced);
}

#[test]
fn behind_many_foreign_messages_what_is_settled_is_looked_for() {
    let last = 50 + FOREIGN_MESSAGES_MAX;
    let others: Vec<_> = (0..FOREIGN_MESSAGES_MAX)
        .map(|back| (last - back, foreign()))
        .collect();
    let with = |messages: &[_]| [others.as_slice(), messages].concat();
    let too_far = FoundEnd::TooFar {
        scanned: FOREIGN_MESSAGES_MAX,
    };
    assert_eq!(search(&with(&[]), None, None), too_far);
    let ours = stored("39", Some("s 0/28:1"), None);
    let settled = || memory(CREATED, 40, 40);
    let stream = with(&[(40, ours)]);
    assert_eq!(search(&stream, None, settled()), found(40, 40, Some("e50")));
    let removed = FoundEnd::Removed { sequence: 40 };
    assert_eq!(search(&with(&[(40, None)]), None, settled()), removed);
    // The broker lost it.
    let lost = with(&[(40, foreign())]);
    assert!(matches!(
        search(&lost, None, settled()),
        FoundEnd::TooFar { .. }
    ));
}

#[test]
fn behind_many_strangers_the_search_goes_on_to_what_is_recorded() {
    let last = 50 + FOREIGN_MESSAGES_MAX;
    let strangers: Vec<_> = (0..=FOREIGN_MESSAGES_MAX)
        .map(|back| (last - back, foreign()))
        .collect();
    let with = |messages: &[_]| [strangers.as_slice(), messages].concat();
    let known = active(40);
    // The lane had gone on behind what the record knows.
    let ours = stored("48", Some("s 0/31:1"), None);
    let recorded = stored("39", Some("s 0/28:1"), None);
    let stream = with(&[(49, ours), (40, recorded)]);
    assert_eq!(
        search(&stream, Some(&known), None),
        found(49, 49, Some("e50"))
    );
    // The broker lost the recorded one too: nothing says how much further it is.
    let lost: Vec<_> = (40..50).rev().map(|seq| (seq, foreign())).collect();
    assert!(matches!(
        search(&with(&lost), Some(&known), None),
        FoundEnd::TooFar { .. }
    ));
    let adopted = LaneRecord {
        adopted_sequence: 49,
        ..record(0, 40)
    };
    assert_eq!(search(&strangers, Some(&adopted), None), FoundEnd::Nothing);
}

#[test]
fn any_number_of_messages_of_our_own_is_one_look() {
    let last = 50 + 2 * FOREIGN_MESSAGES_MAX;
    let expected = (last - 1).to_string();
    let backfilled = stored(&expected, None, Some("s 40"));
    // The search goes on at the sequence that the last one names.
    let ours = stored("39", Some("s 0/28:1"), None);
    let stream = [(last, backfilled), (40, ours)];
    assert_eq!(search(&stream, None, None), found(40, 40, Some("e50")));
    let removed = FoundEnd::Removed { sequence: 40 };
    assert_eq!(
        search(&[(last, backfilled), (40, None)], None, None),
        removed
    );
    let first = stored(&expected, None, Some("s 0"));
    assert_eq!(search(&[(last, first)], None, None), FoundEnd::Nothing);
    // What is known to stand behind that sequence is looked at.
    let known = stored("44", Some("s 0/2D:1"), None);
    let stream = [(last, backfilled), (45, known)];
    let settled = memory(CREATED, 45, 40);
    assert_eq!(search(&stream, None, settled), found(45, 45, Some("e50")));
    // A copy, another slot's, and a sequence that does not lead back say nothing.
    for (expected, lane_end) in [("", "s 0"), ("2", "t 0"), ("2", "s 9")] {
        let other = stored(expected, None, Some(lane_end));
        let ours = stored("1", Some("s 0/32:1"), None);
        let stream = [(3, other), (2, ours)];
        assert_eq!(search(&stream, None, None), found(2, 50, Some("e50")));
    }
}

#[test]
fn a_search_tells_how_far_back_there_is_nothing() {
    let behind = |message: Option<StoredMessage<'_>>| {
        let mut search = EndSearch::new("s", 3, CREATED, None, None);
        search.take(message.map(|message| StoredMessage {
            sequence: 3,
            ..message
        }));
        search.none_behind()
    };
    assert_eq!(behind(foreign()), 2);
    assert_eq!(behind(None), 3);
    // A copy must be met again.
    assert_eq!(behind(stored("", Some("s 0/10:1"), None)), 3);
    let skipped = stored("2", None, Some("s 0"));
    assert_eq!(behind(skipped), 0);
}

/// Everything up to the last sequence is gone, and the stream was seen to acknowledge what it does not keep.
fn end_in_doubt(last_sequence: u64, record: &LaneRecord, memory: Option<&Memory>) -> FoundEnd {
    let mut search = EndSearch::new("s", last_sequence, CREATED, Some(record), memory);
    while search.wanted().is_some() {
        if let Some(found) = search.take(None) {
            return found;
        }
    }
    search.end()
}

#[test]
fn a_removed_message_stands_in_for_what_was_never_stored() {
    let doubted = LaneRecord {
        doubted: true,
        ..active(15)
    };
    let at_the_end = FoundEnd::Found(LaneEnd {
        sequence: 29,
        ..message(15)
    });
    assert_eq!(end_in_doubt(29, &doubted, None), at_the_end);
    // The epoch that begins there writes it into its record: one behind it, which knows of no doubt, finds the same.
    let resolved = LaneRecord {
        sequence: 29,
        doubted: false,
        ..doubted
    };
    let removed = FoundEnd::Removed { sequence: 29 };
    assert_eq!(end_in_doubt(29, &resolved, None), removed);
    let next = Case {
        last_sequence: 29,
        lane_end: removed,
        record: Some(resolved),
        ..usual()
    };
    let lane_end = next.good().lane_end.expect("it is known");
    assert_eq!((lane_end.sequence, lane_end.position), (29, at(15)));
}

#[test]
fn a_doubt_that_was_resolved_does_not_come_back_with_an_older_record() {
    let doubted = LaneRecord {
        doubted: true,
        ..active(15)
    };
    let remembers = |sequence, epoch| Memory {
        begun: Some(message(29)),
        epoch,
        ..memory(CREATED, sequence, 40).expect("some")
    };
    let end = |last_sequence, memory: Memory| match end_in_doubt(
        last_sequence,
        &doubted,
        Some(&memory),
    ) {
        FoundEnd::Found(lane_end) => lane_end.position,
        FoundEnd::Removed { sequence } => at(sequence),
        other => panic!("{other:?}"),
    };
    // The stream still reaches what was acknowledged since.
    assert_eq!(end(61, remembers(61, 2)), at(61));
    // It was set back to where the lane went on, or before.
    assert_eq!(end(29, remembers(61, 2)), at(29));
    assert_eq!(end(20, remembers(61, 2)), at(15));
    // The doubt of the epoch itself: another relay has looked since.
    assert_eq!(end(61, remembers(61, 1)), at(15));
}
