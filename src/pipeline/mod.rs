//! The core: everything that decides, without sockets, clock or randomness, one file a stage in the order of the flow.
//!
//! | stage | in | out |
//! |---|---|---|
//! | [`copy_both`] | CopyData payloads | XLogData, keepalives; status updates |
//! | [`oversized`] | an oversized payload in pieces | the payload without its oversized columns |
//! | [`pgoutput`] | XLogData | Begin, Relation, Insert, Commit |
//! | [`relations`], [`source`] | Relation messages, tuples | the [`row`] of an outbox, or that it is of another table |
//! | [`logical_message`] | a message of the WAL | the same, without a table |
//! | [`carrier`] | what carries the table into the WAL, at two moments | rows that are never sent |
//! | [`tables`] | their names and OIDs at an LSN | whether they are the outbox's |
//! | [`known_columns`] | the columns, as the catalog has them and as they were | what each was called where |
//! | [`id_column`] | the column of their ids | that it is another one than messages tell |
//! | [`misnamed`] | both, as they are configured | why the lane cannot go on by them |
//! | [`encoding`] | their text, as the database stores it | the same in UTF-8 |
//! | [`position`] | commit LSN and ordinal | the place in the lane |
//! | [`end_search`], [`shared_end_search`] | the stream's last messages | the lane's own last one: the [`lane_end`] |
//! | [`continuity`] | that, slot, lane [`record`], timelines ([`history`]) | where to go on, or a halt |
//! | [`begin`] | the record | where a slot begins of which nobody has written it down |
//! | [`opening`], [`request`] | all of that, step by step | an engine that may stream, or why there is none |
//! | [`mapping`], [`kind`], [`value`] | the configuration | what of a row becomes what of a message |
//! | [`message`], [`envelope`], [`subject`] | a row | subject, headers and body, or why it can be none |
//! | [`stored_event`] | a stored message | what it says of its event |
//! | [`dead_letter`] | a rejected row | the message that takes its place |
//! | [`publish`] | messages and answers | frames; a contiguous prefix of acknowledged rows |
//! | [`progress`] | transactions, keepalives, acknowledgements | how far the slot may be confirmed |
//! | [`commit_time`] | commit times in the WAL, the server's clock | those that are believed; how long acknowledgements took |
//! | [`confirm`] | that, and the broker's answers | the LSN to confirm, once record and probe allow it |
//! | [`engine`] | all of the above joined | one epoch as a state machine |
//! | [`silence`] | when something was heard | when to ask for a sign of life, and when to give up |
//! | [`sight`] | looks at the catalog | that nothing has been seen for too long, and that it is over |
//! | [`room`] | what the slot may still keep | that it runs out, and that it no longer does |
//! | [`burst`] | many occurrences of one kind | which is told in full, and counts of the others |
//! | [`fault`], [`epochs`] | how an epoch ended | a pause, or a halt |
//!
//! What a message says, and where it stands, is in [`crate::event`]: consumers read it, too.
//! Time comes in as an argument: a [`std::time::Duration`] since any fixed moment.

pub mod after_publish;
pub mod begin;
pub mod burst;
pub mod bytes;
pub mod carrier;
pub mod commit_time;
pub mod confirm;
pub mod continuity;
pub mod copy_both;
pub mod dead_letter;
pub mod encoding;
pub mod end_search;
pub mod engine;
pub mod envelope;
pub mod epochs;
pub mod fault;
pub mod fields;
pub mod history;
pub mod id_column;
pub mod kind;
pub mod known_columns;
pub mod lane_end;
pub mod limit;
pub mod logical_message;
pub mod mapping;
pub mod message;
pub mod misnamed;
pub mod mute;
pub mod opening;
pub mod oversized;
pub mod pgoutput;
pub mod progress;
pub mod publications;
pub mod publish;
mod reader;
pub mod record;
pub mod relations;
pub mod request;
pub mod reshard;
pub mod room;
pub mod row;
pub mod shared_end_search;
pub mod sight;
pub mod silence;
pub mod source;
pub mod tables;
mod text;
mod text_option;
pub mod value;

pub use crate::event::{event_id, position, stored_event, subject};
pub use reader::DecodeError;
