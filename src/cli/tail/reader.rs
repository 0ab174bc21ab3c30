//! Follows a stream.
//!
//! In: a stream and where to begin. Out: its messages as [`Entry`]s. Guarantee: each message that is stored behind the
//! beginning comes once, in the stream's order, also across a restart of the broker; what the broker itself lost and
//! stored again comes again, after a [`Read::Note`] that says so.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;

use super::entry::Entry;
use crate::cli::replay::REPLAY_SUFFIX;
use crate::nats::admin::Admin;
use crate::nats::api::StreamInfo;
use crate::nats::denial::Denial;
use crate::nats::stream::{StreamError, find};
use crate::relay::settings::NatsSettings;

/// How often the connection is looked at: an ordered consumer alone needs two missed heartbeats, half a minute, to
/// notice that the broker was restarted and forgot it.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// Pauses between two attempts to read on after the broker went away: short, since somebody is watching.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// Behind what is stored now.
    New,
    /// The stream's first message.
    All,
    /// A stream sequence.
    Sequence(u64),
    /// What was stored since this long ago.
    Ago(Duration),
    /// What was stored since then.
    Time(DateTime<Utc>),
}

/// What reading brought.
pub(crate) enum Read {
    Message(Box<Entry>),
    /// Something that a person may want to know, such as that the broker went away.
    Note(String),
}

/// Where to read on.
#[derive(Clone, Copy, Debug)]
enum Cursor {
    Time(SystemTime),
    Sequence(u64),
}

impl Cursor {
    fn deliver_policy(self) -> DeliverPolicy {
        match self {
            Self::Time(time) => DeliverPolicy::ByStartTime {
                start_time: time.into(),
            },
            // The server refuses a start sequence of zero.
            Self::Sequence(sequence) => DeliverPolicy::ByStartSequence {
                start_sequence: sequence.max(1),
            },
        }
    }
}

/// The command that makes a stream of this name.
fn maker(name: &str) -> &'static str {
    match name.ends_with(REPLAY_SUFFIX) {
        true => "walrelay replay --from …",
        false => "walrelay setup",
    }
}

/// A consumer, and the connection that it lives on.
struct Feed {
    admin: Admin,
    messages: Ordered,
}

/// Reads one stream.
pub(crate) struct Reader {
    settings: NatsSettings,
    filter: String,
    /// The stream at our start: one that was created again counts from 1.
    first_info: StreamInfo,
    /// The connection of our start, until it is read from.
    first: Option<Admin>,
    cursor: Cursor,
    feed: Option<Feed>,
    backoff: Duration,
}

impl Reader {
    /// Connects, and finds the stream and the place to begin at.
    ///
    /// # Errors
    /// Where the broker cannot be reached, or has no such stream.
    pub(crate) async fn open(
        settings: &NatsSettings,
        filter: Option<&str>,
        since: Since,
    ) -> anyhow::Result<Self> {
        let client = Admin::connect(&settings.connection).await?;
        let name = &settings.stream;
        let Some(first_info) = find(&client, name).await? else {
            bail!("there is no stream {name}: {} makes it", maker(name));
        };
        let cursor = match since {
            // As a sequence, so that what arrives while the broker is away is not missed.
            Since::New => Cursor::Sequence(first_info.state.last_seq + 1),
            Since::All => Cursor::Sequence(1),
            Since::Sequence(sequence) => Cursor::Sequence(sequence),
            Since::Time(time) => Cursor::Time(time.into()),
            Since::Ago(ago) => Cursor::Time(
                SystemTime::now()
                    .checked_sub(ago)
                    .unwrap_or(SystemTime::UNIX_EPOCH),
            ),
        };
        Ok(Self {
            settings: settings.clone(),
            filter: filter.unwrap_or_default().to_owned(),
            first_info,
            first: Some(client),
            cursor,
            feed: None,
            backoff: BACKOFF_MIN,
        })
    }

    /// Whether the stream held nothing when it was opened.
    pub(crate) fn is_empty(&self) -> bool {
        self.first_info.state.messages == 0
    }

