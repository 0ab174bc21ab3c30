//! The tables of a lane: its own and further ones of other layouts, and from where on in the WAL each is the lane's.
//!
//! What the verdict takes for true is what was stored in the lane record: the first record that names a table says from where on its
//! rows count, and no later one, whatever was lost, may say anything else.

use crate::random::Random;
use walrelay::pipeline::fields::Fields;
use walrelay::pipeline::mapping::{Format, Mapping, MessageSettings, Value};
use walrelay::pipeline::record::LaneRecord;
use walrelay::pipeline::source::Outbox;
use walrelay::pipeline::tables::{Period, Tables};

/// Which table: the lane's own is the first.
pub(crate) type Kind = usize;
pub(crate) const OWN: Kind = 0;
const AUDIT: Kind = 1;
const ORDERS: Kind = 2;
pub(crate) const KINDS: usize = 3;

/// A table's names over time: as configured, as it is made to take that name, and once another has taken it.
pub(crate) const NAMES: [[&str; 3]; KINDS] = [
    ["outbox_events", "outbox_new", "outbox_old"],
    ["audit", "audit_new", "audit_old"],
    ["orders", "orders_new", "orders_old"],
];

/// OID that the table has at first. One that takes its name has the next.
pub(crate) const OIDS: [u32; KINDS] = [16_400, 17_400, 18_400];

/// Name and type OID of each column, in the order of the envelope; an empty name where the table has none.
pub(crate) fn columns(kind: Kind) -> [(&'static str, u32); 6] {
    match kind {
        AUDIT => [
            ("no", 2950),
            ("who", 25),
            ("what", 25),
            ("version", 23),
            ("at", 1184),
            ("body", 3802),
        ],
        ORDERS => [
            ("id", 2950),
            ("aggregateid", 25),
            ("type", 25),
            ("", 0),
            ("", 0),
            ("payload", 3802),
        ],
        _ => [
            ("id", 2950),
            ("aggregate_id", 2950),
            ("event_type", 25),
            ("event_version", 21),
            ("occurred_at", 1184),
            ("payload_json", 3802),
        ],
    }
}

/// What a message of the table has in front of its type.
pub(crate) fn subject_root(kind: Kind) -> &'static str {
    ["outbox", "outbox.audit", "outbox.order"][kind]
}

/// As the configuration names a further table, and as its messages do; none for the lane's own.
pub(crate) fn told_as(kind: Kind) -> Option<String> {
    (kind != OWN).then(|| format!("public.{}", NAMES[kind][0]))
}

/// Whether an event of the table has its id in a header.
pub(crate) fn has_bare_payload(kind: Kind) -> bool {
    kind == ORDERS
}

fn mapping(kind: Kind) -> Mapping {
    let [
        id,
        aggregate_id,
        event_type,
        event_version,
        occurred_at,
        payload,
    ] = columns(kind).map(|(name, _)| match name {
        "" => Value::Absent,
        name => Value::Column(name.to_owned()),
    });
    let columns = Fields {
        id,
        aggregate_id,
        event_type,
        event_version,
        occurred_at,
        payload,
    };
    let template = format!("{}.{{event_type}}", subject_root(kind));
    let message = MessageSettings {
        format: match has_bare_payload(kind) {
            true => Format::Payload,
            false => Format::Envelope,
        },
        table: told_as(kind),
        ..MessageSettings::default()
    };
    Mapping::new(columns, template.parse().expect("a template"), message)
}

/// The outboxes of a start, by what the catalog had.
pub(crate) fn outboxes(
    further: &[Kind],
    oids: &[u32; KINDS],
    end_of_wal: u64,
) -> impl Iterator<Item = Outbox> {
    std::iter::once(OWN)
        .chain(further.iter().copied())
        .map(move |kind| {
            let name = NAMES[kind][0].to_owned();
            let tables = Tables::new("public".into(), name, oids[kind], end_of_wal.into());
            Outbox {
                tables: tables.of_further(&told_as(kind).unwrap_or_default()),
                mapping: mapping(kind),
            }
        })
}

/// Behind one LSN and up to another the rows of a table are the lane's.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: u64,
    until: u64,
}

/// When which table was the lane's.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    of: [Vec<Span>; KINDS],
    has_begun: bool,
    /// Where the table was taken out of the configuration.
    removed_at: [Option<u64>; KINDS],
}

impl Spans {
    /// Whether a row in a transaction that commits there is the lane's.
    pub(crate) fn count(&self, kind: Kind, commit_lsn: u64) -> bool {
        let mut spans = self.of[kind].iter();
        kind == OWN || spans.any(|span| span.from < commit_lsn && commit_lsn <= span.until)
    }

    /// The configuration names the table no more.
    pub(crate) fn remove(&mut self, kind: Kind, end_of_wal: u64) {
        self.removed_at[kind] = Some(end_of_wal);
    }

    /// It names it.
    pub(crate) fn add(&mut self, kind: Kind) {
        self.removed_at[kind] = None;
    }

    /// Known limit: where somebody makes the stream anew, and a crash sets the slot back, rows of a table that is named no more
    /// do not come again.
    pub(crate) fn forget_removed(&mut self) {
        for (spans, removed_at) in self.of.iter_mut().zip(self.removed_at) {
            if removed_at.is_some() {
                spans.clear();
            }
        }
    }

    /// Takes a record that was stored.
    ///
    /// # Errors
    /// It forgets a table that the configuration names.
    pub(crate) fn recorded(&mut self, record: &LaneRecord) -> Result<(), String> {
        for kind in OWN + 1..KINDS {
            let name = told_as(kind).expect("a further one");
            let mut periods = record.tables.iter();
            // Without a table's name it is a time when there was none; one that has ended is remembered and not named.
            let is_one = |period: &&Period| !period.table.is_empty() && !period.ended;
            let begins = periods.find(|period| period.outbox == name && is_one(period));
            let open = self.of[kind].last_mut().filter(|it| it.until == u64::MAX);
            match (begins, open) {
                (Some(period), None) => self.of[kind].push(Span {
                    from: match self.has_begun {
                        true => period.from.into(),
                        false => 0,
                    },
                    until: u64::MAX,
                }),
                (None, Some(open)) => {
                    let removed_at = self.removed_at[kind];
                    open.until = removed_at.ok_or_else(|| format!("the record forgets {name}"))?;
                }
                _ => {}
            }
        }
        self.has_begun = true;
        Ok(())
    }
}

/// What a seed has beside the lane's own table.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The tables that there are, named or not.
    pub(crate) present: Vec<Kind>,
    /// Those that the lane begins with.
    pub(crate) named: Vec<Kind>,
    /// When one of them is named, or is named no more: a part of the run.
    pub(crate) changes: Vec<f64>,
}

impl Plan {
    /// From numbers of its own, so that a seed without further tables is as it was.
    pub(crate) fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5eed_7ab1e5);
        let present: Vec<Kind> = (AUDIT..=random.below(KINDS as u64) as Kind).collect();
        let named = present.iter().copied().filter(|_| !random.one_in(3));
        let named: Vec<Kind> = named.collect();
        let changes = match present.is_empty() {
            true => 0,
            false => random.below(4),
        };
        Plan {
            present,
            named,
            changes: (0..changes).map(|_| random.fraction()).collect(),
        }
    }
}
