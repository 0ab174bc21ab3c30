//! A value that must not be seen.
//!
//! In: a password, token or seed as it was configured. Out: the same bytes, only through
//! [`Secret::expose`]. Guarantees: `Debug` and `Display` print `***`, so that no log, error or
//! `config show` can print one by accident; its memory is wiped when it goes. What libraries copy out of it is theirs.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::{fmt, io};

use zeroize::Zeroizing;

/// What is printed in a secret's place.
pub(crate) const MASK: &str = "***";

/// A password, token or seed that prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a value into custody.
    pub fn new(value: impl Into<String>) -> Self {
        Secret(Zeroizing::new(value.into()))
    }

    /// The value itself, for the one place that sends it to a server.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// What is in a text file, of which at most so many bytes are read: a device has no end.
///
/// # Errors
/// The system's, and `InvalidData` for a longer one.
pub(crate) fn read_file(path: &Path, bytes_max: u64) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    File::open(path)?
        .take(bytes_max + 1)
        .read_to_string(&mut text)?;
    match text.len() as u64 > bytes_max {
        true => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it has more than {bytes_max} bytes"),
        )),
        false => Ok(text),
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Secret::new(value)
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Secret::new(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_masked_and_exposes_on_request() {
        let secret = Secret::new("hunter2");
        assert_eq!(
            format!("{secret} {secret:?} {:?}", Some(&secret)),
            "*** *** Some(***)"
        );
        assert_eq!(secret.expose(), "hunter2");
    }
}
