//! One row of an outbox: the values of its event's fields, as the server sent them.
//!
//! In: values by field, with what their types are. Out: the same in UTF-8. They are slices of the read buffer.

use super::bytes::id_of_bytes;
use super::encoding::{Converted, Encoding};
use super::fields::{Field, Fields};
use super::kind::Kind;
use super::pgoutput::Column;
use std::borrow::Cow;

/// One row, its values as the server sent them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<'a> {
    values: Fields<Column<'a>>,
    kinds: Fields<Kind>,
    /// Those of [`Mapping::extras`](super::mapping::Mapping::extras).
    extras: Vec<(Kind, Column<'a>)>,
    /// When its transaction was committed, in µs since 2000-01-01 UTC.
    pub committed_at_us: i64,
    /// Whose row it is, of [`Source::outboxes`](super::source::Source::outboxes); small, since every row is moved.
    outbox: u16,
}

impl<'a> Row<'a> {
    /// A row from its values as the table has them now, and their types' kinds.
    pub fn new(
        values: Fields<Column<'a>>,
        kinds: Fields<Kind>,
        extras: Vec<(Kind, Column<'a>)>,
        committed_at_us: i64,
    ) -> Self {
        Row {
            values,
            kinds,
            extras,
            committed_at_us,
            outbox: 0,
        }
    }

    /// The same as a row of this outbox, of [`Source::outboxes`](super::source::Source::outboxes).
    #[inline]
    pub(super) fn of_outbox(mut self, outbox: u16) -> Self {
        self.outbox = outbox;
        self
    }

    /// Whose row it is, of [`Source::outboxes`](super::source::Source::outboxes).
    #[inline]
    pub(crate) fn outbox(&self) -> usize {
        usize::from(self.outbox)
    }

    /// The same, as it is kept of a row in flight.
    #[inline]
    pub(crate) fn outbox_number(&self) -> u16 {
        self.outbox
    }

    /// The value of one field; null where no column has it.
    #[inline]
    pub fn get(&self, field: Field) -> Column<'a> {
        *self.values.get(field)
    }

    /// The row with all its text in UTF-8, of which `buffer` keeps what had to be written anew. What is no text becomes
    /// [`Column::NoText`].
    #[inline]
    pub(crate) fn in_utf8(self, encoding: &Encoding, buffer: &'a mut Vec<u8>) -> Self {
        match encoding {
            Encoding::Utf8 => self,
            _ => self.converted(encoding, buffer),
        }
    }

    fn converted(mut self, encoding: &Encoding, buffer: &'a mut Vec<u8>) -> Self {
        let converted: Vec<Converted> = self
            .columns_mut()
            .map(|column| match column {
                Column::Text(text) => encoding.utf8(text, buffer),
                _ => Converted::Same,
            })
            .collect();
        let buffer: &'a [u8] = buffer;
        for (column, converted) in self.columns_mut().zip(converted) {
            match (converted, *column) {
                (Converted::At(range), _) => *column = Column::Text(&buffer[range]),
                (Converted::Not, Column::Text(bytes)) => *column = Column::NoText(bytes),
                _ => {}
            }
        }
        self
    }

    /// Every value, to be changed.
    fn columns_mut(&mut self) -> impl Iterator<Item = &mut Column<'a>> {
        let Fields {
            id,
            aggregate_id,
            event_type,
            event_version,
            occurred_at,
            payload,
        } = &mut self.values;
        let own = [
            id,
            aggregate_id,
            event_type,
            event_version,
            occurred_at,
            payload,
        ];
        own.into_iter()
            .chain(self.extras.iter_mut().map(|(_, column)| column))
    }

    /// The event's id as text: 16 bytes as a UUID; none where it has none.
    #[inline]
    pub fn id(&self) -> Option<Cow<'a, [u8]>> {
        match (self.values.id, self.kinds.id) {
            (Column::Text(id), Kind::Bytes) => Some(Cow::Owned(id_of_bytes(id))),
            (Column::Text(id), _) => Some(Cow::Borrowed(id)),
            _ => None,
        }
    }

    /// What the text of one field is.
    #[inline]
    pub fn kind(&self, field: Field) -> Kind {
        *self.kinds.get(field)
    }

    /// The columns beyond the event's own, as [`Mapping::extras`](super::mapping::Mapping::extras) names them.
    #[inline]
    pub(crate) fn extras(&self) -> &[(Kind, Column<'a>)] {
        &self.extras
    }
}
