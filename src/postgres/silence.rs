//! A server that says nothing: how long that is endured, while a session is made and while an answer is awaited.
//!
//! In: attempts at a host, or the future of an answer. Out: what came, or that nothing does. Guarantees: every wait
//! for Postgres that goes through here ends; a statement may still take as long as it likes, since silence alone is
//! no fault: it is one where a second session finds the server process idle or gone, or cannot be made at all.
//!
//! Why a second session: a connection that a firewall has forgotten, or whose other end is frozen, looks like one on
//! which a long statement runs. No time-out tells them apart.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_postgres::SimpleQueryMessage;

use crate::postgres::client::{self, SqlError};
use crate::postgres::conninfo::{Conninfo, HostPort};

/// So long an attempt to connect may be quiet before others are made beside it, and so long each of those may take.
/// What a dead network has swallowed is not sent again, so the return of the network is seen by a new attempt only.
const FRESH_ATTEMPT: Duration = Duration::from_secs(1);
/// Silence before the first look at the server process; each further one comes after twice the time.
const LOOK_FIRST: Duration = Duration::from_secs(1);
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(30);
/// A statement that is at work for longer is told, so that nobody wonders what is waited for.
const LONG_WORK: Duration = Duration::from_secs(5);
/// For a look, connecting included.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// What the process has sent last may be on its way while the look finds it idle.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Makes a session with the first of the hosts that serves, each within the connect timeout.
///
/// # Errors
/// Of the first host whose error does not give way to the next, else the last host's.
pub(crate) async fn first_host<T, E: std::fmt::Display, A: Future<Output = Result<T, E>>>(
    conninfo: &Conninfo,
    attempt: impl Fn(HostPort) -> A,
    gives_way: impl Fn(&E) -> bool,
    timed_out: impl Fn(Duration) -> E,
) -> Result<T, E> {
    let limit = conninfo.connect_timeout;
    let (last, others) = conninfo
        .hosts
        .split_last()
        .expect("a connection string names at least one host");
    let within_limit = async |host: &HostPort| {
        let attempts = patient_and_fresh(|| attempt(host.clone()));
        timeout(limit, attempts)
            .await
            .unwrap_or_else(|_| Err(timed_out(limit)))
    };
    for host in others {
        match within_limit(host).await {
            Err(error) if gives_way(&error) => {
                tracing::debug!(%host, %error, "cannot use this host, trying the next");
            }
            made => return made,
        }
    }
    within_limit(last).await
}

/// The first attempt gets all the time there is, for a slow server; beside it a fresh one is made every second.
async fn patient_and_fresh<T, E, A: Future<Output = Result<T, E>>>(
    attempt: impl Fn() -> A,
) -> Result<T, E> {
    let fresh = async {
        let mut seconds = interval_at(Instant::now() + FRESH_ATTEMPT, FRESH_ATTEMPT);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            seconds.tick().await;
            // Its error tells nothing: a server may refuse a second session only.
            if let Ok(Ok(made)) = timeout(FRESH_ATTEMPT, attempt()).await {
                return made;
            }
        }
    };
    tokio::select! {
        made = attempt() => made,
        made = fresh => Ok(made),
    }
}

/// Waits for an answer of the server process `pid`; `None` where it will not come.
pub(crate) async fn answer<T>(
    conninfo: &Conninfo,
    pid: i32,
    answer: impl Future<Output = T>,
) -> Option<T> {
    tokio::pin!(answer);
    let begin = Instant::now();
    let mut pause = LOOK_FIRST;
    let mut told = false;
    loop {
        if let Ok(answer) = timeout(pause, &mut answer).await {
            return Some(answer);
        }
        let work = tokio::select! {
            answer = &mut answer => return Some(answer),
            look = timeout(LOOK_LIMIT, work(conninfo, pid)) => look.ok().and_then(Result::ok).flatten(),
        };
        let Some(work) = work else {
            return timeout(LAST_WORDS, &mut answer).await.ok();
        };
        if !told && begin.elapsed() >= LONG_WORK {
            told = true;
            let seconds = begin.elapsed().as_secs();
            tracing::info!("Postgres has not answered for {seconds} s: its process {pid} {work}");
        }
        pause = (pause * 2).min(LOOK_PAUSE_MAX);
    }
}

/// What the process does where it works on a statement, and not on sending what nobody takes.
async fn work(conninfo: &Conninfo, pid: i32) -> Result<Option<&'static str>, SqlError> {
    // As the login role: another one may not see what the role's own sessions do.
    let query = "SET ROLE NONE; SELECT wait_event_type FROM pg_catalog.pg_stat_activity \
                 WHERE state = 'active' AND wait_event_type IS DISTINCT FROM 'Client' AND pid = ";
    let session = client::session(conninfo).await?;
    let answer = session.simple_query(&format!("{query}{pid}")).await?;
    Ok(answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) if row.get(0) == Some("Lock") => {
            Some("waits for a lock that another transaction has")
        }
        SimpleQueryMessage::Row(_) => Some("works on it"),
        _ => None,
    }))
}
