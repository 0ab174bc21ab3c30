//! From a row to the JSON on the wire: ns and allocations an event.

mod input;

use std::borrow::Cow;

use bytes::BytesMut;
use divan::{AllocProfiler, Bencher, black_box};
use walrelay::pipeline::envelope::Envelope;
use walrelay::pipeline::fields::Fields;
use walrelay::pipeline::kind::Kind;
use walrelay::pipeline::pgoutput::Column;
use walrelay::pipeline::row::Row;
use walrelay::pipeline::subject::SubjectTemplate;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// By the payload's length in bytes.
#[divan::bench(args = [150, 1_000, 10_000, 100_000])]
fn write(bencher: Bencher<'_, '_>, payload_bytes: usize) {
    let payload = format!(
        "{{\"t\": \"{}\"}}",
        "x".repeat(payload_bytes.saturating_sub(9))
    );
    let id = b"0192f7a0-0000-7000-9000-000000000001";
    let row = Row::new(
        Fields {
            id: Column::Text(id),
            aggregate_id: Column::Text(id),
            event_type: Column::Text(b"lesson.published.v1"),
            event_version: Column::Text(b"1"),
            occurred_at: Column::Text(b"2026-11-23 04:40:52.84613+00"),
            payload: Column::Text(payload.as_bytes()),
        },
        Fields {
            occurred_at: Kind::Time,
            payload: Kind::Json,
            ..Fields::default()
        },
        Vec::new(),
        0,
    );
    let mut out = BytesMut::with_capacity(payload_bytes + 1_000);
    bencher
        .counter(divan::counter::BytesCount::new(payload_bytes))
        .bench_local(|| {
            out.clear();
            Envelope::of(black_box(&row))
                .expect("an event")
                .write(&mut out);
            black_box(&out);
        });
}

#[divan::bench]
fn subject(bencher: Bencher<'_, '_>) {
    let template: SubjectTemplate = "outbox.{event_type}".parse().expect("a template");
    let mut subject = Vec::with_capacity(256);
    bencher.bench_local(|| {
        template
            .render(
                |_| Some(Cow::Borrowed(black_box(b"lesson.published.v1"))),
                &mut subject,
            )
            .expect("a subject");
        black_box(&subject);
    });
}
