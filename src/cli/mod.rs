//! The command line: one file a command.
//!
//! In: arguments. Out: a command with its [`Settings`](crate::relay::settings::Settings), and how it ended as
//! an [`exit::Exit`]. `walrelay --help` lists what there is.

pub mod adopt;
mod all_shares;
mod asyncapi;
pub mod backfill;
pub mod bench;
mod command_line;
pub mod completions;
pub mod config;
mod consent;
pub mod dead_letters;
mod deletable;
pub mod demo;
pub mod doctor;
mod elsewhere;
pub mod erase;
pub mod exit;
mod exposed;
mod flags;
mod foreseen;
mod given;
mod http_get;
mod lane_state;
mod lanes;
pub mod man;
pub mod move_lane;
mod own_lane;
pub mod position;
mod progress;
pub mod prune;
mod repair;
pub mod replay;
pub mod reshard;
pub mod run;
pub mod setup;
mod signals;
pub mod status;
mod stderr;
pub mod stdout;
pub mod tail;
pub mod teardown;
mod values;
pub mod verify;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand};

use crate::config::Key;
use crate::environment::Environment;
use crate::ops::logs::{LogError, LogFilter, LogFormat};
use crate::relay::taken_over::TakenOver;
use exit::Exit;
use flags::{AllFlags, Configured, KeyFlags as _, LaneFlags, SetupFlags, StreamFlags};
use given::Given;

const EXAMPLES: &str = "\
Examples:
  walrelay demo                                   see it work, with servers of its own
  walrelay setup                                  make table, publication, slot and stream
  walrelay run                                    relay what commits
  walrelay config show                            what it would run with, and why
  walrelay tail --since 10m                       what the stream holds

Configuration: flags over environment (WALRELAY_<SECTION>_<KEY>, such as WALRELAY_RELAY_HOLD_BACK) over file \
(--config, else ./walrelay.toml, else /etc/walrelay/walrelay.toml) over defaults. DATABASE_URL, NATS_URL and \
libpq's PG* variables serve where nothing else is set; WALRELAY_POSTGRES_URL_FILE and its like name files that \
hold secrets.

Exit code 0: done, or stopped by a signal where that is its end. 1: it failed, or a check found something. 2: wrong usage or \
configuration. 3: a check could not be made. 4: halted until a person has looked. A supervisor must not restart \
on 2 and 4.";

/// The relay of the transactional outbox: committed Postgres rows into a NATS JetStream stream,
/// exactly once and in commit order
#[derive(Parser)]
#[command(name = "walrelay", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalArgs,

    #[command(subcommand)]
    command: Command,
}

/// Heading of the flags that every command has.
const GLOBAL_HEADING: &str = "Everywhere";

#[derive(clap::Args)]
struct GlobalArgs {
    /// The configuration file [default: ./walrelay.toml, else /etc/walrelay/walrelay.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL_HEADING)]
    config: Option<PathBuf>,

    /// The log on standard error: human or json [default: human]
    #[arg(long, global = true, value_name = "FORMAT", hide_possible_values = true, help_heading = GLOBAL_HEADING)]
    log_format: Option<LogFormat>,

    /// error, warn, info, debug, trace, or directives such as walrelay::nats=trace [default: info]
    #[arg(long, global = true, value_name = "LEVEL", conflicts_with = "verbose", help_heading = GLOBAL_HEADING)]
    #[arg(value_parser = parse_level)]
    log_level: Option<String>,

    /// Log more: -v is debug, -vv is trace
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = GLOBAL_HEADING)]
    verbose: u8,
}

fn parse_level(text: &str) -> Result<String, LogError> {
    text.parse::<LogFilter>().map(|_| text.to_owned())
}

