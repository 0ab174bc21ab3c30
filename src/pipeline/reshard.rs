//! Another number of shares, as the WAL tells it: a message in the transaction that changes the publications.
//!
//! In: such a message. Out: which lanes give rows away, and to whom. Guarantees: pure; a lane goes beyond the switch only when what
//! the lanes before it had of its rows is published (`engine::crossing`), so the order of each aggregate stays.

use std::str;

/// Prefix of the logical message; the content is `<before> <after> <slot>`, the slot that those of the shares are named after: a
/// database may have several outboxes.
pub const PREFIX: &str = "walrelay.reshard";

/// What stands for a share's number in a name that all shares have in common.
pub const PLACEHOLDER: &str = "{share}";

/// The `nats.stream` of all shares, by what the stream of one is called: the last number in it that is the share's, as a whole one
/// where there is such. None where it has none, so that it cannot be named together with those of other shares.
pub fn common_stream(stream: &str, share: u32) -> Option<String> {
    let number = share.to_string();
    let is_digit = |at: usize| stream.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let found: Vec<usize> = stream.match_indices(&number).map(|(at, _)| at).collect();
    let is_whole = |at: &&usize| !is_digit(at.wrapping_sub(1)) && !is_digit(**at + number.len());
    let at = found.iter().rev().find(is_whole).or(found.last())?;
    let (before, rest) = stream.split_at(*at);
    Some(format!("{before}{PLACEHOLDER}{}", &rest[number.len()..]))
}

/// The name that one share has, by the common one.
pub fn name_of(common: &str, share: u32) -> String {
    common.replace(PLACEHOLDER, &share.to_string())
}

/// From one number of shares to another; both are powers of two. An outbox that is not divided counts as one, and its lane has no
/// share's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// Before.
    pub from: u32,
    /// After.
    pub to: u32,
}

/// Where the lane of all rows publishes, where its shares have a stream each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undivided {
    /// Its stream.
    pub stream: String,
    /// The template of its subjects.
    pub subject: String,
    /// The configuration is this lane's: that of the shares is another one.
    pub is_own: bool,
    /// By what NATS has of the lane, or by its own configuration; else a guess by the names of the shares' streams and subjects.
    pub is_told: bool,
}

impl Undivided {
    /// What `walrelay reshard` is given of it.
    pub fn flags(&self) -> String {
        let Undivided {
            stream, subject, ..
        } = self;
        format!("--undivided-stream {stream} --undivided-subject '{subject}'")
    }
}

/// The outbox has another number of shares than a configuration says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", self.what(), self.mend())]
pub struct OtherNumber {
    /// How many there are; 1 where it is not divided.
    pub found: u32,
    /// How many the configuration wants.
    pub wanted: u32,
    /// None where all lanes have one stream.
    pub undivided: Option<Undivided>,
}

impl OtherNumber {
    /// What is wrong.
    pub fn what(&self) -> String {
        let OtherNumber { found, wanted, .. } = self;
        match found {
            1 => format!("the outbox is not divided, and relay.shares is {wanted}"),
            _ => format!("the outbox has {found} shares, and relay.shares is {wanted}"),
        }
    }

    /// What mends it.
    pub fn mend(&self) -> String {
        let OtherNumber { found, wanted, .. } = self;
        let undivided = self.undivided.as_ref();
        let undivided = undivided.filter(|_| [found, wanted].contains(&&1));
        // Where the lane of all rows is there, a guess about it is worth nothing.
        let reshard = match undivided.filter(|of| *found > 1 || of.is_told) {
            None if undivided.is_some() => format!(
                "run walrelay reshard --shares {wanted}, which says what it has to be told of the lane of all rows"
            ),
            None => reshard(*wanted, None),
            told => reshard(*wanted, told) + ", the stream and the subject of the lane of all rows",
        };
        format!("set relay.shares = {found} in every configuration, or {reshard}")
    }
}

/// The command, with what it needs to be told of the lane of all rows.
pub fn reshard(count: u32, undivided: Option<&Undivided>) -> String {
    match undivided {
        None => format!("run walrelay reshard --shares {count}"),
        Some(of) => {
            let with = match of.is_own {
                true => "with the configuration of the shares, ",
                false => "",
            };
            format!("{with}run walrelay reshard --shares {count} {}", of.flags())
        }
    }
}

/// The lanes of an outbox of so many shares, by their shares' numbers: none for the lane of all rows.
pub fn lanes_of(count: u32) -> impl Iterator<Item = Option<u32>> {
    (0..count).map(move |number| (count > 1).then_some(number))
}

/// Whether an outbox of so many shares has this lane.
pub fn has_lane(count: u32, share: Option<u32>) -> bool {
    share.map_or(count == 1, |number| count > 1 && number < count)
}

