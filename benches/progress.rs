//! From rows to a confirmable LSN, and the whole engine around it: ns and allocations of 400 events.
//!
//! One iteration is one turn of 400 events; divide by it.

mod input;

use std::time::Duration;

use divan::{AllocProfiler, Bencher, black_box};
use walrelay::pipeline::progress::Progress;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

/// Events of one iteration.
const EVENTS: u64 = 400;

fn main() {
    divan::main();
}

/// Marks alone.
#[divan::bench(args = [1, 10, 400])]
fn marks(bencher: Bencher<'_, '_>, rows: u64) {
    let mut progress = Progress::new(0_u64.into(), Duration::from_secs(180), 1 << 40);
    let (mut end_lsn, mut published) = (0_u64, 0);
    bencher
        .counter(divan::counter::ItemsCount::new(EVENTS))
        .bench_local(|| {
            let now = Duration::from_millis(published / 1_000);
            for _ in 0..EVENTS / rows {
                for _ in 0..rows {
                    progress.published();
                }
                end_lsn += 1_000;
                progress.committed(end_lsn.into(), None, now);
            }
            published += EVENTS;
            progress.acknowledged(published, Some(published), now);
            black_box(progress.confirmable(now));
        });
}

/// Decode, envelope, window, acknowledgement and marks: all that the relay does with an event but the sockets.
#[divan::bench(args = [1, 10, 400])]
fn engine(bencher: Bencher<'_, '_>, rows: u64) {
    let mut lane = input::Lane1::new(input::DEFAULT);
    let inserts: Vec<_> = (0..rows)
        .map(|number| input::insert(input::DEFAULT, number))
        .collect();
    bencher
        .counter(divan::counter::ItemsCount::new(EVENTS))
        .bench_local(|| black_box(lane.turn(EVENTS / rows, &inserts)));
}
