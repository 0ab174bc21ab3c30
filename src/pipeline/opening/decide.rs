//! What a start decides by its looks, and what is asked of a start before there is one.
//!
//! In: what it knows, the last look, where the slot stands, the tables of the configuration. Out: where the lane goes on, or why it does not.

use super::look::View;
use super::{Known, SlotPlace};
use crate::pipeline::continuity::{self, Plan, Refusal, StartView};
use crate::pipeline::lane_end::Memory;
use crate::pipeline::misnamed::Misnamed;
use crate::pipeline::source::Source;

/// Where the lane goes on, by the last look and where the slot stands.
pub(super) fn plan(known: &Known<'_>, view: &View, place: &SlotPlace) -> Result<Plan, Refusal> {
    continuity::plan(&StartView {
        lane: &place.lane,
        confirmed_flush_lsn: place.confirmed_flush_lsn,
        begins_lsn: place.begins_lsn,
        server_lsn: place.server_lsn,
        history: &place.history,
        stream: known.stream,
        nats: &known.nats,
        created: &view.stream.created,
        last_sequence: view.stream.last_sequence,
        lane_end: &view.lane_end,
        record: view.stored.record.as_ref(),
        memory: known.memory.as_ref(),
        from: known.from,
    })
}

/// Whether the configuration gives a table of the lane another name, or other ids, than its messages tell.
pub(super) fn check_names(
    known: &Known<'_>,
    view: &View,
    plan: &Plan,
    source: &Source,
) -> Result<(), Misnamed> {
    let View { stream, stored, .. } = view;
    let memory = known.memory.as_ref();
    let tables = Memory::tables(memory, &stream.created, stored.record.as_ref());
    source.check_names(tables, plan.lane_end.is_some())
}
