//! Standard error, which may be closed or on a full disk.
//!
//! In: text for people. Out: the same on standard error. Guarantee: nothing panics, as `eprintln!` would: a command's
//! exit code is its own also where nobody can be told more.

use std::fmt::Display;
use std::io::Write as _;

/// Writes a line; where it cannot be written, nobody is left to be told.
pub fn line(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
