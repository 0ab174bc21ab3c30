//! What a lane relays: its tables, where in the WAL each is one of them, and what their rows become.
//!
//! In: the configuration, and what the record knows of earlier tables. Out: whose rows a relation has, or why they are passed over.

use super::encoding::Encoding;
use super::kind::Kind;
use super::mapping::Mapping;
use super::pgoutput::Relation;
use super::tables::{Period, Tables, Verdict};
use postgres_types::PgLsn;

/// What to relay: the tables, how they and their columns are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The lane's own, which messages of the WAL are mapped like, and further ones.
    pub outboxes: Vec<Outbox>,
    /// What the columns' domains stand on: OIDs of domain and type. The WAL names a domain only by its OID.
    pub domains: Vec<(u32, u32)>,
    /// How text comes.
    pub encoding: Encoding,
    /// The prefix of messages of the WAL that are taken for rows; none where they are not asked for.
    pub messages: Option<String>,
}

/// A table to relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbox {
    /// Which table it is, where in the WAL.
    pub tables: Tables,
    /// What of its rows becomes what of a message.
    pub mapping: Mapping,
}

impl Outbox {
    /// As headers name it; empty for the lane's own.
    pub(crate) fn table(&self) -> &str {
        self.mapping.message.table.as_deref().unwrap_or_default()
    }
}

impl Source {
    /// Why rows of a relation that is no outbox in a transaction that commits at `lsn` are passed over.
    pub(super) fn passed_over(&self, oid: u32, lsn: PgLsn) -> PassedOver {
        let mut known = self.outboxes.iter().filter(|it| it.tables.knows(oid));
        match known.next() {
            None => PassedOver::Other,
            Some(outbox) if outbox.tables.begins_behind(oid, lsn) => PassedOver::NotYet,
            Some(_) => PassedOver::Elsewhere,
        }
    }

    /// The tables as headers name them, empty for the lane's own; none where that is the only one.
    pub(crate) fn tables(&self) -> Vec<String> {
        let tables = self.outboxes.iter().map(|outbox| outbox.table().to_owned());
        match self.outboxes.len() {
            0 | 1 => Vec::new(),
            _ => tables.collect(),
        }
    }

    /// Each outbox goes on with what is recorded of it, see [`Tables::continued`].
    #[must_use]
    pub(crate) fn continued(mut self, recorded: &[Period], confirmed_lsn: PgLsn) -> Self {
        for outbox in &mut self.outboxes {
            let tables = outbox.tables.clone();
            outbox.tables = tables.continued(recorded, confirmed_lsn);
        }
        self
    }

    /// Names that are not recorded begin no sooner than there.
    #[must_use]
    pub(crate) fn named_at(mut self, lsn: PgLsn) -> Self {
        for outbox in &mut self.outboxes {
            outbox.tables.begin_at(lsn);
        }
        self
    }

    /// What a relation is in a transaction that commits at `lsn`, and to which outbox.
    pub(super) fn verdict(&self, relation: &Relation, lsn: PgLsn) -> (usize, Verdict) {
        let (schema, table) = (
            self.encoding.name(&relation.schema),
            self.encoding.name(&relation.name),
        );
        let verdicts = self.outboxes.iter().map(|outbox| {
            let tables = &outbox.tables;
            tables.verdict(&schema, &table, relation.oid, lsn)
        });
        let mut successor = None;
        for found in verdicts.enumerate() {
            match found.1 {
                // A table that is known stays what it was, also under the name of another.
                Verdict::Outbox => return found,
                Verdict::Successor => successor = successor.or(Some(found)),
                Verdict::Other => {}
            }
        }
        successor.unwrap_or((0, Verdict::Other))
    }

    pub(super) fn kind_of(&self, type_oid: u32) -> Kind {
        let domain = self.domains.iter().find(|(oid, _)| *oid == type_oid);
        Kind::of_type(domain.map_or(type_oid, |(_, base)| *base))
    }
}

/// Why a table's rows are passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PassedOver {
    /// It is none of the outboxes anywhere.
    Other,
    /// It becomes one further on: the configuration did not name it yet.
    NotYet,
    /// It is one in other parts of the WAL.
    Elsewhere,
}
