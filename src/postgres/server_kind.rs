//! Which kind of server `target_session_attrs` asks for, and which one this is (manual, 32.1.2).
//!
//! In: what is wanted, the answer to `query`. Out: that it will do, or an error that gives way to the next host.

use crate::postgres::conninfo::{HostPort, TargetSessionAttrs};
use crate::postgres::error::ConnectError;
use crate::postgres::socket::address_text;

/// What to ask a new session; one row with one value.
pub(crate) fn query(wanted: TargetSessionAttrs) -> Option<&'static str> {
    match wanted {
        TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby => None,
        TargetSessionAttrs::ReadWrite | TargetSessionAttrs::ReadOnly => {
            Some("SHOW transaction_read_only")
        }
        TargetSessionAttrs::Primary | TargetSessionAttrs::Standby => {
            Some("SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'on' ELSE 'off' END")
        }
    }
}

/// Whether the answer is the one that is wanted.
///
/// # Errors
/// [`ConnectError::Kind`], where it is not.
pub(crate) fn check(
    wanted: TargetSessionAttrs,
    answer: Option<&str>,
    server: &HostPort,
) -> Result<(), ConnectError> {
    let (needed, found) = match wanted {
        TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby => return Ok(()),
        TargetSessionAttrs::ReadWrite => ("off", "is read-only"),
        TargetSessionAttrs::ReadOnly => ("on", "is read-write"),
        TargetSessionAttrs::Primary => ("off", "is a standby"),
        TargetSessionAttrs::Standby => ("on", "is a primary"),
    };
    match answer == Some(needed) {
        true => Ok(()),
        false => Err(ConnectError::Kind {
            host: address_text(server),
            found,
            wanted,
        }),
    }
}
