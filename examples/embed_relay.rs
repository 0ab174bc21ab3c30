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

    let relay = relay::spawn(settings);
    println!("relaying; Ctrl-C stops");
    tokio::signal::ctrl_c().await?;
    let outcome = relay.stop().await?;
    println!("{outcome:?}");
    Ok(())
}
