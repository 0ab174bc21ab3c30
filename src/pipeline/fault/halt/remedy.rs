//! What a person can do about a halt.
//!
//! In: a [`Halt`], the lane's share. Out: the way on. Guarantee: a command in it can be typed as it stands.

use super::Halt;
use crate::pipeline::reshard::{PLACEHOLDER, common_stream};

impl Halt {
    /// The way on, for the lane of that share: one configuration names the streams of all.
    #[must_use]
    pub fn remedy_of(&self, share: Option<u32>) -> String {
        let Halt::Moved { to, nats, .. } = self else {
            return of_share(&self.remedy(), share);
        };
        let common = share.and_then(|number| Some((number, common_stream(to, number)?)));
        let Some((number, common)) = common else {
            return self.remedy();
        };
        let [key, flag] = match nats {
            None => [String::new(), String::new()],
            Some(nats) => [
                format!(" and `nats.url = \"{nats}\"`"),
                format!(" --to-nats {nats}"),
            ],
        };
        let of_others = common.replace(PLACEHOLDER, "K");
        format!(
            "Set `nats.stream = \"{common}\"`{key} in the configuration once each other share K has moved too, by \
             `walrelay move --share K --to-stream {of_others}{flag}` with this one; until then, a relay with `relay.share = {number}` \
             needs it. Nothing is missing: what this stream lacks is there"
        )
    }

    /// The way on, as a person can type it; [`Self::remedy_of`] where the lane is a share's.
    pub fn remedy(&self) -> String {
        let text = match self {
            Halt::OtherLane { .. } => {
                "If this database continues the old one, run `walrelay adopt`; otherwise give this one another slot or stream"
            }
            Halt::ForeignEnd { .. } => {
                "Give each relay a stream of its own (`nats.stream`), or both `nats.shared = true`; then `walrelay setup` says what \
                 the stream lacks"
            }
            Halt::Moved { to, nats, .. } => {
                let nats = nats
                    .as_ref()
                    .map_or_else(String::new, |nats| format!(" and `nats.url = \"{nats}\"`"));
                return format!(
                    "Set `nats.stream = \"{to}\"`{nats} in the configuration. Nothing is missing: what this stream lacks is there"
                );
            }
            Halt::EndRemoved { .. } => {
                "`walrelay verify` compares table and stream. `walrelay adopt` goes on behind the last event that both slot and \
                 stream have: rows behind it that the slot still has are published, also where their messages were removed. Where \
                 nobody wants those again, `walrelay adopt --position LSN:ORDINAL` goes on behind that position"
            }
            Halt::EndCopied { .. } => {
                "`walrelay adopt` compares such messages with the slot by position and id, and goes on behind the last one \
                 that both have; `walrelay verify` then names what is missing"
            }
            Halt::Replaced { .. } => {
                "`walrelay verify` names the events that are missing; `walrelay adopt` goes on behind them, and `walrelay \
                 backfill` publishes them"
            }
            Halt::EndUnknown { .. } => {
                "`walrelay adopt` compares the stream with the slot, further back, and goes on behind the last row that both have"
            }
            Halt::ConfirmedUnexplained { .. } => {
                "`walrelay verify` compares table and stream; `walrelay adopt` goes on from the slot as it is, and `walrelay \
                 backfill` then publishes what is missing"
            }
            Halt::NoBeginning { stream, nats, .. } => {
                return format!(
                    "Where its events are in another stream, `walrelay move --to-stream {stream} --to-nats {nats}`, with the \
                     configuration of that one, brings them here. To begin here all the same, `walrelay adopt` goes on from the \
                     slot as it is; `walrelay verify` then names the rows that this stream lacks, and `walrelay backfill` \
                     publishes them"
                );
            }
            Halt::ServerBehind { .. } => {
                "`walrelay verify` shows what the stream has that the table lacks; `walrelay adopt` goes on with this database"
            }
            Halt::OverlapMiss { unnamed, .. } if !unnamed.is_empty() => {
                let entries = unnamed.iter().map(|table| format!("`name = {table:?}`"));
                return format!(
                    "Give {} an entry in [[source.tables]] again, with {} and the mapping that it had, until its rows are confirmed: \
                     `walrelay position` tells how far the slot is",
                    unnamed.join(" and "),
                    entries.collect::<Vec<_>>().join(" and ")
                );
            }
            Halt::OverlapMiss { .. } => {
                "`walrelay verify` shows the differences; `walrelay adopt` goes on with this database"
            }
            Halt::Rejected { row, blocks } => return blocks.remedy(row.position),
            Halt::Renamed(renamed) => return renamed.remedy(),
            Halt::OtherId(other) => return other.remedy(),
            Halt::PublicationMissing { mend, .. } | Halt::Slot { mend, .. } => mend,
            Halt::Stuck(_) => "Mend what is named there and start the relay again",
        };
        text.to_owned()
    }
}

/// A text whose commands are about the lane of that share.
#[must_use]
pub fn of_share(text: &str, share: Option<u32>) -> String {
    let about_one_lane = [
        "walrelay adopt",
        "walrelay move",
        "walrelay dead-letters skip",
    ];
    let named = |text: String, command: &str| match share {
        Some(number) => text.replace(command, &format!("{command} --share {number}")),
        None => text,
    };
    about_one_lane.into_iter().fold(text.to_owned(), named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_lane_of_a_share_has_gone_is_named_as_all_shares_name_it() {
        let moved = |to: &str| Halt::Moved {
            stream: "A_1".to_owned(),
            to: to.to_owned(),
            nats: None,
        };
        let told = moved("B_1").told(Some(1));
        assert!(told.contains("`nats.stream = \"B_{share}\"`"), "{told}");
        assert!(told.contains("`walrelay move --share K --to-stream B_K`"));
        assert!(told.contains("walrelay move has taken it to stream B_1"));
        for (to, share) in [("B_1", None), ("B", Some(1))] {
            let told = moved(to).told(share);
            assert!(told.contains(&format!("`nats.stream = \"{to}\"`")));
        }
    }
}
