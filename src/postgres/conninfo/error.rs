//! Why a connection string cannot be used.

use std::path::PathBuf;

use super::SslMode;

/// Why a connection string, or the environment beside it, cannot be used. None of them shows a
/// value that may be a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConninfoError {
    /// Another kind of URL.
    #[error(
        "`{0}://` is not a Postgres URL: use postgres://user@host:port/dbname or host=… dbname=…"
    )]
    Scheme(String),
    /// An `@` in the part of the URL that names hosts.
    #[error("the URL has more than one `@`: write those of the user and password as %40")]
    AtSign,
    /// `[` without `]`, or something between `]` and the port.
    #[error("an IPv6 address in the URL is not of the form [address]:port")]
    Bracket,
    /// A query parameter without `=`.
    #[error("a parameter after `?` has no `=` (a `?` in a password is written %3F)")]
    QueryPair,
    /// `%` that is not followed by two hexadecimal digits, or that gives no text.
    #[error("the percent-encoding of {what} is not valid (a `%` itself is written %25)")]
    Encoding {
        /// Which part of the URL.
        what: &'static str,
    },
    /// A key without `=`.
    #[error(
        "not a connection string: `=` is missing after what begins at byte {at} \
         (use postgres://user@host:port/dbname or host=… dbname=…; values with spaces in single quotes)"
    )]
    Equals {
        /// Offset in bytes from the string's start.
        at: usize,
    },
    /// A quoted value that does not end.
    #[error("the quoted value of the key at byte {at} does not end")]
    Quote {
        /// Offset in bytes from the string's start.
        at: usize,
    },
    /// A name that neither libpq nor a known pooler or ORM has.
    #[error("unknown connection parameter `{name}`{}", did_you_mean(.nearest))]
    UnknownParameter {
        /// As it was written.
        name: String,
        /// The one that was probably meant.
        nearest: Option<&'static str>,
    },
    /// A parameter that cannot be ignored safely.
    #[error("`{name}` cannot be used: {why}")]
    Refused {
        /// Of the parameter or the variable.
        name: String,
        /// What to do about it.
        why: &'static str,
    },
    /// A value that its parameter does not take.
    #[error("`{parameter}` must be {expected}")]
    Value {
        /// The parameter's or the variable's name.
        parameter: &'static str,
        /// What it takes.
        expected: &'static str,
    },
    /// A value that is none of those that its parameter takes.
    #[error("`{parameter}` must be one of {expected}")]
    Choice {
        /// The parameter's or the variable's name.
        parameter: &'static str,
        /// What it takes.
        expected: String,
    },
    /// A file that was named and cannot be read.
    #[error("`{parameter}`: {problem}")]
    File {
        /// The parameter's name.
        parameter: &'static str,
        /// What is wrong with the file, and what mends it.
        problem: String,
    },
    /// A mode that would not keep what another parameter promises.
    #[error("sslmode={mode} may not be used with {with}: use {needed}")]
    WeakSslMode {
        /// What was asked for.
        mode: SslMode,
        /// The other parameter.
        with: &'static str,
        /// Modes that it goes with.
        needed: &'static str,
    },
    /// A service that is in no file.
    #[error("the service `{name}` is not in {}: add a section [{name}] to that file, or name another file with PGSERVICEFILE", path.display())]
    Service {
        /// Its name.
        name: String,
        /// Where it was looked for first.
        path: PathBuf,
    },
    /// A service file that cannot be used.
    #[error("the service file {}: {why}", path.display())]
    ServiceFile {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        why: String,
    },
    /// No user anywhere.
    #[error(
        "no Postgres user is given and the operating system names none: put it into the URL or PGUSER"
    )]
    User,
}

fn did_you_mean(nearest: &Option<&'static str>) -> String {
    nearest
        .map(|name| format!("; did you mean `{name}`?"))
        .unwrap_or_default()
}