#[derive(Subcommand)]
enum Command {
    Run(Configured<run::Args, AllFlags>),
    Setup(Configured<setup::Args, SetupFlags>),
    Teardown(Configured<teardown::Args, SetupFlags>),
    Status(Configured<status::Args, AllFlags>),
    Position(Configured<position::Args, StreamFlags>),
    Tail(Configured<tail::Args, StreamFlags>),
    Verify(Configured<verify::Args, AllFlags>),
    Backfill(Configured<backfill::Args, AllFlags>),
    Replay(Configured<replay::Args, LaneFlags>),
    Adopt(Configured<adopt::Args, AllFlags>),
    Move(Configured<move_lane::Args, AllFlags>),
    DeadLetters(Configured<dead_letters::Args, AllFlags>),
    Prune(Configured<prune::Args, AllFlags>),
    Erase(Configured<erase::Args, AllFlags>),
    Reshard(Configured<reshard::Args, AllFlags>),
    Doctor(Configured<doctor::Args, AllFlags>),
    Config(config::Args),
    Demo(demo::Args),
    Bench(Configured<bench::Args, AllFlags>),
    Completions(completions::Args),
    Man(man::Args),
}

impl Cli {
    /// Reads the arguments, and ends the process where that is all. `help --help` is `help`: clap takes what follows for a
    /// command's name.
    pub fn read() -> Self {
        let mut arguments: Vec<OsString> = std::env::args_os().collect();
        if arguments.get(1).is_some_and(|first| first == "help") {
            arguments.retain(|argument| argument != "--help" && argument != "-h");
        }
        Self::parse_from(arguments)
    }

    /// Starts the log, loads the configuration and runs the command.
    ///
    /// # Errors
    /// Whatever ends the command; [`exit::report`] prints it.
    pub fn execute(self) -> Result<Exit, anyhow::Error> {
        let given = Given::start(self.global, Environment::of_process())?;
        let load = |values| given.clone().with(values).load_to_connect();
        match self.command {
            Command::Run(Configured { args, keys }) => {
                let given = given.with(keys.given());
                let loaded = given.load_to_connect()?;
                block_on(run::execute(args, given, loaded))
            }
            Command::Setup(Configured { args, keys }) => {
                let loaded = load(keys.given())?;
                block_on(setup::execute_all(args, &loaded))
            }
            Command::Teardown(Configured { args, keys }) => {
                let loaded = load(keys.given())?;
                block_on(teardown::execute_all(args, &loaded))
            }
            Command::Status(Configured { args, keys }) => {
                let loaded = load(keys.given())?;
                if let Some(pause) = args.watch {
                    return block_on(status::watch::watch(&args, pause, &loaded));
                }
                block_on(lanes::each(&loaded, async |lane| {
                    status::execute(args.clone(), lane, &loaded.http).await
                }))
            }
            Command::Doctor(Configured { args, keys }) => {
                let loaded = load(keys.given())?;
                block_on(doctor::execute_all(&args, &loaded))
            }
            Command::Position(Configured { args, keys }) => {
                let loaded = load(keys.given())?;
                block_on(lanes::each(&loaded, async |lane| {
                    position::execute(args.clone(), lane).await
                }))
            }
            Command::Tail(Configured { args, keys }) => {
                let loaded = given.with(keys.given()).load_with_log()?;
                block_on(tail::execute(args, loaded.lane()?))
            }
            Command::Backfill(Configured { args, keys }) => {
                let loaded = load(keys.given())?;
                block_on(lanes::each(&loaded, async |lane| {
                    backfill::execute(args.clone(), lane).await
                }))
            }
            Command::Replay(Configured { args, keys }) => {
                block_on(replay::execute(args, load(keys.given())?.lane()?))
            }
            Command::Verify(Configured { args, keys }) => {
                let loaded = load(keys.given())?;
                block_on(lanes::each(&loaded, async |lane| {
                    repair::execute(args.clone(), lane).await
                }))
            }
            Command::Adopt(Configured { args, keys }) => {
                let loaded = load(keys.given())?;
                block_on(adopt::execute(args, loaded.lane()?))
            }
            Command::Move(Configured { args, keys }) => {
                let loaded = load(keys.given())?;
                block_on(move_lane::execute(args, loaded.lane()?))
            }
            Command::DeadLetters(Configured { args, keys }) => {
                let loaded = load(keys.given())?;
                // A lane that is no more, as if there were still so many shares.
                let load = |lane: &TakenOver| {
                    let mut values = keys.given();
                    let count = lane
                        .part
                        .map_or(1, |share| (share + 1).next_power_of_two().max(2));
                    values.push((Key::RelayShares, count.to_string()));
                    match lane.part {
                        Some(share) => values.push((Key::RelayShare, share.to_string())),
                        None => values.push((Key::NatsStream, lane.stream.clone())),
                    }
                    let loaded = given.clone().with(values).load()?;
                    let mut settings = loaded.lane()?.clone();
                    settings.nats.stream.clone_from(&lane.stream);
                    Ok(settings)
                };
                block_on(dead_letters::execute(args, loaded.lane()?, load))
            }
            Command::Prune(Configured { args, keys }) => {
                block_on(prune::execute(args, &load(keys.given())?.lanes))
            }
            Command::Erase(Configured { args, keys }) => {
                block_on(erase::execute(args, &load(keys.given())?.lanes))
            }
            Command::Reshard(Configured { args, keys }) => {
                let load = |count: u32, further: Vec<(Key, String)>| {
                    let mut values = keys.given();
                    values.extend(further);
                    values.push((Key::RelayShares, count.to_string()));
                    given.clone().with(values).load()
                };
                block_on(reshard::execute(args, load))
            }
            Command::Config(args) => {
                let given = given.with(args.given());
                config::execute(&args, &given.load_with_log()?)
            }
            Command::Demo(args) => block_on(demo::execute(args)),
            Command::Bench(Configured { args, keys }) => {
                block_on(bench::execute(args, load(keys.given())?.lane()?))
            }
            Command::Completions(args) => completions::execute(&args),
            Command::Man(args) => man::execute(&args),
        }
    }
}

