//! Where a value was given: what `config show` and every error name.

use std::fmt;
use std::path::PathBuf;

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueOrigin {
    /// Nowhere.
    Default,
    /// Nowhere, but `name` was, or has its default.
    FromName,
    /// Nowhere, but `preset` was.
    FromPreset,
    /// A variable that serves where nothing else is set, and the file that it names, if it does.
    Fallback(String),
    /// The file of a context of the NATS command line.
    Context(PathBuf),
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

impl ValueOrigin {
    /// Which of two sources goes before the other.
    pub fn rank(&self) -> u8 {
        match self {
            ValueOrigin::Default | ValueOrigin::FromName | ValueOrigin::FromPreset => 0,
            ValueOrigin::Fallback(_) => 1,
            ValueOrigin::Context(_) => 2,
            ValueOrigin::File { .. } => 3,
            ValueOrigin::Variable(_) => 4,
            ValueOrigin::Flag(_) => 5,
        }
    }
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueOrigin::Default => f.write_str("default"),
            ValueOrigin::FromName => f.write_str("default, from name"),
            ValueOrigin::FromPreset => f.write_str("default, from preset"),
            ValueOrigin::Fallback(variable) | ValueOrigin::Variable(variable) => {
                write!(f, "env {variable}")
            }
            ValueOrigin::Context(path) => write!(f, "NATS context {}", path.display()),
            ValueOrigin::File { path, line } => write!(f, "{}:{line}", path.display()),
            ValueOrigin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}
