//! What only nats-server's monitoring tells: how often JetStream syncs its files.
//!
//! In: an address, `relay.hold_back`. Out: a part of the report. Guarantee: reads only; unasked, it says what nobody has seen.

use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use super::Report;
use crate::cli::http_get::get;
use crate::relay::settings::Settings;

/// Of a nats-server that has none set.
const SYNC_INTERVAL_DEFAULT: Duration = Duration::from_secs(120);

/// Where nats-server's monitoring listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitoring(String);

impl FromStr for Monitoring {
    type Err = String;

    /// `host:port`, or as a browser has it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = text.strip_prefix("http://").unwrap_or(text);
        let address = address.trim_end_matches('/');
        let port = address
            .rsplit_once(':')
            .map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(_)) if !address.contains('/') => Ok(Monitoring(address.to_owned())),
            _ => Err(
                "name it as host:port, such as localhost:8222; it is read without TLS".to_owned(),
            ),
        }
    }
}

/// As `/varz` has it.
#[derive(Debug, Deserialize)]
struct Server {
    server_name: String,
    #[serde(default)]
    jetstream: JetStream,
}

#[derive(Debug, Default, Deserialize)]
struct JetStream {
    config: Option<Syncs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Syncs {
    /// In nanoseconds.
    sync_interval: u64,
    sync_always: bool,
}

/// Looks at the server.
///
/// # Errors
/// No answer, or another one than nats-server's.
pub(super) async fn look(
    monitoring: Option<Monitoring>,
    settings: &Settings,
) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let hold_back = settings.relay.hold_back;
    let Some(Monitoring(address)) = monitoring else {
        report.not_asked.push(unseen(hold_back));
        return Ok(report);
    };
    let body = get(&address, "/varz")
        .await
        .with_context(|| address.clone())?;
    let server: Server = serde_json::from_slice(&body)
        .with_context(|| format!("{address} does not answer as the monitoring of nats-server"))?;
    let syncs = server
        .jetstream
        .config
        .with_context(|| format!("JetStream is off at {address}"))?;
    let interval = match syncs.sync_always {
        true => Duration::ZERO,
        false => Duration::from_nanos(syncs.sync_interval),
    };
    let name = server.server_name;
    report
        .looked_at
        .push(format!("JetStream of {name}: sync_interval {interval:?}"));
    judge(&name, interval, hold_back, &mut report);
    Ok(report)
}

/// What nobody has seen, and what it means for this hold-back.
fn unseen(hold_back: Duration) -> String {
    let text =
        "JetStream's sync_interval: a client cannot see it, --nats-monitoring HOST:PORT can; ";
    let held = match hold_back.is_zero() {
        true => format!(
            "relay.hold_back (0s) covers none: nats-server writes to disk up to {} after it has acknowledged, unless it has \
             sync_interval: always, and what a power failure takes until then is lost for good. relay.hold_back = \"180s\" covers that",
            humantime::format_duration(SYNC_INTERVAL_DEFAULT)
        ),
        false => format!(
            "relay.hold_back ({}) covers one of {}",
            humantime::format_duration(hold_back),
            humantime::format_duration(covered(hold_back))
        ),
    };
    format!("{text}{held}")
}

/// A pass of syncs takes time beside the interval. In whole seconds, below one in whole milliseconds.
fn covered(hold_back: Duration) -> Duration {
    let milliseconds = u64::try_from(hold_back.as_millis()).unwrap_or(u64::MAX) / 3 * 2;
    let unit = if milliseconds < 1000 { 1 } else { 1000 };
    Duration::from_millis(milliseconds / unit * unit)
}

fn judge(name: &str, interval: Duration, hold_back: Duration, report: &mut Report) {
    if interval > covered(hold_back) {
        let needed = (interval * 3 / 2).as_secs_f64().ceil();
        let shorter = match covered(hold_back).as_secs() {
            0 => "always".to_owned(),
            seconds => format!("\"{seconds}s\""),
        };
        report.warn(
            "sync-interval",
            format!(
                "nats-server {name} syncs up to {interval:?} after it has acknowledged and later, and Postgres may forget events \
                 {} after that: a power failure of the broker may lose some",
                humantime::format_duration(hold_back)
            ),
            Some(format!(
                "set relay.hold_back = \"{needed}s\", or sync_interval: {shorter} in the jetstream block of nats-server's \
                 configuration and restart it"
            )),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hold_back_covers_is_said_in_whole_words() {
        assert!(unseen(Duration::from_secs(180)).contains("relay.hold_back (3m) covers one of 2m"));
        for (hold_back, covered) in [
            (2_000, "(2s) covers one of 1s"),
            (1_000, "(1s) covers one of 666ms"),
        ] {
            let text = unseen(Duration::from_millis(hold_back));
            assert!(text.ends_with(covered), "{text}");
        }
        let none = unseen(Duration::ZERO);
        assert!(
            none.contains("(0s) covers none") && none.contains("up to 2m"),
            "{none}"
        );
        assert!(none.contains("relay.hold_back = \"180s\""), "{none}");
    }

    #[test]
    fn an_address_is_host_and_port() {
        for good in ["localhost:8222", "http://localhost:8222/"] {
            assert_eq!(good.parse(), Ok(Monitoring("localhost:8222".to_owned())));
        }
        for bad in [
            "localhost",
            "https://localhost:8222",
            "localhost:8222/varz",
            "localhost:x",
        ] {
            assert!(bad.parse::<Monitoring>().is_err(), "{bad}");
        }
    }
}
