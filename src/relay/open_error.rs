//! Why an epoch did not begin, from what the servers and the pipeline say.

use crate::nats::api::AnswerError;
use crate::nats::connection::{ConnectError, RequestError};
use crate::pipeline::continuity::Refusal;
use crate::pipeline::fault::{Fault, Halt};
use crate::pipeline::opening::NotOpened;
use crate::pipeline::request::Unfit;
use crate::postgres::client::SqlError;
use crate::postgres::conninfo::Conninfo;
use crate::postgres::error::{ReplicationError, SLOT_LOST_MEND};
use crate::relay::lane_store::StoreError;

/// Why an epoch did not begin.
#[derive(Debug)]
pub enum OpenError {
    /// Passes by itself.
    Fault(Fault),
    /// Does not pass by itself: ends `run` at its first start.
    Permanent(anyhow::Error),
    /// A person has to look.
    Halt(Halt),
    /// As [`OpenError::Permanent`], and what was acknowledged may be in doubt.
    Unfit(Unfit),
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Fault(fault) => write!(f, "{fault}"),
            OpenError::Permanent(error) => f.write_str(&with_cause(error.as_ref())),
            OpenError::Halt(halt) => f.write_str(&halt.reason()),
            OpenError::Unfit(unfit) => f.write_str(&unfit.reason),
        }
    }
}

impl From<NotOpened> for OpenError {
    fn from(stop: NotOpened) -> Self {
        match stop {
            NotOpened::Fault(fault) => OpenError::Fault(fault),
            NotOpened::Halt(halt) | NotOpened::Refusal(Refusal::Halt(halt)) => {
                OpenError::Halt(halt)
            }
            NotOpened::Refusal(refusal) => OpenError::Permanent(refusal.into()),
            NotOpened::NoMode(no_mode) => OpenError::Permanent(no_mode.into()),
            NotOpened::Unfit(unfit) => OpenError::Unfit(unfit),
        }
    }
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotStored(fault) => OpenError::Fault(fault),
            StoreError::Answer(AnswerError::Api(api)) if api.is_transient() => {
                OpenError::Fault(Fault::Broker(api.to_string()))
            }
            error => OpenError::Permanent(error.into()),
        }
    }
}

impl From<ConnectError> for OpenError {
    fn from(error: ConnectError) -> Self {
        OpenError::of_broker(error.is_transient(), error)
    }
}

impl From<RequestError> for OpenError {
    fn from(error: RequestError) -> Self {
        OpenError::of_broker(error.is_transient(), error)
    }
}

impl From<SqlError> for OpenError {
    fn from(error: SqlError) -> Self {
        if error.is_transient() {
            OpenError::Fault(Fault::Postgres(error.bare()))
        } else {
            OpenError::Permanent(error.into())
        }
    }
}

impl From<ReplicationError> for OpenError {
    fn from(error: ReplicationError) -> Self {
        match error {
            ReplicationError::SlotActive { slot, pid } => OpenError::Fault(Fault::SlotActive {
                slot,
                pid: pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            }),
            ReplicationError::SlotLost { slot, server } => OpenError::Halt(Halt::Slot {
                what: format!(
                    "replication slot \"{slot}\" is lost, the WAL that it needs has been removed ({server})"
                ),
                mend: SLOT_LOST_MEND.to_owned(),
            }),
            error if error.is_transient() => OpenError::Fault(Fault::Postgres(error.bare())),
            error => OpenError::Permanent(error.into()),
        }
    }
}

impl OpenError {
    fn of_broker(
        is_transient: bool,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        match is_transient {
            true => OpenError::Fault(Fault::Broker(with_cause(&error))),
            false => OpenError::Permanent(error.into()),
        }
    }

    /// The same of an attempt to connect to Postgres: says where.
    pub(super) fn of_connecting(self, conninfo: &Conninfo) -> Self {
        match self {
            OpenError::Fault(Fault::Postgres(text)) => OpenError::Fault(Fault::Postgres(format!(
                "cannot connect to {conninfo}: {text}"
            ))),
            OpenError::Permanent(error) => {
                OpenError::Permanent(error.context(format!("cannot connect to {conninfo}")))
            }
            other => other,
        }
    }
}

/// An error with its causes in one line.
pub(crate) fn with_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let next = source.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error that was made of another one has a backtrace, where the environment asks for them.
    #[test]
    fn what_is_logged_of_it_is_what_it_says() {
        let error = anyhow::anyhow!("the reason").context("what failed");
        assert_eq!(
            OpenError::Permanent(error).to_string(),
            "what failed: the reason"
        );
        let fault = Fault::Broker("gone".to_owned());
        assert_eq!(
            OpenError::Fault(fault.clone()).to_string(),
            fault.to_string()
        );
    }
}
