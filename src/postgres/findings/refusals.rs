//! Findings that end a start.

use std::fmt;

use super::Finding;

/// What stands in the way, at least one, each from a line of its own on: a remedy may have several.
#[derive(Debug)]
pub struct Refusals(pub Vec<Finding>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join("\n"))
    }
}

impl std::error::Error for Refusals {}
