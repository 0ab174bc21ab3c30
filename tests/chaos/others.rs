//! The others who write to a shared stream.
//!
//! In: the broker's address. Out: a message every few milliseconds between the relay's. Guarantee: none; what does not get
//! through is not missed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::RwLock;
use tokio::task::JoinHandle;

use crate::servers::Access;
use crate::verdict::FOREIGN_SUBJECT;

const INTERVAL: Duration = Duration::from_millis(15);
const RETRY: Duration = Duration::from_millis(200);

/// A task that publishes; ends when dropped.
pub struct Others(JoinHandle<()>);

impl Others {
    /// Publishes while nobody holds the gate for writing.
    pub fn start(url: String, access: Access, gate: Arc<RwLock<()>>) -> Others {
        Others(tokio::spawn(async move {
            loop {
                if publish(&url, &access, &gate).await.is_err() {
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

async fn publish(url: &str, access: &Access, gate: &RwLock<()>) -> anyhow::Result<()> {
    let urls: Vec<String> = url.split(',').map(str::to_owned).collect();
    let client = access.options().connect(urls).await?;
    loop {
        {
            let _open = gate.read().await;
            client.publish(FOREIGN_SUBJECT, "another's".into()).await?;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
