//! The others who write to a shared stream.
//!
//! In: the broker's address. Out: a message every few milliseconds between the relay's. Guarantee: none; what does not get
//! through is not missed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::RwLock;
use tokio::task::JoinHandle;

use crate::verdict::FOREIGN_SUBJECT;

const INTERVAL: Duration = Duration::from_millis(15);
const RETRY: Duration = Duration::from_millis(200);

/// A task that publishes; ends when dropped.
pub struct Others(JoinHandle<()>);

impl Others {
    /// Publishes while nobody holds the gate for writing.
    pub fn start(url: String, gate: Arc<RwLock<()>>) -> Others {
        Others(tokio::spawn(async move {
            loop {
                if publish(&url, &gate).await.is_err() {
                    tokio::time::sleep(RETRY).await;
                }
            }
        }))
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn publish(url: &str, gate: &RwLock<()>) -> anyhow::Result<()> {
    let client = async_nats::connect(url.split(',').map(str::to_owned).collect::<Vec<_>>()).await?;
    loop {
        {
            let _open = gate.read().await;
            client.publish(FOREIGN_SUBJECT, "another's".into()).await?;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