/// Runs a command on this thread: the relay is one loop, and a second thread would only add
/// hand-overs to it.
fn block_on(
    command: impl Future<Output = Result<Exit, anyhow::Error>>,
) -> Result<Exit, anyhow::Error> {
    use anyhow::Context as _;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .context("the runtime cannot start")?
        .block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Broken by the terminal's width, columns would not be under each other any more.
    #[test]
    fn examples_fit_into_a_line() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string);
            for line in help.iter().flat_map(|help| help.lines()) {
                assert!(
                    line.chars().count() <= 100,
                    "{}: {line}",
                    command.get_name()
                );
            }
        }
    }

    /// As JSON they are no list of one command's: each is by itself, so that it comes as soon as it is there.
    #[test]
    fn commands_of_each_lane_say_that_there_is_an_object_for_each_share() {
        for name in ["verify", "position", "doctor", "status", "backfill"] {
            let mut command = Cli::command();
            let command = command.find_subcommand_mut(name).expect(name);
            let help = command.render_long_help().to_string();
            let (_, json) = help.split_once("--json").expect(name);
            let (json, _) = json.split_once("\n\n").expect(name);
            assert!(json.contains("each share"), "{name}: {json}");
        }
    }

    #[test]
    fn flags_stand_before_and_behind_the_name_of_a_commands_command() {
        for line in [
            "walrelay config --slot s show",
            "walrelay config show --slot s",
            "walrelay dead-letters --slot s list",
            "walrelay dead-letters list --slot s",
        ] {
            let parsed = Cli::try_parse_from(line.split(' ')).expect(line);
            let given = match &parsed.command {
                Command::Config(args) => args.given(),
                Command::DeadLetters(Configured { keys, .. }) => keys.given(),
                _ => unreachable!(),
            };
            assert_eq!(given, [(Key::PostgresSlot, "s".to_owned())], "{line}");
        }
    }

    #[test]
    fn every_command_says_what_it_does_and_gives_examples() {
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name} has no description");
            let after = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                after.contains("walrelay ") && after.contains(name),
                "{name} has no examples"
            );
        }
    }
}
