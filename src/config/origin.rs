//! Where a value was given: what `config show` and every error name.

use std::fmt;
use std::path::PathBuf;

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// Nowhere, but `name` was, or has its default.
    FromName,
    /// A variable that serves where nothing else is set, and the file that it names, if it does.
    Fallback(String),
    /// The configuration file.
    File {
        /// As it was found.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// A `WALRELAY_…` variable.
    Variable(String),
    /// A flag.
    Flag(&'static str),
}

impl Origin {
    /// Which of two sources goes before the other.
    pub fn rank(&self) -> u8 {
        match self {
            Origin::Default | Origin::FromName => 0,
            Origin::Fallback(_) => 1,
            Origin::File { .. } => 2,
            Origin::Variable(_) => 3,
            Origin::Flag(_) => 4,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::FromName => f.write_str("default, from name"),
            Origin::Fallback(variable) | Origin::Variable(variable) => write!(f, "env {variable}"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}
