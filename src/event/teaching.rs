//! The events of a live-teaching application: the examples that the demo, the tests and `examples/` share.
//!
//! In: a lesson that a teacher published, a user who asked to be forgotten. Out: two [`DomainEvent`]s.
//! Guarantee: their names and shapes are stable; a consumer may be written against them.

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::DomainEvent;

/// A teacher put a lesson before the pupils.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LessonPublished {
    /// Identity of this event.
    pub event_id: Uuid,
    /// The lesson, which is the aggregate.
    pub lesson_id: Uuid,
    /// Who published it.
    pub teacher_id: Uuid,
    /// The lesson's title as pupils see it.
    pub title: String,
    /// When it was published.
    pub occurred_at: DateTime<Utc>,
}

impl LessonPublished {
    /// A lesson published now, with a fresh event id.
    pub fn new(lesson_id: Uuid, teacher_id: Uuid, title: impl Into<String>) -> Self {
        Self {
            event_id: Uuid::now_v7(),
            lesson_id,
            teacher_id,
            title: title.into(),
            occurred_at: Utc::now().trunc_subsecs(6),
        }
    }
}

impl DomainEvent for LessonPublished {
    const EVENT_TYPE: &'static str = "lesson.published.v1";

    fn event_id(&self) -> Uuid {
        self.event_id
    }

    fn aggregate_id(&self) -> Uuid {
        self.lesson_id
    }

    fn occurred_at(&self) -> DateTime<Utc> {
        self.occurred_at
    }
}

/// A user asked for the erasure of their data (GDPR, article 17): every service that holds some has to see this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserEraseRequested {
    /// Identity of this event.
    pub event_id: Uuid,
    /// Who is to be forgotten; the aggregate.
    pub user_id: Uuid,
    /// When they asked, from which the legal term runs.
    pub requested_at: DateTime<Utc>,
}

impl UserEraseRequested {
    /// A request made now, with a fresh event id.
    pub fn new(user_id: Uuid) -> Self {
        Self {
            event_id: Uuid::now_v7(),
            user_id,
            requested_at: Utc::now().trunc_subsecs(6),
        }
    }
}

impl DomainEvent for UserEraseRequested {
    const EVENT_TYPE: &'static str = "user.erase_requested.v1";

    fn event_id(&self) -> Uuid {
        self.event_id
    }

    fn aggregate_id(&self) -> Uuid {
        self.user_id
    }

    fn occurred_at(&self) -> DateTime<Utc> {
        self.requested_at
    }
}
