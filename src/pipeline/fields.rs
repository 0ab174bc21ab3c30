//! What an event is made of, by name.
//!
//! In: nothing. Out: [`Fields`], one value for each field of the envelope: the names of the table's columns, the values
//! of a row, the keys of the JSON.

/// A field of the envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The event's id.
    Id,
    /// The aggregate's id.
    AggregateId,
    /// Such as `lesson.published.v1`.
    EventType,
    /// 0 to 255.
    EventVersion,
    /// When it happened.
    OccurredAt,
    /// The event itself, JSON.
    Payload,
}

/// One value for each [`Field`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fields<T> {
    /// The event's id.
    pub id: T,
    /// The aggregate's id.
    pub aggregate_id: T,
    /// Such as `lesson.published.v1`.
    pub event_type: T,
    /// 0 to 255.
    pub event_version: T,
    /// When it happened.
    pub occurred_at: T,
    /// The event itself, JSON.
    pub payload: T,
}

impl<T> Fields<T> {
    /// The value of one field.
    #[inline]
    pub fn get(&self, field: Field) -> &T {
        match field {
            Field::Id => &self.id,
            Field::AggregateId => &self.aggregate_id,
            Field::EventType => &self.event_type,
            Field::EventVersion => &self.event_version,
            Field::OccurredAt => &self.occurred_at,
            Field::Payload => &self.payload,
        }
    }

    /// As [`Self::get`], to be changed.
    #[inline]
    pub fn get_mut(&mut self, field: Field) -> &mut T {
        match field {
            Field::Id => &mut self.id,
            Field::AggregateId => &mut self.aggregate_id,
            Field::EventType => &mut self.event_type,
            Field::EventVersion => &mut self.event_version,
            Field::OccurredAt => &mut self.occurred_at,
            Field::Payload => &mut self.payload,
        }
    }

    /// The same fields, each by reference.
    pub fn as_ref(&self) -> Fields<&T> {
        Fields {
            id: &self.id,
            aggregate_id: &self.aggregate_id,
            event_type: &self.event_type,
            event_version: &self.event_version,
            occurred_at: &self.occurred_at,
            payload: &self.payload,
        }
    }

    /// What `f` makes of each value, in the order of the envelope.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> Fields<U> {
        Fields {
            id: f(self.id),
            aggregate_id: f(self.aggregate_id),
            event_type: f(self.event_type),
            event_version: f(self.event_version),
            occurred_at: f(self.occurred_at),
            payload: f(self.payload),
        }
    }
}

impl<T> IntoIterator for Fields<T> {
    type Item = (Field, T);
    type IntoIter = std::array::IntoIter<(Field, T), 6>;

    /// Each field with its value, in the order of the envelope.
    fn into_iter(self) -> Self::IntoIter {
        [
            (Field::Id, self.id),
            (Field::AggregateId, self.aggregate_id),
            (Field::EventType, self.event_type),
            (Field::EventVersion, self.event_version),
            (Field::OccurredAt, self.occurred_at),
            (Field::Payload, self.payload),
        ]
        .into_iter()
    }
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Field::Id => "id",
            Field::AggregateId => "aggregate_id",
            Field::EventType => "event_type",
            Field::EventVersion => "event_version",
            Field::OccurredAt => "occurred_at",
            Field::Payload => "payload",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_at_its_name() {
        let names = Fields::<()>::default().into_iter().map(|(field, ())| field);
        for field in names {
            let mut fields = Fields::<u8>::default();
            *fields.get_mut(field) = 1;
            let marked: Vec<Field> = fields
                .map(u32::from)
                .into_iter()
                .filter_map(|(field, value)| (value == 1).then_some(field))
                .collect();
            assert_eq!(marked, [field]);
            assert_eq!(*fields.get(field), 1);
            assert_eq!(**fields.as_ref().get(field), 1);
        }
        let fields = Fields {
            id: 1,
            aggregate_id: 2,
            event_type: 3,
            event_version: 4,
            occurred_at: 5,
            payload: 6,
        };
        let written: Vec<String> = fields
            .into_iter()
            .map(|(field, value)| format!("{field} {value}"))
            .collect();
        let expected = [
            "id 1",
            "aggregate_id 2",
            "event_type 3",
            "event_version 4",
            "occurred_at 5",
            "payload 6",
        ];
        assert_eq!(written, expected);
    }
}
