//! The flags of the configuration's main keys, in groups: a command has those that matter to it.
//!
//! In: the command line. Out: [`crate::config::Flags`]. Guarantee: a flag sets exactly the key that
//! its entry in [`crate::config::keys::KEYS`] names it for.

use clap::Args;

use crate::config::Key;

/// Heading of these flags in `--help`.
const HEADING: &str = "Configuration (over environment and file)";

/// A group of flags that set keys of the configuration.
pub(super) trait KeyFlags: Args {
    /// The keys that were given.
    fn given(&self) -> Vec<(Key, String)>;
}

// Without doc comments on the structs: clap would show them as the command's description. Each flag is global, so that
// a command that has commands of its own takes it before and behind their names.

#[derive(Debug, Args)]
#[command(next_help_heading = HEADING)]
pub(super) struct LaneFlags {
    /// The relay's name: slot and publication take it where they are not given (my-app gives my_app)
    #[arg(long, global = true, value_name = "NAME")]
    name: Option<String>,

    /// Postgres, as libpq takes it; everybody on this machine sees a password here: WALRELAY_POSTGRES_PASSWORD or a
    /// password file keep it
    #[arg(long, global = true, value_name = "URL")]
    database_url: Option<String>,

    /// The logical replication slot
    #[arg(long, global = true, value_name = "SLOT")]
    slot: Option<String>,

    /// The publication
    #[arg(long, global = true, value_name = "PUBLICATION")]
    publication: Option<String>,

    /// One of the shares of relay.shares, from 0 on
    #[arg(long, global = true, value_name = "K")]
    share: Option<String>,

    /// NATS servers, separated by commas; everybody on this machine sees a password or token here: nats.credentials or
    /// WALRELAY_NATS_PASSWORD keep it
    #[arg(long, global = true, value_name = "URL")]
    nats_url: Option<String>,
}

impl KeyFlags for LaneFlags {
    fn given(&self) -> Vec<(Key, String)> {
        given([
            (Key::Name, &self.name),
            (Key::PostgresUrl, &self.database_url),
            (Key::PostgresSlot, &self.slot),
            (Key::PostgresPublication, &self.publication),
            (Key::RelayShare, &self.share),
            (Key::NatsUrl, &self.nats_url),
        ])
    }
}

#[derive(Debug, Args)]
pub(super) struct StreamFlags {
    #[command(flatten)]
    lane: LaneFlags,

    /// The JetStream stream
    #[arg(long, global = true, value_name = "STREAM", help_heading = HEADING)]
    stream: Option<String>,
}

impl KeyFlags for StreamFlags {
    fn given(&self) -> Vec<(Key, String)> {
        let mut all = self.lane.given();
        all.extend(given([(Key::NatsStream, &self.stream)]));
        all
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = HEADING)]
pub(super) struct SetupFlags {
    #[command(flatten)]
    stream: StreamFlags,

    /// The outbox table, as in SQL
    #[arg(long, global = true, value_name = "TABLE")]
    table: Option<String>,

    /// The subject of an event: tokens and {event_type}, {aggregate_id}, {event_version}
    #[arg(long, global = true, value_name = "TEMPLATE")]
    subject: Option<String>,
}

impl KeyFlags for SetupFlags {
    fn given(&self) -> Vec<(Key, String)> {
        let mut all = self.stream.given();
        all.extend(given([
            (Key::PostgresTable, &self.table),
            (Key::NatsSubject, &self.subject),
        ]));
        all
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = HEADING)]
pub(super) struct AllFlags {
    #[command(flatten)]
    setup: SetupFlags,

    /// How old an acknowledged event must be before Postgres may forget its WAL; 0s confirms at the ack
    #[arg(long, global = true, value_name = "DURATION")]
    hold_back: Option<String>,

    /// Where metrics, health and the status page are served; "" turns them off
    #[arg(long, global = true, value_name = "ADDRESS")]
    http_listen: Option<String>,
}

impl KeyFlags for AllFlags {
    fn given(&self) -> Vec<(Key, String)> {
        let mut all = self.setup.given();
        all.extend(given([
            (Key::RelayHoldBack, &self.hold_back),
            (Key::HttpListen, &self.http_listen),
        ]));
        all
    }
}

fn given<const N: usize>(flags: [(Key, &Option<String>); N]) -> Vec<(Key, String)> {
    flags
        .into_iter()
        .filter_map(|(key, text)| Some((key, text.clone()?)))
        .collect()
}

// A command's own arguments with a group of configuration flags.
#[derive(Debug, Args)]
pub(super) struct Configured<A: Args, K: KeyFlags> {
    #[command(flatten)]
    pub(super) args: A,

    #[command(flatten)]
    pub(super) keys: K,
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command};

    use super::*;
    use crate::config::keys::KEYS;

    #[test]
    fn every_key_with_a_flag_is_among_the_flags_and_the_other_way_round() {
        let command = AllFlags::augment_args(Command::new("x"));
        let flags: Vec<String> = command
            .get_arguments()
            .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
            .collect();
        // The one is there without a configuration too, the other only where it is the purpose.
        let elsewhere = ["--log-level", "--shares"];
        let known = KEYS.iter().filter_map(|entry| entry.flag);
        let known: Vec<&str> = known.filter(|flag| !elsewhere.contains(flag)).collect();
        assert!(
            flags.iter().all(|flag| known.contains(&flag.as_str())),
            "{flags:?}"
        );
        assert_eq!(flags.len(), known.len());
    }
}
