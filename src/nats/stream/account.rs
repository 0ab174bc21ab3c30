//! What the account has in JetStream and may have: whether it fills, and whether the lane's streams can be made there.
//!
//! In: the answer about the account, what the lane has and needs. Out: findings. Pure.

use std::collections::HashMap;

use serde::Deserialize;

use super::standing::{FULL_PERCENT, STORAGE_LIMIT};
use super::{StreamFinding, StreamSeverity};
use crate::nats::api::{AnswerError, StreamInfo, refuse};

/// What an account has in JetStream, and what it may have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Account {
    #[serde(flatten)]
    all: Usage,
    /// Of accounts whose limits depend on the number of replicas, by `R1`, `R3` and so on.
    tiers: HashMap<String, Usage>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Usage {
    memory: u64,
    storage: u64,
    /// Of the streams with max_bytes, these.
    reserved_memory: u64,
    reserved_storage: u64,
    streams: u64,
    limits: Limits,
}

/// -1 for any number; bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Limits {
    max_memory: i64,
    max_storage: i64,
    max_streams: i64,
    max_bytes_required: bool,
}

/// What of the account a lane has and needs.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Replicas of its streams.
    pub replicas: usize,
    /// `file` or `memory`.
    pub storage: &'a str,
    /// The streams that are there.
    pub there: &'a [StreamInfo],
    /// Streams that `walrelay setup` has to make yet.
    pub missing: u64,
}

/// What may be stored in one kind of storage, in bytes of one copy where each tier has limits of its own.
struct Room {
    /// In the account's configuration, and in its JWT.
    keys: [&'static str; 2],
    limit: Option<u64>,
    used: u64,
    reserved: u64,
    /// Copies that `used` counts and neither the limit nor `reserved` does.
    copies: u64,
}

impl Account {
    /// Reads the answer to `$JS.API.INFO`.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn parse(payload: &[u8]) -> Result<Self, AnswerError> {
        refuse(payload)?;
        Ok(serde_json::from_slice(payload)?)
    }

    /// What counts for streams of so many replicas: all, or those of the tier; none where the account has tiers, and not this one.
    fn usage(&self, replicas: usize) -> Option<&Usage> {
        match self.tiers.is_empty() {
            true => Some(&self.all),
            false => self.tiers.get(&format!("R{replicas}")),
        }
    }

    fn room(&self, usage: &Usage, wanted: &Wanted<'_>) -> Room {
        let limits = &usage.limits;
        let (keys, limit, used, reserved) = match wanted.storage {
            "memory" => (
                ["max_memory", "mem_storage"],
                limits.max_memory,
                usage.memory,
                usage.reserved_memory,
            ),
            _ => (
                ["max_file", "disk_storage"],
                limits.max_storage,
                usage.storage,
                usage.reserved_storage,
            ),
        };
        Room {
            keys,
            limit: u64::try_from(limit).ok(),
            used,
            reserved,
            // nats-server lets a tier use its limit as often as there are copies.
            copies: match self.tiers.is_empty() {
                true => 1,
                false => wanted.replicas.max(1) as u64,
            },
        }
    }

    /// What it has and may have, in words.
    #[must_use]
    pub fn text(&self, wanted: &Wanted<'_>) -> Option<String> {
        let usage = self.usage(wanted.replicas)?;
        let room = self.room(usage, wanted);
        let of =
            |limit: Option<u64>| limit.map_or_else(String::new, |limit| format!(" of {limit}"));
        let streams = u64::try_from(usage.limits.max_streams).ok();
        let streams = streams.filter(|limit| *limit > 0);
        Some(format!(
            "JetStream account: {}{} bytes ({}), {}{} streams",
            room.used,
            of(room.limit.map(|limit| limit.saturating_mul(room.copies))),
            wanted.storage,
            usage.streams,
            of(streams)
        ))
    }

    /// What will hurt.
    #[must_use]
    pub fn findings(&self, wanted: &Wanted<'_>) -> Vec<StreamFinding> {
        let Some(usage) = self.usage(wanted.replicas) else {
            return self.no_tier(wanted).into_iter().collect();
        };
        let room = self.room(usage, wanted);
        let full = match (room.limit, wanted.missing) {
            (Some(0), 1..) => Some(self.refuses(&room, wanted, "may store nothing")),
            (Some(limit), 1..) if room.reserved >= limit => Some(self.refuses(
                &room,
                wanted,
                "has promised all that it may store to streams with max_bytes",
            )),
            _ => self.fills(&room, wanted),
        };
        let found = full.into_iter().chain(self.streams(usage, wanted));
        found.chain(requires_bytes(usage, wanted)).collect()
    }

