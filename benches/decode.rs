//! From a CopyData payload to a row of six slices: ns and allocations an event.

mod input;

use divan::{AllocProfiler, Bencher, black_box};
use walrelay::pipeline::copy_both::{self, ReplicationMessage};
use walrelay::pipeline::pgoutput::{self, Message};
use walrelay::pipeline::relations::Relations;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

fn data(payload: &[u8]) -> &[u8] {
    match copy_both::decode(payload).expect("well formed") {
        ReplicationMessage::XLogData { data, .. } => data,
        ReplicationMessage::Keepalive { .. } => unreachable!("only XLogData here"),
    }
}

fn described() -> Relations {
    let mut relations = Relations::new(input::source(input::DEFAULT));
    let relation = input::relation(input::DEFAULT);
    let Ok(Message::Relation(relation)) = pgoutput::decode(data(&relation)) else {
        unreachable!("a Relation message");
    };
    relations.describe(relation);
    relations
}

#[divan::bench]
fn insert(bencher: Bencher<'_, '_>) {
    let relations = described();
    let payload = input::insert(input::DEFAULT, 1);
    bencher
        .counter(divan::counter::ItemsCount::new(1_u32))
        .bench_local(|| {
            let Ok(Message::Insert { relation_oid, row }) =
                pgoutput::decode(data(black_box(&payload)))
            else {
                unreachable!("an Insert message");
            };
            black_box(relations.read(relation_oid, &row).expect("fits"));
        });
}

#[divan::bench]
fn begin_and_commit(bencher: Bencher<'_, '_>) {
    let (begin, commit) = (input::begin(1_000), input::commit(1_000));
    bencher.bench_local(|| {
        black_box(pgoutput::decode(data(black_box(&begin))).expect("well formed"));
        black_box(pgoutput::decode(data(black_box(&commit))).expect("well formed"));
    });
}
