//! Bare JetStream publishing through walrelay's own window and connection: the broker's side of the limit.
//!
//! In: a way to publish, how many messages, of how many bytes. Out: seconds until the last is acknowledged.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use walrelay::nats::address::NatsAuth;
use walrelay::nats::connection::LaneConnection;
use walrelay::nats::protocol::Op;
use walrelay::nats::settings::ConnectionSettings;
use walrelay::pipeline::limit::SizeLimit;
use walrelay::pipeline::position::Position;
use walrelay::pipeline::publish::{
    Body, EventId, Message, Mode, Origin, Window, WindowLimits, WindowSettings,
};
use walrelay::pipeline::shared_end_search::fence_subject;

use crate::lane::Lane;
use crate::report::{Cell, Report, median, spread};
use crate::servers::Servers;

/// Most bytes of frames before they are handed to the socket, as in the relay.
const TURN_BYTES_MAX: usize = 1 << 20;

/// Bytes of an event of the usual backlog in its envelope.
const EVENT_BYTES: usize = 370;

/// Every way to publish, interleaved.
pub async fn lanes(
    servers: &Servers,
    events: u64,
    rounds: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    eprintln!("bare publishing of {events} messages");
    let mut lane = Lane::new(servers, "bare").await?;
    let modes = [Mode::FastIngest, Mode::Chain, Mode::Atomic];
    let mut rates = modes.map(|_| Vec::new());
    for round in 0..rounds {
        for (mode, rates) in modes.into_iter().zip(&mut rates) {
            let stream = format!("BARE_{round}");
            let seconds = bare(&mut lane, mode, &stream, events, EVENT_BYTES).await?;
            rates.push(events as f64 / seconds);
        }
    }
    for (mode, rates) in modes.into_iter().zip(&rates) {
        report
            .table(
                "Bare publishing, the broker's limit",
                &["lane", "events/s", "spread"],
            )
            .push(vec![
                Cell::text(mode.name().to_owned()),
                Cell::rate(median(rates)),
                Cell::text(spread(rates)),
            ]);
        report.bar(&format!("bare publishing, {}", mode.name()), median(rates));
    }
    lane.close().await
}

/// Publishes into a stream that is made before and deleted afterwards; the seconds between.
pub async fn bare(
    lane: &mut Lane<'_>,
    mode: Mode,
    stream: &str,
    events: u64,
    body_bytes: usize,
) -> anyhow::Result<f64> {
    let slot = format!("{}_0", lane.name);
    lane.shared = mode.preparation().fenced;
    lane.setup(&slot, stream)?;
    lane.shared = false;
    let seconds = publish(lane.servers, mode, stream, &slot, events, body_bytes).await?;
    lane.servers.jetstream.delete_stream(stream).await?;
    Ok(seconds)
}

async fn publish(
    servers: &Servers,
    mode: Mode,
    stream: &str,
    slot: &str,
    events: u64,
    body_bytes: usize,
) -> anyhow::Result<f64> {
    let address = servers.nats.url().parse().context("the server's address")?;
    let settings = ConnectionSettings::new(vec![address], NatsAuth::None);
    let mut connection = LaneConnection::open(&settings, "bench", &[]).await?;
    let mut window = Window::new(
        WindowSettings {
            mode,
            stream: stream.to_owned(),
            slot: slot.to_owned(),
            fence_subject: fence_subject(stream, slot),
            tables: Vec::new(),
            limits: WindowLimits {
                inbox: connection.inbox().to_owned(),
                epoch_token: "0123456789abcdef".into(),
                messages_max: 8_192,
                one_by_one: 0,
                batch_messages_max: None,
                bytes_max: 8 << 20,
                message_limit: SizeLimit::smaller(1 << 20, None),
                ack_timeout: Duration::from_secs(30),
            },
        },
        0,
    );
    let subject = format!("{stream}.lesson.published.v1");
    let body = vec![b'x'; body_bytes];
    let begin = Instant::now();
    let (mut published, mut acknowledged) = (0, 0);
    while acknowledged < events {
        let now = begin.elapsed();
        while let Some(op) = connection.next_op()? {
            if let Op::Msg(msg) = op {
                let token = msg.below(connection.inbox()).context("an answer")?;
                acknowledged = window.answer(token, msg.status(), &msg.payload, now, |_| {})?;
            }
        }
        while published < events && window.has_room() && connection.pending_bytes() < TURN_BYTES_MAX
        {
            published += 1;
            let headers = format!("Walrelay-Position: {slot} 0/1000:{published}\r\n");
            let position = Position {
                commit_lsn: 1_u64.into(),
                ordinal: published,
            };
            window.publish(
                connection.outgoing(),
                &Message {
                    subject: subject.as_bytes(),
                    headers: headers.as_bytes(),
                    body: Body::Bytes(&body),
                },
                Origin {
                    position,
                    event_id: Some(EventId::Inline([b'0'; 36])),
                    outbox: 0,
                    first_publication: true,
                },
                now,
            )?;
        }
        window.end_turn(connection.outgoing(), published == events, None);
        if acknowledged < events {
            connection.exchange().await?;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    connection.close().await;
    Ok(seconds)
}
