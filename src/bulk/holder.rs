//! Who has a lease, behind whom.
//!
//! In: a command, the one that had the lease before. Out: what the lease says of both. Pure, but for the process' id, its clock and a
//! token. Guarantee: a command that has not given the lease back is known until one of the same name has taken over, and that it may
//! have something on its way until somebody has shut it out.

use crate::relay::bulk_work::{Holder, Work};
use crate::relay::clock::now_text;

/// The command that has leases so that nobody publishes, and publishes nothing itself: what it leaves is in no stream's way.
pub(crate) const RESHARD: &str = "reshard";

/// What stays of the command line of a command that has ended without finishing; none where nothing is left to do for it.
pub(crate) type Keeps<'k> = &'k (dyn Fn(&str) -> Option<String> + Sync);

/// All of it stays.
pub(crate) fn all(line: &str) -> Option<String> {
    Some(line.to_owned())
}

impl Holder {
    pub(super) fn new(command: &str, line: &str) -> Self {
        Holder {
            command: command.to_owned(),
            line: Some(line.to_owned()),
            process: std::process::id(),
            since: now_text(),
            token: format!("{:016x}", rand::random::<u64>()),
            released: false,
            is_unfenced: false,
            work: Work::default(),
            unfinished: Vec::new(),
        }
    }

    /// The same behind another one.
    pub(super) fn behind(self, before: Option<Holder>) -> Self {
        // What was before it at another lane is not before it here.
        let Some(before) = before else {
            return Holder {
                is_unfenced: false,
                unfinished: Vec::new(),
                ..self
            };
        };
        Holder {
            is_unfenced: before.is_unfenced || !before.released && before.command != RESHARD,
            unfinished: before.unfinished_beside(&self.command),
            ..self
        }
    }

    /// Without what does not stay of what others have left.
    pub(super) fn keeping(mut self, keeps: Keeps<'_>) -> Self {
        self.unfinished.retain_mut(|left| {
            let kept = left.line.as_deref().map(keeps);
            left.line = kept.clone().flatten();
            kept != Some(None)
        });
        self
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers always have a JSON form")
    }

    /// What is unfinished once `command` has it: of the same name it is taken to go on with what the one before had begun.
    fn unfinished_beside(mut self, command: &str) -> Vec<Holder> {
        let mut left = std::mem::take(&mut self.unfinished);
        if !self.released {
            left.push(self);
        }
        left.retain(|holder| holder.command != command);
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_command_has_left_is_kept_and_what_its_like_has_left_is_not() {
        let killed = Holder {
            command: "backfill".to_owned(),
            line: None,
            process: 7,
            since: "2026-11-29T07:00:00Z".to_owned(),
            token: "a".to_owned(),
            released: false,
            is_unfenced: false,
            work: Work::default(),
            unfinished: Vec::new(),
        };
        assert_eq!(killed.clone().unfinished_beside("backfill"), []);
        let unfinished = killed.clone().unfinished_beside("dead-letters retry");
        assert_eq!(unfinished, std::slice::from_ref(&killed));
        let retry = Holder {
            command: "dead-letters retry".to_owned(),
            released: true,
            unfinished,
            ..killed
        };
        assert_eq!(retry.unfinished_beside("backfill"), []);
    }

    #[test]
    fn what_was_left_at_one_lane_is_not_told_of_another() {
        let killed = Holder::new("backfill", "walrelay backfill");
        let here = Holder::new("erase", "walrelay erase").behind(Some(killed));
        assert!(here.is_unfenced && here.unfinished.len() == 1);
        let there = here.behind(None);
        assert!(!there.is_unfenced && there.unfinished.is_empty());
    }

    #[test]
    fn what_may_be_on_its_way_is_known_until_somebody_has_shut_it_out() {
        let held = Holder::new("backfill", "walrelay backfill");
        let is_unfenced = |before: &Holder| {
            let next = Holder::new("dead-letters retry", "walrelay dead-letters retry --all");
            next.behind(Some(before.clone())).is_unfenced
        };
        assert!(is_unfenced(&held));
        let released = |holder: Holder| Holder {
            released: true,
            ..holder
        };
        assert!(!is_unfenced(&released(held.clone())));
        // One of the same command goes on with it, and may have had nothing to publish.
        let again = Holder::new("backfill", "walrelay backfill").behind(Some(held));
        assert!(is_unfenced(&released(again)));
        let resharding = Holder::new(RESHARD, "walrelay reshard --shares 2");
        assert!(!is_unfenced(&resharding));
    }
}
