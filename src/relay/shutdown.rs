//! The signal to stop: sent once, seen by everyone.

use tokio::sync::watch;

/// Waits for the signal.
#[derive(Debug, Clone)]
pub struct Shutdown {
    receiver: watch::Receiver<bool>,
}

/// Sends the signal; dropping it without sending leaves the relay running.
#[derive(Debug)]
pub struct ShutdownHandle {
    sender: watch::Sender<bool>,
}

impl Shutdown {
    /// A signal and its sender.
    pub fn new() -> (ShutdownHandle, Shutdown) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownHandle { sender }, Shutdown { receiver })
    }

    /// A signal that nobody sends.
    pub fn never() -> Shutdown {
        Shutdown::new().1
    }

    /// Whether the signal was sent.
    pub(crate) fn is_sent(&self) -> bool {
        *self.receiver.borrow()
    }

    /// Completes once the signal was sent, at once if it was sent before. Cancel-safe.
    pub async fn wait(&mut self) {
        if self.receiver.wait_for(|sent| *sent).await.is_err() {
            // Nobody can send it any more.
            std::future::pending::<()>().await;
        }
    }
}

impl ShutdownHandle {
    /// Sends the signal.
    pub fn stop(&self) {
        self.sender.send_replace(true);
    }
}
