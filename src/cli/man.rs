//! `walrelay man`: the manual's pages, for packages.
//!
//! In: a folder. Out: a page a command in it, made of what `--help` says. Reads no configuration, so that a package can be built
//! without one.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::exit::Exit;

const EXAMPLES: &str = "\
Examples:
  walrelay man /usr/local/share/man/man1          then: man walrelay, man walrelay-run";

/// Write the manual's pages into a folder
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The folder; it is made where it is missing
    folder: PathBuf,
}

/// Writes the pages.
///
/// # Errors
/// Where the folder cannot be written.
pub fn execute(args: &Args) -> Result<Exit, anyhow::Error> {
    let folder = &args.folder;
    let written = fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(super::Cli::command(), folder));
    written.with_context(|| format!("cannot write the pages into {}", folder.display()))?;
    Ok(Exit::Done)
}
