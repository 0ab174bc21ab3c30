//! How a command ends: exit codes, and the one message of a failure.
//!
//! In: what a command returned. Out: the process' exit code, which supervisors act on, and at most
//! one message on standard error, a line for each thing that is wrong; lines of the log where that is JSON.

use std::process::ExitCode;

use super::stdout::StdoutClosed;
use crate::cli::stderr;
use crate::config::ConfigError;
use crate::ops::logs::log_end;
use crate::postgres::findings::Refusals;
use crate::postgres::occurred_at::Untold;
use crate::postgres::row_security::RowsHidden;

/// How a command ended; the numbers are the exit codes and stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It is done, or was stopped cleanly by SIGTERM or SIGINT.
    Done = 0,
    /// It failed, or a check found something.
    Failed = 1,
    /// Wrong usage or configuration; a supervisor must not restart.
    Usage = 2,
    /// A check could not be made.
    Unchecked = 3,
    /// Halted until a person has looked; a supervisor must not restart.
    Halted = 4,
}

/// Arguments that contradict each other or mean nothing: exit code 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

impl Exit {
    /// Of the ends of two parts of a command, the one that counts: what a person has to look at before what could not be seen.
    pub(crate) fn graver(self, other: Exit) -> Exit {
        let rank = |exit| match exit {
            Exit::Done => 0,
            Exit::Unchecked => 1,
            Exit::Failed => 2,
            Exit::Usage => 3,
            Exit::Halted => 4,
        };
        match rank(other) > rank(self) {
            true => other,
            false => self,
        }
    }

    /// The exit code of an error: 2 where usage or configuration is among its causes, 3 where rows are hidden, 0 where
    /// the reader of our output went away, which is no failure, else 1.
    pub(crate) fn of_error(error: &anyhow::Error) -> Self {
        if error.chain().any(|cause| cause.is::<StdoutClosed>()) {
            Exit::Done
        } else if error.chain().any(|cause| {
            cause.is::<ConfigError>() || cause.is::<UsageError>() || cause.is::<Untold>()
        }) {
            Exit::Usage
        } else if error.chain().any(|cause| cause.is::<RowsHidden>()) {
            Exit::Unchecked
        } else {
            Exit::Failed
        }
    }
}

/// An error and its causes as one message, `what: why: why that`; a cause that the message above
/// it already contains is not said twice.
pub fn message(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if parts.last().is_none_or(|above| !above.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

/// Prints an error, or logs it as JSON where the log is JSON, unless it is none to the user; returns its exit code.
/// Several findings in one are told one by one, and each says that it is an error; what is to be pasted stands below it as it is.
pub fn report(error: &anyhow::Error) -> Exit {
    let exit = Exit::of_error(error);
    if exit != Exit::Done && !log_end(&message(error)) {
        for told in one_by_one(error) {
            stderr::line(format_args!("error: {told}"));
        }
    }
    exit
}

/// The findings, where there are some; else each line.
fn one_by_one(error: &anyhow::Error) -> Vec<String> {
    let message = message(error);
    let refusals = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Refusals>());
    let Some(refusals) = refusals else {
        return message.lines().map(str::to_owned).collect();
    };
    let before = message
        .strip_suffix(&refusals.to_string())
        .unwrap_or_default();
    let findings = refusals.0.iter();
    findings
        .map(|finding| format!("{before}{finding}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;
    use crate::postgres::findings::{Kind, refuse};

    #[test]
    fn errors_have_their_exit_codes() {
        let usage = Err::<(), _>(UsageError("no".to_owned()))
            .context("outer")
            .unwrap_err();
        assert_eq!(Exit::of_error(&usage), Exit::Usage);
        let config = anyhow::Error::from(ConfigError::Twice {
            variable: "X".to_owned(),
        });
        assert_eq!(Exit::of_error(&config), Exit::Usage);
        assert_eq!(
            Exit::of_error(&anyhow::Error::from(StdoutClosed)),
            Exit::Done
        );
        // A broken pipe of a socket is a failure.
        let socket = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(Exit::of_error(&socket), Exit::Failed);
    }

    #[test]
    fn what_is_to_be_pasted_stands_below_its_finding() {
        let finding = |mend| refuse(Kind::Column, "no column x", mend);
        let refusals = Refusals(vec![
            finding("put this there:\n[columns]\nid = \"x\""),
            finding("add it"),
        ]);
        let error = anyhow::Error::from(refusals).context("share 2");
        let told = [
            "share 2: no column x: put this there:\n[columns]\nid = \"x\"",
            "share 2: no column x: add it",
        ];
        assert_eq!(one_by_one(&error), told);
        assert_eq!(one_by_one(&anyhow::anyhow!("a\nb")), ["a", "b"]);
    }

    #[test]
    fn a_message_has_each_cause_once() {
        let error = anyhow::anyhow!("refused")
            .context("cannot connect: refused")
            .context("no relay");
        assert_eq!(message(&error), "no relay: cannot connect: refused");
    }
}