    /// Where limits are set, `key` to `value`.
    fn set(&self, [key, in_jwt]: [&str; 2], value: u64, replicas: usize) -> String {
        match self.tiers.is_empty() {
            true => format!(
                "set {key}: {value} in the account's jetstream block of nats-server's configuration and reload it, or {in_jwt} in the \
                 account's JWT"
            ),
            false => format!(
                "set {in_jwt}: {value} of tier R{replicas} in the account's JWT and give that to nats-server"
            ),
        }
    }

    /// What is stored comes close to the limit, and no stream's own limit ends that before.
    fn fills(&self, room: &Room, wanted: &Wanted<'_>) -> Option<StreamFinding> {
        let limit = room.limit.filter(|limit| *limit > 0)?;
        let all = limit.saturating_mul(room.copies);
        if room.used < all / 100 * FULL_PERCENT || is_bounded(room, limit, wanted.there) {
            return None;
        }
        let copies = match room.copies {
            1 => String::new(),
            copies => format!(" (tier R{copies}: {copies} copies of {limit})"),
        };
        let enough = limit.max(room.used / room.copies).saturating_mul(2);
        Some(warns(
            format!(
                "the account has {} of {all} bytes that it may store in JetStream ({}){copies}: when that is full nothing is stored and \
                 the relay waits",
                room.used, wanted.storage
            ),
            format!(
                "{}; or remove what streams need not keep",
                self.set(room.keys, enough, wanted.replicas)
            ),
        ))
    }

    /// walrelay setup cannot make the streams.
    fn refuses(&self, room: &Room, wanted: &Wanted<'_>, why: &str) -> StreamFinding {
        let enough = room.reserved.saturating_mul(2).max(1 << 30);
        warns(
            format!(
                "the account {why} in JetStream ({}): walrelay setup cannot make the streams",
                wanted.storage
            ),
            self.set(room.keys, enough, wanted.replicas),
        )
    }

    fn streams(&self, usage: &Usage, wanted: &Wanted<'_>) -> Option<StreamFinding> {
        let max = u64::try_from(usage.limits.max_streams).ok();
        let max = max.filter(|max| *max > 0 && usage.streams + wanted.missing > *max)?;
        let needed = (usage.streams + wanted.missing).saturating_add(4);
        Some(warns(
            format!(
                "the account has {} of {max} streams, and walrelay setup makes {} more",
                usage.streams, wanted.missing
            ),
            self.set(["max_streams", "streams"], needed, wanted.replicas),
        ))
        .filter(|_| wanted.missing > 0)
    }

    fn no_tier(&self, wanted: &Wanted<'_>) -> Option<StreamFinding> {
        let mut tiers: Vec<&str> = self.tiers.keys().map(String::as_str).collect();
        tiers.sort_unstable();
        let first = tiers.first()?.trim_start_matches('R');
        (wanted.missing > 0).then(|| {
            warns(
                format!(
                    "the account may have streams of {} alone, and walrelay setup makes some of R{}",
                    tiers.join(", "),
                    wanted.replicas
                ),
                format!("run walrelay setup --replicas {first}"),
            )
        })
    }
}

fn warns(message: String, mend: String) -> StreamFinding {
    StreamFinding {
        code: STORAGE_LIMIT,
        severity: StreamSeverity::Warns,
        message,
        command: Some(mend),
    }
}

/// Whether streams fill no more than they were promised: the lane's own by its max_bytes, the others as far as what they have is
/// within what is promised to them. The lane's records are few.
fn is_bounded(room: &Room, limit: u64, there: &[StreamInfo]) -> bool {
    let promised = |info: &StreamInfo| u64::try_from(info.config.max_bytes).ok();
    let events = there.first().and_then(promised);
    let (mut used, mut reserved) = (0, 0);
    for info in there {
        let copies = info.config.num_replicas.max(1) as u64;
        used += info.state.bytes * copies;
        // Of a tier, what is reserved counts one copy.
        reserved += promised(info).unwrap_or(0) * if room.copies > 1 { 1 } else { copies };
    }
    let others = room.used.saturating_sub(used);
    let others_reserved = room.reserved.saturating_sub(reserved);
    events.is_some_and(|bytes| bytes > 0)
        && room.reserved <= limit
        && others <= others_reserved.saturating_mul(room.copies)
}

