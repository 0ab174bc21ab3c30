//! The state of a lane whose relay does not answer: by the slot, and by what the last relay has left.
//!
//! In: an inspection of Postgres, the lane record. Out: a [`LaneState`]. Guarantee: pure; what was not seen is not called well.

use std::net::SocketAddr;

use serde::Serialize;

use crate::pipeline::record::{HaltNote, Moved};
use crate::pipeline::request::StoredRecord;
use crate::postgres::catalog::Inspection;
use crate::postgres::findings::{Finding, Kind, Severity};
use crate::postgres::named_lock::LockHolder;
use crate::postgres::slot_wal::SlotWal;

/// Whether a relay runs, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Standing {
    /// Somebody reads the slot.
    Running,
    /// The lane is in another stream, by `walrelay move`; whoever reads the slot publishes there.
    Moved,
    /// Somebody is still making the slot.
    SlotUnfinished,
    /// The slot of this name is another one: of another database, or of another kind.
    SlotForeign,
    /// The slot is not there.
    SlotMissing,
    /// The slot can give nothing more.
    SlotLost,
    /// Until a person has looked.
    Halted,
    /// Nobody reads the slot, and a relay is there.
    Waiting,
    /// Nobody reads the slot, and nothing is known to keep a relay from it.
    Stopped,
    /// Nobody reads the slot, and NATS could not be asked why.
    Unknown,
    /// The relay's process is there and does not answer, whoever has the slot.
    NotAnswering,
}

/// What is known of the lane; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneState {
    pub(super) state: Standing,
    /// Why it is halted or lost.
    pub(super) reason: Option<String>,
    /// What goes on.
    pub(super) remedy: Option<String>,
    /// When the last relay halted.
    pub(super) halted_at: Option<String>,
    /// The server's process that reads the slot.
    pub(super) active_pid: Option<i32>,
    /// Relays that wait, beside one that reads the slot too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) waiting: Vec<LockHolder>,
    /// What the slot keeps.
    #[serde(flatten)]
    pub(super) wal: SlotWal,
}

/// What the broker has in the lane record's place.
#[derive(Debug, Clone, Copy)]
pub(super) enum Recorded<'a> {
    /// It could not be asked.
    Unseen,
    /// This.
    Seen(&'a StoredRecord),
}

/// Something that the lane needs and has not; the names are the JSON keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    pub(super) what: String,
    /// What makes it.
    pub(super) remedy: String,
}

/// What the lane needs beside its slot and has not, of what was found: of the slot its state tells. `streams` are those that are not
/// there.
pub(super) fn missing(found: &[Finding], streams: &[&str]) -> Vec<Missing> {
    let of_postgres = found.iter().filter(|finding| {
        finding.severity == Severity::Refuse
            && matches!(
                finding.kind,
                Kind::TableMissing | Kind::PublicationMissing | Kind::PublicationMismatch
            )
    });
    let of_postgres = of_postgres.map(|finding| Missing {
        what: finding.what.clone(),
        remedy: finding.mend.clone(),
    });
    let of_nats = streams.iter().map(|stream| Missing {
        what: format!("there is no stream {stream}"),
        remedy: "run walrelay setup; if there was one, find out first why it has gone".to_owned(),
    });
    of_postgres.chain(of_nats).collect()
}

impl<'a> Recorded<'a> {
    fn stored(self) -> Option<&'a StoredRecord> {
        match self {
            Recorded::Seen(stored) => Some(stored),
            Recorded::Unseen => None,
        }
    }

    fn has_moved(self) -> bool {
        let record = self.stored().and_then(|stored| stored.record.as_ref());
        record.is_some_and(|record| matches!(record.moved, Some(Moved::To { .. })))
    }
}

