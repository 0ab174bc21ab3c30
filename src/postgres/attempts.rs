//! Attempts to make a session, host by host.
//!
//! In: the hosts of a `Conninfo`, what an attempt does. Out: the first session that is made. Guarantees: each host gets
//! the connect timeout and no more; a network that comes back is seen within about a second.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use crate::postgres::conninfo::{Conninfo, HostPort};

/// So long an attempt to connect may be quiet before others are made beside it, and so long each of those may take.
/// What a dead network has swallowed is not sent again, so the return of the network is seen by a new attempt only.
const FRESH_ATTEMPT: Duration = Duration::from_secs(1);

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
