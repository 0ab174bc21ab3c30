//! `walrelay tail`: the stream's messages as they arrive.
//!
//! In: a stream and where to begin. Out: a line a message, columns or JSON, until Ctrl-C. Guarantee: every message
//! that is stored behind the beginning is shown once, in the stream's order, also across a restart of the broker; what
//! the broker itself lost and stored again is shown again, after a note that says so.

use std::io::{self, IsTerminal as _, Write as _};
use std::num::NonZeroU64;

use super::exit::Exit;
use super::signals::{self, Hangup};
use crate::cli::{stderr, stdout};
use crate::pipeline::position::{KIND_DISCARDED, KIND_RETRIED};
use crate::relay::settings::{NatsSettings, Settings};
use entry::{Class, Entry, KIND_EVENT};
use filter::Filter;
use reader::{Read, Reader, Since};

pub(crate) mod entry;
mod filter;
pub(crate) mod reader;

const EXAMPLES: &str = "\
Examples:
  walrelay tail                                   what is published from now on
  walrelay tail --since 10m                       the last ten minutes, and on
  walrelay tail --since all --count 5 --json      the stream's first five messages, as JSON
  walrelay tail --kind dead-letter --since all    the dead letters, open or not
  walrelay tail --event-type 'lesson.*'           events whose type begins so
  walrelay tail --json | jq -r .event_type        one field of each

LATENCY is from the event's occurred_at to this terminal, TO STREAM from occurred_at to the
broker; both compare the clocks of different machines. On a terminal dead letters are red, what was
published again is yellow, and what is no event is dim, unless NO_COLOR is set.

Exit code 0: stopped by Ctrl-C, --count reached, or the reader of the pipe went away. 1: the
broker cannot be reached at the start, or has no such stream.";

/// Show the stream's messages as they arrive.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where to begin: `new`, a duration back from now (`10m`, `2h`), `all`, or `seq:N`.
    #[arg(long, value_name = "WHERE", default_value = "new", value_parser = parse_since)]
    since: Since,

    /// Stop after this many messages that are shown.
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU64>,

    /// Only messages on subjects that match, with NATS' wildcards [default: events and dead letters].
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,

    #[command(flatten)]
    filter: Filter,

    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

fn parse_since(text: &str) -> Result<Since, String> {
    match (text, text.strip_prefix("seq:")) {
        ("new", _) => Ok(Since::New),
        ("all", _) => Ok(Since::All),
        (_, Some(sequence)) => sequence
            .parse()
            .map(Since::Sequence)
            .map_err(|_| format!("`{sequence}` is not a stream sequence")),
        _ => humantime::parse_duration(text)
            .map(Since::Ago)
            .map_err(|error| {
                format!("{error}; give `new`, `all`, `seq:N` or a duration such as `10m`")
            }),
    }
}

/// Follows the stream until a signal, `--count` or a closed pipe.
///
/// # Errors
/// Where the broker cannot be reached at the start, or has no such stream.
pub async fn execute(args: Args, settings: &Settings) -> Result<Exit, anyhow::Error> {
    let mut screen = Screen::new(&args);
    let mut shutdown = signals::listen(Hangup::Stops)?;
    tokio::select! {
        ended = follow(&args, &settings.nats, &mut screen) => ended.map(|()| Exit::Done),
        () = stdout::reader_gone() => Ok(Exit::Done),
        () = shutdown.wait() => Ok(Exit::Done),
    }
}