impl LaneState {
    /// The state by what was seen, and what was found wrong with it. A slot that is not the lane's is none in the inspection. `foreseen`
    /// is what a relay that starts now halts at.
    pub(super) fn of(
        inspection: &Inspection,
        recorded: Recorded<'_>,
        found: &[Finding],
        foreseen: Option<&HaltNote>,
    ) -> Self {
        let slot = inspection.slot.as_ref();
        let active_pid = slot.and_then(|slot| slot.active_pid);
        let note = recorded.stored().and_then(StoredRecord::halted);
        // What a person has mended of a halt is told no more, and a record of another database is not about this lane.
        let note = note.filter(|note| foreseen.is_none_or(|it| it.is_same(note)));
        let wal = SlotWal::of(inspection);
        let state = |state, reason, remedy| LaneState {
            state,
            reason,
            remedy,
            halted_at: note.map(|note| note.at.clone()),
            active_pid,
            waiting: Vec::new(),
            wal: wal.clone(),
        };
        let is_gone = |kind| match kind {
            Kind::SlotLost | Kind::SlotMissing => true,
            // Of one that is there, something else is wrong with it.
            Kind::SlotMismatch => slot.is_none(),
            _ => false,
        };
        let gone = (found.iter())
            .find(|finding| finding.severity == Severity::Refuse && is_gone(finding.kind));
        if let Some(note) = note.or(foreseen).filter(|_| recorded.has_moved()) {
            return state(
                Standing::Moved,
                Some(note.reason.clone()),
                Some(note.remedy.clone()),
            );
        }
        let unfinished = (found.iter()).find(|finding| finding.kind == Kind::SlotUnfinished);
        if let Some(unfinished) = unfinished {
            return state(
                Standing::SlotUnfinished,
                Some(unfinished.what.clone()),
                Some(unfinished.mend.clone()),
            );
        }
        if active_pid.is_some() {
            // One that has just begun has not written its record yet.
            return LaneState {
                halted_at: None,
                ..state(Standing::Running, None, None)
            };
        }
        match (gone, note.or(foreseen), recorded) {
            (Some(gone), ..) => {
                let standing = match gone.kind {
                    Kind::SlotLost => Standing::SlotLost,
                    Kind::SlotMismatch => Standing::SlotForeign,
                    _ => Standing::SlotMissing,
                };
                state(standing, Some(gone.what.clone()), Some(gone.mend.clone()))
            }
            (None, Some(note), _) => state(
                Standing::Halted,
                Some(note.reason.clone()),
                Some(note.remedy.clone()),
            ),
            (None, None, Recorded::Unseen) => state(Standing::Unknown, None, None),
            (None, None, Recorded::Seen(_)) => state(Standing::Stopped, None, None),
        }
    }

    /// Takes over which relays are there and do not read the slot.
    pub(super) fn take_waiting(&mut self, relays: Vec<LockHolder>) {
        let has_halted = self.halted_at.is_some();
        if !relays.is_empty()
            && match self.state {
                Standing::Stopped | Standing::Unknown => true,
                // It has not come so far yet, and may know more of the lane than a new one.
                Standing::Halted => !has_halted,
                _ => false,
            }
        {
            self.state = Standing::Waiting;
        }
        self.waiting = relays;
    }

    /// Takes over that a relay's process takes connections at this address and answers none.
    pub(super) fn take_mute(&mut self, address: SocketAddr) {
        let slot = match (self.state, self.active_pid) {
            (Standing::Stopped | Standing::Waiting | Standing::Unknown, _) => {
                "nobody reads the slot".to_owned()
            }
            (Standing::Running, Some(pid)) => format!("process {pid} of Postgres holds the slot"),
            _ => return,
        };
        self.state = Standing::NotAnswering;
        self.reason = Some(format!(
            "what listens at {address} does not answer, and {slot}: the relay's process is there and stands still, such as by \
                 SIGSTOP, a debugger or for want of memory"
        ));
        self.remedy = Some(format!(
            "find it with ss -ltnp 'sport = :{}' and let it go on with kill -CONT PID, or end it with kill -KILL PID and start it \
                 again: nothing is lost by that",
            address.port()
        ));
    }

    /// Those that wait, for people.
    fn relays(&self) -> String {
        let relays: Vec<String> = self.waiting.iter().map(ToString::to_string).collect();
        relays.join(", ")
    }

    /// Whether somebody reads the slot.
    pub(super) fn is_read(&self) -> bool {
        self.active_pid.is_some()
    }

    /// Whether what Postgres has tells the state, without NATS: who reads the slot or waits may do so in vain.
    pub(super) fn is_known(&self) -> bool {
        !matches!(
            self.state,
            Standing::Unknown | Standing::Running | Standing::Waiting
        )
    }

