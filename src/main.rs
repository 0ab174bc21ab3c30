//! Arguments → configuration → command; exit codes.

use std::process::ExitCode;

use walrelay::cli::{Cli, exit};

fn main() -> ExitCode {
    let ended = Cli::read().execute();
    ended.unwrap_or_else(|error| exit::report(&error)).into()
}
