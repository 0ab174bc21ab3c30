//! Somebody else who publishes into the same stream all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::lane::jetstream;
use crate::support::Fixture;

const PAUSE: Duration = Duration::from_millis(3);

/// Publishes until it is stopped or dropped.
pub(crate) struct ForeignPublisher {
    stop: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl ForeignPublisher {
    /// Begins to publish into the lane's shared stream.
    pub(crate) fn start(fixture: &Fixture) -> ForeignPublisher {
        let stop = Arc::new(AtomicBool::new(false));
        let published = Arc::new(AtomicU64::new(0));
        let context = jetstream(fixture);
        let subject = format!("foreign.{}.x", fixture.stream_name());
        let (stopped, count) = (stop.clone(), published.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let sent = context.publish(subject.clone(), "foreign".into()).await;
                if let Ok(sent) = sent
                    && sent.await.is_ok()
                {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        ForeignPublisher {
            stop,
            published,
            task,
        }
    }

    /// Ends it; how many messages were stored.
    pub(crate) async fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.task).await.expect("it does not panic");
        self.published.load(Ordering::Relaxed)
    }
}

impl Drop for ForeignPublisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}