    /// Lines for people: name and value.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let since = self.halted_at.as_ref();
        let halted = since.map_or_else(String::new, |at| format!(", a relay halted at {at}"));
        let reason = self.reason.as_deref().unwrap_or_default();
        let state = match self.state {
            Standing::Running => format!(
                "running: process {} of Postgres reads the slot",
                self.active_pid.unwrap_or_default()
            ),
            Standing::Moved => format!("moved: {reason}"),
            Standing::SlotUnfinished => format!("no relay can run yet: {reason}"),
            Standing::SlotForeign => format!("no relay can run: {reason}"),
            Standing::SlotMissing => format!("the slot is missing{halted}: {reason}"),
            Standing::SlotLost => format!("the slot is lost{halted}: {reason}"),
            Standing::Halted => match since {
                Some(at) => format!("halted at {at}: {reason}"),
                None => format!("a relay that starts now would halt: {reason}"),
            },
            Standing::Stopped => {
                "stopped: nobody reads the slot; a relay that runs all the same tells in its log what it waits for".to_owned()
            }
            Standing::Waiting => format!(
                "waiting: nobody reads the slot, and a relay is there, {}: its log tells what it waits for{}",
                self.relays(),
                match reason {
                    "" => String::new(),
                    reason => format!("; one that starts now would halt: {reason}"),
                }
            ),
            Standing::NotAnswering => format!("not answering: {reason}"),
            Standing::Unknown => {
                "nobody reads the slot; whether a relay has halted could not be seen".to_owned()
            }
        };
        let mut lines = vec![("state", state)];
        if self.state != Standing::Waiting && !self.waiting.is_empty() {
            lines.push(("stands by", self.relays()));
        }
        lines.extend(self.remedy.clone().map(|remedy| ("what to do", remedy)));
        lines.extend(wal_text(&self.wal).map(|wal| ("slot's WAL", wal)));
        lines
    }
}

/// What the slot keeps, for people; none where there is no slot.
pub(super) fn wal_text(wal: &SlotWal) -> Option<String> {
    let status = wal.wal_status.as_ref()?;
    let kept = wal.retained_bytes.map_or_else(
        || "nothing kept".to_owned(),
        |bytes| format!("{} kept", crate::ops::bytes(bytes)),
    );
    let left = match wal.safe_wal_bytes {
        Some(bytes) => format!(
            ", {} more until it is lost",
            crate::ops::bytes(u64::try_from(bytes).unwrap_or(0))
        ),
        None if status == "lost" => String::new(),
        None => ", without a limit".to_owned(),
    };
    Some(format!("{status}, {kept}{left}"))
}

#[cfg(test)]
impl LaneState {
    /// Of a lane of which nothing else is known.
    pub(super) fn of_stopped() -> Self {
        LaneState {
            state: Standing::Stopped,
            reason: None,
            remedy: None,
            halted_at: None,
            active_pid: None,
            waiting: Vec::new(),
            wal: SlotWal::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halt_is_told_with_its_remedy_and_the_slots_wal() {
        let lane = LaneState {
            state: Standing::Halted,
            reason: Some("the row cannot be published".to_owned()),
            remedy: Some("`walrelay dead-letters skip 1/2:1` passes it".to_owned()),
            halted_at: Some("2026-11-28T10:00:00Z".to_owned()),
            wal: SlotWal {
                wal_status: Some("extended".to_owned()),
                retained_bytes: Some(6 << 20),
                safe_wal_bytes: Some(1 << 20),
                limit_bytes: Some(8 << 20),
            },
            ..LaneState::of_stopped()
        };
        let lines = lane.lines();
        let value = |name| lines.iter().find(|(found, _)| *found == name);
        assert_eq!(
            value("state").map(|(_, value)| value.as_str()),
            Some("halted at 2026-11-28T10:00:00Z: the row cannot be published")
        );
        assert_eq!(
            value("slot's WAL").map(|(_, value)| value.as_str()),
            Some("extended, 6.0 MiB kept, 1.0 MiB more until it is lost")
        );
        assert!(value("what to do").is_some());
    }
}
