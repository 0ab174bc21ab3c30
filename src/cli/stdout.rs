//! Standard output, whose reader may go away and whose disk may be full.
//!
//! In: text. Out: the same on standard output. Guarantees: nothing panics; `walrelay … | head` ends quietly; a command
//! that changes something finishes it, read or not.

use std::fmt::Display;
use std::io::{self, Write as _};

/// The reader of standard output has gone; [`super::exit`] makes a quiet end of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("standard output is closed")]
pub struct StdoutClosed;

/// Writes text to standard output and flushes it.
///
/// # Errors
/// [`StdoutClosed`], or the error of writing.
pub fn write(text: &str) -> Result<(), anyhow::Error> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        Err(error) => Err(anyhow::Error::from(error).context("cannot write to standard output")),
    }
}

/// What a command says whose work, or whose exit code, matters even when nobody reads it.
#[derive(Debug, Default)]
pub struct Account {
    failure: Option<anyhow::Error>,
}

impl Account {
    /// Writes a line, unless one before it could not be written.
    pub fn line(&mut self, text: impl Display) {
        if self.failure.is_none() {
            self.failure = write(&format!("{text}\n")).err();
        }
    }

    /// To be asked when the work is done.
    ///
    /// # Errors
    /// The line that could not be written, unless its reader had gone: that changes nothing of how the work ended.
    pub fn close(self) -> Result<(), anyhow::Error> {
        match self.failure {
            Some(error) if !error.is::<StdoutClosed>() => Err(error),
            _ => Ok(()),
        }
    }
}

/// Until nobody reads standard output any more: `walrelay tail | head -2` ends with its second line, not with the next
/// event, which may be hours away. Never where it is no pipe.
pub async fn reader_gone() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut look = tokio::time::interval(std::time::Duration::from_millis(250));
    loop {
        look.tick().await;
        let stdout = io::stdout();
        // No event is asked for: poll reports a closed pipe in any case.
        let mut pipe = [PollFd::new(&stdout, PollFlags::empty())];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if poll(&mut pipe, Some(&at_once)).is_ok()
            && pipe[0]
                .revents()
                .intersects(PollFlags::ERR | PollFlags::HUP)
        {
            return;
        }
    }
}
