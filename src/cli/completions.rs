//! `walrelay completions`: what a shell needs to complete this command line.
//!
//! In: the shell's name. Out: a script on standard output. Reads no configuration, so that a
//! package can be built without one.

use clap::CommandFactory as _;

use super::exit::Exit;
use super::stdout;

const EXAMPLES: &str = "\
Examples:
  walrelay completions bash > /etc/bash_completion.d/walrelay
  walrelay completions zsh > \"${fpath[1]}/_walrelay\"
  walrelay completions fish > ~/.config/fish/completions/walrelay.fish";

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Which shell
    shell: clap_complete::Shell,
}

/// Prints the script.
///
/// # Errors
/// Where standard output cannot be written.
pub fn execute(args: &Args) -> Result<Exit, anyhow::Error> {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut super::Cli::command(),
        "walrelay",
        &mut script,
    );
    stdout::write(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