    /// The next message, or a note. Waits as long as there is none. Cancel-safe.
    ///
    /// # Errors
    /// Where the stream was deleted and created again, so that there is no place to go on.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Read> {
        let feed = match &mut self.feed {
            Some(feed) => feed,
            None => match self.subscribe().await? {
                Ok(feed) => self.feed.insert(feed),
                Err(reason) => {
                    tokio::time::sleep(self.backoff).await;
                    self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                    return Ok(away(&reason));
                }
            },
        };
        let next = tokio::select! {
            next = feed.admin.allowed(next_message(&mut feed.messages)) => next,
            () = disconnected(&feed.admin) => Ok(None),
        };
        let message = match next {
            Ok(Some(message)) => message,
            Ok(None) => {
                self.feed = None;
                return Ok(away("the connection was lost"));
            }
            Err(error) if error.is::<Denial>() => return Err(error),
            Err(error) => {
                self.feed = None;
                return Ok(away(&error.to_string()));
            }
        };
        self.backoff = BACKOFF_MIN;
        let reply = message.reply.as_deref().unwrap_or_default();
        let headers = message.headers.as_ref();
        let entry = Entry::read(
            &message.subject,
            headers,
            &message.payload,
            reply,
            Utc::now(),
        );
        match self.cursor {
            Cursor::Sequence(expected) if entry.sequence < expected => {
                // Its own next turn: the message comes again from a new consumer, behind the note.
                self.feed = None;
                self.cursor = Cursor::Sequence(entry.sequence);
                let lost = format!(
                    "the broker lost its messages from {} to {}",
                    entry.sequence,
                    expected - 1
                );
                Ok(Read::Note(lost))
            }
            _ => {
                self.cursor = Cursor::Sequence(entry.sequence + 1);
                Ok(Read::Message(Box::new(entry)))
            }
        }
    }

    /// A consumer at the cursor, on a new connection but at the start; the inner error is one that may pass. A client that
    /// reconnects by itself does so after pauses of its own, and forgets the consumer all the same.
    async fn subscribe(&mut self) -> anyhow::Result<Result<Feed, String>> {
        let client = match self.first.take() {
            Some(client) => client,
            None => match connect_again(&self.settings, &self.first_info.created).await? {
                Ok(client) => client,
                Err(reason) => return Ok(Err(reason)),
            },
        };
        let config = OrderedConfig {
            deliver_policy: self.cursor.deliver_policy(),
            filter_subject: self.filter.clone(),
            ..OrderedConfig::default()
        };
        let jetstream = client.jetstream();
        let consume = async {
            let stream = jetstream.get_stream_no_info(&self.settings.stream).await?;
            Ok(stream.create_consumer(config).await?.messages().await?)
        };
        match client.allowed(consume).await {
            Ok(messages) => Ok(Ok(Feed {
                admin: client,
                messages,
            })),
            Err(error) => passing(error),
        }
    }
}

/// A connection to where the stream is still the one that was `created` then; the inner error is one that may pass.
async fn connect_again(
    settings: &NatsSettings,
    created: &str,
) -> anyhow::Result<Result<Admin, String>> {
    let client = match Admin::connect(&settings.connection).await {
        Ok(client) => client,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let name = &settings.stream;
    match find(&client, name).await {
        Ok(Some(info)) if info.created == created => Ok(Ok(client)),
        Ok(Some(_)) => {
            bail!("stream {name} was deleted and created again; start `walrelay tail` again")
        }
        Ok(None) => Ok(Err(format!("there is no stream {name}"))),
        Err(StreamError::Denied(denial)) => Err(denial.into()),
        Err(error) => Ok(Err(error.to_string())),
    }
}

async fn next_message(messages: &mut Ordered) -> anyhow::Result<Option<jetstream::Message>> {
    Ok(messages.next().await.transpose()?)
}

/// What waiting does not mend ends the command.
fn passing<T>(error: anyhow::Error) -> anyhow::Result<Result<T, String>> {
    match error.is::<Denial>() {
        true => Err(error),
        false => Ok(Err(error.to_string())),
    }
}

fn away(reason: &str) -> Read {
    Read::Note(format!("the broker is away ({reason}); waiting for it"))
}

/// Returns when the client's connection is not the one that it began with.
async fn disconnected(admin: &Admin) {
    let client = admin.client();
    let mut watch = tokio::time::interval(WATCH_INTERVAL);
    while client.connection_state() == State::Connected
        && client.statistics().connects.load(Ordering::Relaxed) == 1
    {
        watch.tick().await;
    }
}