impl Switch {
    /// What a logical message says to the lane of this slot, which has this share, if it is about its outbox.
    pub(crate) fn read(
        prefix: &[u8],
        content: &[u8],
        slot: &str,
        share: Option<u32>,
    ) -> Option<Switch> {
        let text = str::from_utf8(content).ok();
        let (from, rest) = text
            .filter(|_| prefix == PREFIX.as_bytes())?
            .split_once(' ')?;
        let (to, whole_slot) = rest.split_once(' ')?;
        let switch = Switch {
            from: from.parse().ok()?,
            to: to.parse().ok()?,
        };
        let is_whole = switch.from.is_power_of_two() && switch.to.is_power_of_two();
        let is_of_lane = match share {
            Some(number) => slot == format!("{whole_slot}_{number}"),
            None => slot == whole_slot,
        };
        (is_whole && is_of_lane).then_some(switch)
    }

    /// The content of the message.
    pub fn content(self, whole_slot: &str) -> String {
        format!("{} {} {whole_slot}", self.from, self.to)
    }

    /// The other lanes that had rows which the lane of `share` has from now on.
    pub(crate) fn givers(self, share: Option<u32>) -> Vec<Option<u32>> {
        let smaller = self.from.min(self.to);
        let rest = |share: Option<u32>| share.unwrap_or(0) % smaller;
        let is_giver = |giver: &Option<u32>| *giver != share && rest(*giver) == rest(share);
        match has_lane(self.to, share) {
            true => lanes_of(self.from).filter(is_giver).collect(),
            false => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switch(from: u32, to: u32) -> Switch {
        Switch { from, to }
    }

    #[test]
    fn a_lane_takes_rows_only_from_lanes_that_had_them() {
        for (from, to) in [
            (2, 4),
            (4, 2),
            (4, 8),
            (8, 2),
            (1, 4),
            (4, 1),
            (4, 4),
            (1, 1),
        ] {
            for share in lanes_of(from).chain(lanes_of(to)) {
                // A row's hash tells both lanes.
                let lane = |count: u32, hash: u32| (count > 1).then_some(hash & (count - 1));
                let mut givers: Vec<Option<u32>> = (0..64)
                    .filter(|hash| has_lane(to, share) && lane(to, *hash) == share)
                    .map(|hash| lane(from, hash))
                    .filter(|giver| *giver != share)
                    .collect();
                givers.sort_unstable();
                givers.dedup();
                assert_eq!(
                    switch(from, to).givers(share),
                    givers,
                    "{from} {to} {share:?}"
                );
            }
        }
    }

    #[test]
    fn a_common_name_has_the_number_of_the_share_replaced() {
        for (stream, share, common) in [
            ("B_0", 0, Some("B_{share}")),
            ("B2_2_X", 2, Some("B2_{share}_X")),
            ("2_B22", 2, Some("{share}_B22")),
            ("S12", 2, Some("S1{share}")),
            ("S12", 12, Some("S{share}")),
            ("EVENTS", 0, None),
            ("EVENTS_1", 0, None),
        ] {
            let found = common_stream(stream, share);
            assert_eq!(found.as_deref(), common);
            if let Some(common) = common {
                assert_eq!(name_of(common, share), stream);
            }
        }
    }

    #[test]
    fn nobody_waits_in_a_circle() {
        for (from, to) in [(2, 4), (4, 2), (2, 8), (8, 2), (1, 4), (4, 1)] {
            let switch = switch(from, to);
            let waits = |share: Option<u32>| !switch.givers(share).is_empty();
            for share in lanes_of(from).chain(lanes_of(to)) {
                assert!(switch.givers(share).into_iter().all(|giver| !waits(giver)));
            }
        }
    }

    #[test]
    fn the_lane_of_all_rows_is_told_by_its_own_slot() {
        let read = |slot: &str| Switch::read(PREFIX.as_bytes(), b"1 4 out_0", slot, None);
        assert_eq!(read("out_0"), Some(switch(1, 4)));
        // The lane of another outbox, whose slot is called like that of a share.
        assert_eq!(read("out_0_0"), None);
        assert_eq!(read("out"), None);
    }

    #[test]
    fn other_messages_say_nothing() {
        let read = |prefix: &str, content: &str| {
            Switch::read(prefix.as_bytes(), content.as_bytes(), "out_box_3", Some(3))
        };
        assert_eq!(read(PREFIX, "2 4 out_box"), Some(switch(2, 4)));
        assert_eq!(
            read(PREFIX, &switch(8, 4).content("out_box")),
            Some(switch(8, 4))
        );
        for (prefix, content) in [
            ("walrelay", "2 4 out_box"),
            (PREFIX, "2"),
            (PREFIX, "2 4"),
            (PREFIX, "2 3 out_box"),
            (PREFIX, "0 4 out_box"),
            (PREFIX, "2 4 out_box "),
            // Another outbox of the database.
            (PREFIX, "2 4 out"),
            (PREFIX, "2 4 out_box_3"),
            (PREFIX, ""),
        ] {
            assert_eq!(read(prefix, content), None, "{prefix} {content:?}");
        }
        assert_eq!(
            Switch::read(PREFIX.as_bytes(), b"\xff 4 out_box", "out_box_3", Some(3)),
            None
        );
    }
}
