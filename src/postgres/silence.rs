//! A server that says nothing while an answer is awaited: how long that is endured.
//!
//! In: the future of an answer. Out: what came, or that nothing does. Guarantees: every wait for Postgres that goes
//! through here ends; a statement may still take as long as it likes, since silence alone is no fault: it is one where a
//! second session finds the server process idle or gone, or cannot be made at all.
//!
//! Why a second session: a connection that a firewall has forgotten, or whose other end is frozen, looks like one on
//! which a long statement runs. No time-out tells them apart.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_postgres::SimpleQueryMessage;

use crate::postgres::conninfo::Conninfo;
use crate::postgres::session::{SqlError, session};

/// Silence before the first look at the server process; each further one comes after twice the time.
const LOOK_FIRST: Duration = Duration::from_secs(1);
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(30);
/// A statement that is at work for longer is told, so that nobody wonders what is waited for.
const LONG_WORK: Duration = Duration::from_secs(5);
/// For a look, connecting included.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// What the process has sent last may be on its way while the look finds it idle.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Waits for an answer of the server process `pid`; `None` where it will not come.
pub(crate) async fn answer<T>(
    conninfo: &Conninfo,
    pid: i32,
    answer: impl Future<Output = T>,
) -> Option<T> {
    tokio::pin!(answer);
    // A row that has come already costs no look at the clock.
    if let Poll::Ready(answer) = poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await
    {
        return Some(answer);
    }
    let begin = Instant::now();
    let mut pause = LOOK_FIRST;
    let mut told = false;
    loop {
        if let Ok(answer) = timeout(pause, &mut answer).await {
            return Some(answer);
        }
        let work = tokio::select! {
            answer = &mut answer => return Some(answer),
            work = look(conninfo, pid) => work,
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

/// One look at the process; `None` where it does not work, or nothing can be seen. A command for the password may take
/// longer than a look, and says nothing about the server.
async fn look(conninfo: &Conninfo, pid: i32) -> Option<String> {
    let conninfo = Conninfo {
        password: conninfo.password.settled().await.ok()?,
        ..conninfo.clone()
    };
    timeout(LOOK_LIMIT, work(&conninfo, pid)).await.ok()?.ok()?
}

/// What the process does where it works on a statement, and not on sending what nobody takes.
async fn work(conninfo: &Conninfo, pid: i32) -> Result<Option<String>, SqlError> {
    // As the login role: another one may not see what the role's own sessions do.
    let query = "SET ROLE NONE; SELECT wait_event_type, CASE wait_event_type WHEN 'Lock' THEN \
                   pg_catalog.array_to_string(pg_catalog.pg_blocking_pids(pid), ', ') END \
                 FROM pg_catalog.pg_stat_activity \
                 WHERE state = 'active' AND wait_event_type IS DISTINCT FROM 'Client' AND pid = ";
    let (session, _) = session(conninfo).await?;
    let answer = session.simple_query(&format!("{query}{pid}")).await?;
    Ok(answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) if row.get(0) == Some("Lock") => {
            let pids = row.get(1).filter(|pids| !pids.is_empty());
            let of = pids.map(|pids| format!(", process {pids}"));
            Some(format!(
                "waits for a lock that another transaction has{}",
                of.unwrap_or_default()
            ))
        }
        SimpleQueryMessage::Row(_) => Some("works on it".to_owned()),
        _ => None,
    }))
}