async fn follow(args: &Args, settings: &NatsSettings, screen: &mut Screen) -> anyhow::Result<()> {
    let mut reader = Reader::open(settings, args.subject.as_deref(), args.since).await?;
    // A closed pipe means that the reader has enough.
    if screen.heading().is_err() {
        return Ok(());
    }
    while !screen.has_enough() {
        match reader.next().await? {
            Read::Note(note) => screen.note(&note),
            Read::Message(entry) if args.subject.is_none() && entry.is_control() => {}
            Read::Message(entry) if !args.filter.takes(&entry) => {}
            Read::Message(entry) => {
                if screen.show(&entry).is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Where the lines go.
struct Screen {
    json: bool,
    colour: bool,
    left: Option<u64>,
    last_note: String,
}

impl Screen {
    fn new(args: &Args) -> Self {
        let colour = io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            json: args.json,
            colour,
            left: args.count.map(NonZeroU64::get),
            last_note: String::new(),
        }
    }

    fn heading(&self) -> io::Result<()> {
        match (self.json, self.colour) {
            (true, _) => Ok(()),
            (false, true) => writeln!(io::stdout(), "\x1b[2m{}\x1b[0m", entry::heading()),
            (false, false) => writeln!(io::stdout(), "{}", entry::heading()),
        }
    }

    fn show(&mut self, entry: &Entry) -> io::Result<()> {
        self.last_note.clear();
        self.left = self.left.map(|left| left.saturating_sub(1));
        let line = if self.json {
            entry.to_json()
        } else {
            entry.to_line()
        };
        let mut stdout = io::stdout().lock();
        match colour_of(entry).filter(|_| self.colour && !self.json) {
            Some(colour) => writeln!(stdout, "\x1b[{colour}m{line}\x1b[0m"),
            None => writeln!(stdout, "{line}"),
        }?;
        stdout.flush()
    }

    fn has_enough(&self) -> bool {
        self.left == Some(0)
    }

    /// To standard error, and the same text once only while the broker stays away.
    fn note(&mut self, text: &str) {
        if self.last_note != text {
            stderr::line(format_args!("walrelay tail: {text}"));
            self.last_note = text.to_owned();
        }
    }
}

/// The colour of what is not simply an event (ECMA-48, SGR).
fn colour_of(entry: &Entry) -> Option<&'static str> {
    match (entry.class, entry.kind_name()) {
        (Class::DeadLetter, KIND_RETRIED | KIND_DISCARDED) | (Class::Other, _) => Some("2"),
        (Class::DeadLetter, _) => Some("31"),
        (Class::Event, KIND_EVENT) => None,
        (Class::Event, _) => Some("33"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_not_simply_an_event_has_a_colour() {
        let colour = |subject: &str, kind: Option<&str>| {
            let mut headers = async_nats::HeaderMap::new();
            if let Some(kind) = kind {
                headers.insert("Walrelay-Kind", kind);
            }
            colour_of(&Entry::read(
                subject,
                Some(&headers),
                b"{}",
                "",
                chrono::Utc::now(),
            ))
        };
        assert_eq!(colour("outbox.x", Some("replay")), Some("33"));
        assert_eq!(colour("outbox.x", None), Some("2"));
        assert_eq!(colour("walrelay.dead.S.s", Some("dead-letter")), Some("31"));
        assert_eq!(colour("walrelay.dead.S.s", Some("retried")), Some("2"));
        assert_eq!(colour_of(&event()), None);
    }

    fn event() -> Entry {
        use crate::event::teaching::UserEraseRequested;
        let event = UserEraseRequested::new(uuid::Uuid::now_v7());
        let body = crate::event::EventEnvelope::from_event(&event).unwrap();
        let body = body.to_json().unwrap();
        Entry::read("outbox.x", None, body.as_bytes(), "", chrono::Utc::now())
    }

    #[test]
    fn since_is_read_in_all_its_forms() {
        assert_eq!(parse_since("new"), Ok(Since::New));
        assert_eq!(parse_since("all"), Ok(Since::All));
        assert_eq!(parse_since("seq:17"), Ok(Since::Sequence(17)));
        assert_eq!(
            parse_since("1h 30m"),
            Ok(Since::Ago(Duration::from_secs(5_400)))
        );
        for wrong in ["", "seq:", "seq:-1", "yesterday"] {
            assert!(parse_since(wrong).is_err(), "{wrong}");
        }
    }
}
