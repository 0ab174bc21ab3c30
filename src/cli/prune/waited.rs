//! A statement that waits for others: who they are, and its end where nobody wants it any more.
//!
//! In: the statement, the session that runs it, another one that looks. Out: how it ended, and who kept it waiting. Guarantee: a signal
//! ends it at the server too.

use std::time::Duration;

use crate::postgres::client::{Client, SqlError};
use crate::postgres::setup::{Blocker, blockers};
use crate::relay::Shutdown;

/// Between two looks at what it waits for.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// Who runs the statement, who looks, and who may want its end.
#[derive(Clone, Copy)]
pub(super) struct Waited<'a> {
    pub(super) runs: &'a Client,
    pub(super) observer: &'a Client,
    pub(super) shutdown: &'a Shutdown,
}

impl Waited<'_> {
    /// Waits for its end; who has kept it waiting last, which `waits_for` hears each time that others do.
    pub(super) async fn run(
        self,
        statement: impl Future<Output = Result<(), SqlError>>,
        mut waits_for: impl FnMut(&[Blocker]),
    ) -> (Result<(), SqlError>, Vec<Blocker>) {
        let mut blocked_by = Vec::new();
        let mut mends = Vec::new();
        tokio::pin!(statement);
        loop {
            let mut stopped = self.shutdown.clone();
            tokio::select! {
                done = &mut statement => return (done, blocked_by),
                () = stopped.wait(), if !self.shutdown.is_sent() => {}
                () = tokio::time::sleep(LOOK_PAUSE) => {}
            }
            if self.shutdown.is_sent() {
                // More than once: the first may come between two statements.
                if let Err(error) = self.runs.cancel().await {
                    return (Err(error), blocked_by);
                }
                continue;
            }
            // That it could not be looked at is no reason to end it.
            let found = blockers(self.observer, self.runs.pid()).await;
            if let Ok(found) = found
                && !found.is_empty()
            {
                // The same ones have other ages.
                let now: Vec<String> = found.iter().map(Blocker::mend).collect();
                if now != mends {
                    waits_for(&found);
                    mends = now;
                }
                blocked_by = found;
            }
        }
    }
}

/// Who they are, and what ends them, for "run this again then".
pub(super) fn told(blockers: &[Blocker]) -> String {
    let each = |blocker: &Blocker| format!("{blocker}, has it open: {} ", blocker.mend());
    blockers.iter().map(each).collect()
}
