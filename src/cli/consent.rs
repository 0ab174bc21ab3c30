//! Asking a person before something that cannot be taken back.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use super::stderr;

/// Whether a person agrees: with `--yes`, or asked on a terminal; elsewhere nobody does. Says `otherwise`, such as "nothing was
/// erased", where not. The question goes to standard error: standard output may be a file.
///
/// # Errors
/// The terminal cannot be read or written.
pub(super) fn agreed(yes: bool, question: &str, otherwise: &str) -> Result<bool, anyhow::Error> {
    let agrees = yes || asked(question)?;
    if !agrees {
        stderr::line(format_args!(
            "{otherwise}: answer yes, or give --yes where nobody can be asked"
        ));
    }
    Ok(agrees)
}

fn asked(question: &str) -> Result<bool, anyhow::Error> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Ok(false);
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}
