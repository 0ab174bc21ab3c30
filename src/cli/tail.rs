//! `walrelay tail`: the stream's messages as they arrive.
//!
//! In: a stream and where to begin. Out: a line a message, columns or JSON, until Ctrl-C. Guarantee: every message
//! that is stored behind the beginning is shown once, in the stream's order, also across a restart of the broker; what
//! the broker itself lost and stored again is shown again, after a note that says so.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, bail};

use super::exit::Exit;
use super::signals::{self, Hangup};
use super::values;
use crate::bulk::range::{Bound, Held, History};
use crate::cli::{stderr, stdout};
use crate::config::quantity::parse_duration;
use crate::nats::admin::Admin;
use crate::nats::stream;
use crate::pipeline::position::{KIND_DISCARDED, KIND_RETRIED};
use crate::relay::lane_client::LaneClient;
use crate::relay::settings::Settings;
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
  walrelay tail --since 2026-11-23T04:40:00Z      from that time on; or from an LSN or a position
  walrelay tail --since all --count 5 --json      the stream's first five messages, as JSON
  walrelay tail --kind dead-letter --since all    the dead letters, open or not
  walrelay tail --event-type 'lesson.*'           events whose type begins so
  walrelay tail --json | jq -r .event_type        one field of each

LATENCY is from the event's occurred_at to this terminal, TO STREAM from occurred_at to the
broker; both compare the clocks of different machines. On a terminal dead letters are red, what was
published again is yellow, and what is no event is dim, unless NO_COLOR is set.

Exit code 0: stopped by Ctrl-C, --count reached, or the reader of the pipe went away. 1: the
broker cannot be reached at the start, or has no such stream. 2: a value that cannot be.";

/// Show the stream's messages as they arrive.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where to begin: `new`, a duration back from now (`10m`, `2h`), `all`, `seq:N`, or as replay --from: a time in RFC 3339, the LSN
    /// of a commit, or a position.
    #[arg(long, value_name = "WHERE", default_value = "new", value_parser = parse_since)]
    since: Beginning,

    /// Stop after this many messages that are shown.
    #[arg(long, value_name = "N", value_parser = values::count::<u64>(1..=u64::MAX))]
    count: Option<u64>,

    /// Only messages on subjects that match, with NATS' wildcards [default: events and dead letters].
    #[arg(long, value_name = "SUBJECT", value_parser = values::subject_filter)]
    subject: Option<String>,

    #[command(flatten)]
    filter: Filter,

    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Where to begin, as it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beginning {
    /// The stream's reader knows it.
    Known(Since),
    /// Somewhere in the lane's history.
    At(Bound),
}

fn parse_since(text: &str) -> Result<Beginning, String> {
    let known = |since| Ok(Beginning::Known(since));
    match (text, text.strip_prefix("seq:")) {
        ("new", _) => known(Since::New),
        ("all", _) => known(Since::All),
        (_, Some(sequence)) => match sequence.parse() {
            Ok(sequence) => known(Since::Sequence(sequence)),
            Err(_) => Err("give seq:N with a sequence of the stream, such as seq:17".to_owned()),
        },
        _ => match (parse_duration(text), text.parse()) {
            (Some(ago), _) => known(Since::Ago(ago)),
            (_, Ok(Bound::Time(time))) => known(Since::Time(time)),
            (_, Ok(place)) => Ok(Beginning::At(place)),
            (_, Err(error)) => Err(format!(
                "give `new`, `all`, `seq:N` or a duration such as `10m`; or {}",
                error.to_string().trim_start_matches("give ")
            )),
        },
    }
}

impl Beginning {
    /// As the stream's reader knows it.
    ///
    /// # Errors
    /// The stream no longer has the place, or cannot be read.
    async fn find(self, settings: &Settings) -> anyhow::Result<Since> {
        let place = match self {
            Beginning::Known(since) => return Ok(since),
            Beginning::At(place) => place,
        };
        let (name, slot) = (&settings.nats.stream, &settings.postgres.slot);
        let nats = Admin::connect(&settings.nats.connection).await?;
        let info = (stream::find(&nats, name).await?)
            .with_context(|| format!("there is no stream {name}: walrelay setup makes it"))?;
        let lane = LaneClient::new(&nats, name, slot)?;
        let record = lane.record().await?.record;
        let history = History::new(&nats, &lane, slot, &info, record.as_ref());
        let oldest = match history.find(place, None).await? {
            Held::Between { first, .. } => return Ok(Since::Sequence(first)),
            Held::Before { oldest } => Some(oldest),
            Held::Gone { oldest } => oldest,
        };
        bail!(
            "stream {name} no longer has what is at {place}: {}",
            match oldest {
                Some(oldest) =>
                    format!("the oldest place that it has is --since {}", oldest.bound()),
                None => "--since all shows what it has".to_owned(),
            }
        )
    }
}

/// Follows the stream until a signal, `--count` or a closed pipe.
///
/// # Errors
/// Where the broker cannot be reached at the start, or has no such stream.
pub async fn execute(args: Args, settings: &Settings) -> Result<Exit, anyhow::Error> {
    args.filter.check(settings)?;
    let mut screen = Screen::new(&args);
    let mut shutdown = signals::listen(Hangup::Stops)?;
    tokio::select! {
        ended = follow(&args, settings, &mut screen) => ended.map(|()| Exit::Done),
        () = stdout::reader_gone() => Ok(Exit::Done),
        () = shutdown.wait() => Ok(Exit::Done),
    }
}

async fn follow(args: &Args, settings: &Settings, screen: &mut Screen) -> anyhow::Result<()> {
    let since = args.since.find(settings).await?;
    let mut reader = Reader::open(&settings.nats, args.subject.as_deref(), since).await?;
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
            left: args.count,
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
        let bound = |text: &str| text.parse::<Bound>().expect("a bound");
        for (text, since) in [
            ("new", Beginning::Known(Since::New)),
            ("all", Beginning::Known(Since::All)),
            ("seq:17", Beginning::Known(Since::Sequence(17))),
            (
                "1h 30m",
                Beginning::Known(Since::Ago(Duration::from_secs(5_400))),
            ),
            ("1/A", Beginning::At(bound("1/A"))),
            ("1/A:3", Beginning::At(bound("1/A:3"))),
        ] {
            assert_eq!(parse_since(text), Ok(since), "{text}");
        }
        let at = parse_since("2026-11-23T05:40:00+01:00");
        let time = "2026-11-23T04:40:00Z".parse().expect("a time");
        assert_eq!(at, Ok(Beginning::Known(Since::Time(time))));
        for wrong in ["", "seq:", "seq:-1", "yesterday", "2026-11-23"] {
            assert!(parse_since(wrong).is_err(), "{wrong}");
        }
    }
}