/// What setup makes has no max_bytes: nothing tells how much a stream may keep.
fn requires_bytes(usage: &Usage, wanted: &Wanted<'_>) -> Option<StreamFinding> {
    (usage.limits.max_bytes_required && wanted.missing > 0).then(|| {
        warns(
            "the account takes no stream without max_bytes, and walrelay setup makes them without".to_owned(),
            "set max_bytes_required: false in the account's jetstream block of nats-server's configuration, or in the account's JWT, and \
             reload it; or make the streams by hand, as walrelay setup --dry-run names them, with max_bytes"
                .to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(text: &str) -> StreamInfo {
        StreamInfo::parse(text.as_bytes()).expect("an answer")
    }

    const NONE: Wanted<'_> = Wanted {
        replicas: 1,
        storage: "file",
        there: &[],
        missing: 0,
    };

    fn messages(text: &str, wanted: &Wanted<'_>) -> Vec<String> {
        let account = Account::parse(text.as_bytes()).expect("an answer");
        let found = account.findings(wanted).into_iter();
        found.map(|finding| finding.message).collect()
    }

    fn usage(used: u64, streams: u64) -> String {
        format!(
            r#"{{"memory":0,"storage":{used},"streams":{streams},
                "limits":{{"max_memory":-1,"max_storage":1000,"max_streams":5}}}}"#
        )
    }

    #[test]
    fn an_account_is_measured_by_its_own_limits() {
        let found = |used, streams, missing| {
            let wanted = Wanted { missing, ..NONE };
            messages(&usage(used, streams), &wanted).len()
        };
        assert_eq!(found(799, 4, 0), 0);
        assert_eq!(found(800, 4, 0), 1);
        // All that it may have are there.
        assert_eq!(found(0, 5, 0), 0);
        assert_eq!(found(0, 4, 1), 0);
        assert_eq!(found(0, 4, 2), 1);
        let unlimited =
            r#"{"storage":99999,"streams":9,"limits":{"max_storage":-1,"max_streams":-1}}"#;
        let text = |account: &str| {
            Account::parse(account.as_bytes())
                .expect("an answer")
                .text(&NONE)
        };
        let said = text(unlimited).expect("of the account itself");
        assert_eq!(said, "JetStream account: 99999 bytes (file), 9 streams");
        let said = text(&usage(7, 1)).expect("of the account itself");
        assert_eq!(
            said,
            "JetStream account: 7 of 1000 bytes (file), 1 of 5 streams"
        );
        let two = Wanted { missing: 2, ..NONE };
        assert_eq!(messages(unlimited, &two), Vec::<String>::new());
    }

    #[test]
    fn a_tier_may_use_its_limit_once_for_each_copy() {
        let with = |tier: &str, used| format!(r#"{{"tiers":{{"{tier}":{}}}}}"#, usage(used, 1));
        let of = |replicas| Wanted { replicas, ..NONE };
        assert_eq!(messages(&with("R3", 2_399), &of(3)).len(), 0);
        let full = messages(&with("R3", 2_400), &of(3));
        assert!(full[0].contains("2400 of 3000 bytes"), "{full:?}");
        assert_eq!(messages(&with("R1", 800), &of(1)).len(), 1);
        // Of another one nothing counts here, until a stream is to be made.
        assert_eq!(messages(&with("R3", 2_400), &of(1)).len(), 0);
        let missing = Wanted { missing: 2, ..NONE };
        let account = with("R3", 0);
        let account = Account::parse(account.as_bytes()).expect("an answer");
        let found = account.findings(&missing);
        let command = found[0].command.as_deref();
        assert_eq!(command, Some("run walrelay setup --replicas 3"));
    }

    #[test]
    fn streams_that_keep_no_more_than_they_were_promised_fill_nothing() {
        let account = |used: u64, reserved: u64| {
            format!(
                r#"{{"storage":{used},"reserved_storage":{reserved},"streams":2,"limits":{{"max_storage":1000,"max_streams":-1}}}}"#
            )
        };
        let stream = |max_bytes: i64, bytes: u64| {
            info(&format!(
                r#"{{"created":"c","config":{{"name":"S","num_replicas":1,"max_bytes":{max_bytes}}},"state":{{"bytes":{bytes}}}}}"#
            ))
        };
        let found = |used, reserved, there: &[StreamInfo]| {
            let wanted = Wanted { there, ..NONE };
            messages(&account(used, reserved), &wanted).len()
        };
        assert_eq!(found(890, 900, &[stream(900, 890)]), 0);
        assert_eq!(found(890, 900, &[stream(-1, 890)]), 1);
        // What another one keeps without a limit goes on growing.
        assert_eq!(found(890, 900, &[stream(900, 100)]), 1);
        assert_eq!(found(890, 990, &[stream(200, 100)]), 0);
        // The account's limit was lowered below what is promised.
        assert_eq!(found(890, 1_100, &[stream(1_100, 890)]), 1);
        let missing = Wanted { missing: 1, ..NONE };
        assert_eq!(messages(&account(0, 1_000), &missing).len(), 1);
    }
}
