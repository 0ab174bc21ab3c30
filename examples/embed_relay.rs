//! The relay inside an application: one call, one task.
//!
//! ```text
//! walrelay setup --stream EDUPULSE --subject 'edupulse.{event_type}'
//! DATABASE_URL=postgres://localhost/app NATS_URL=nats://localhost:4222 cargo run --example embed_relay
//! ```

use anyhow::Context as _;
use walrelay::relay;
use walrelay::relay::settings::Settings;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let database = std::env::var("DATABASE_URL").context("set DATABASE_URL")?;
    let nats = std::env::var("NATS_URL").context("set NATS_URL")?;
    let mut settings = Settings::of_urls(&database, &nats)?;
    settings.nats.stream = "EDUPULSE".to_owned();
    settings.nats.subject = "edupulse.{event_type}".parse()?;

    let mut relay = relay::spawn(settings);
    let mut watch = relay.watch();
    tokio::spawn(async move {
        let mut last = None;
        loop {
            let status = watch.changed().await;
            if last != Some(status.state) {
                let position = status.position.as_deref().unwrap_or("the beginning");
                let reason = status.reason.unwrap_or_default();
                println!("{} at {position} {reason}", status.state.name());
                last = Some(status.state);
            }
        }
    });
    tokio::select! {
        // A wrong password, a missing stream, a halt: an application says so, and goes on without.
        ended = relay.ended() => println!("the relay has ended: {ended:?}"),
        _ = tokio::signal::ctrl_c() => {}
    }
    println!("{:?}", relay.stop().await?);
    Ok(())
}
