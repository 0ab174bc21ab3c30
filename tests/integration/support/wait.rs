//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// Longest wait for what happens within a second on an idle machine; generous, since test machines are not idle and can stand still.
pub(crate) const SOON: Duration = Duration::from_secs(180);
/// Between two looks: a twentieth of the wait so far, within these. What takes seconds is not asked for a hundred times a second, which
/// would cost the servers more than the test does.
const POLL_INTERVALS: [Duration; 2] = [Duration::from_millis(15), Duration::from_millis(100)];

/// Asks `condition` until it answers.
///
/// # Panics
/// Where it has not within [`SOON`]: the message says what was waited for.
pub(crate) async fn eventually<T>(
    what: impl std::fmt::Display,
    condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    eventually_within(SOON, what, condition).await
}

/// The same within `limit`, for what takes long by itself.
pub(crate) async fn eventually_within<T>(
    limit: Duration,
    what: impl std::fmt::Display,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(begin.elapsed() < limit, "waited {limit:?} in vain: {what}");
        let [shortest, longest] = POLL_INTERVALS;
        tokio::time::sleep((begin.elapsed() / 20).clamp(shortest, longest)).await;
    }
}
