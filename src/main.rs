//! Arguments → configuration → command; exit codes.

use std::process::ExitCode;

use clap::Parser as _;
use walrelay::cli::{Cli, exit};

fn main() -> ExitCode {
    let ended = Cli::parse().execute();
    ended.unwrap_or_else(|error| exit::report(&error)).into()
}
