//! `walrelay man`: the manual's pages, for packages.
//!
//! In: a folder. Out: a page a command in it, made of what `--help` says. Reads no configuration, so that a package can be built
//! without one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::exit::Exit;

const EXAMPLES: &str = "\
Examples:
  walrelay man /usr/local/share/man/man1          then: man walrelay, man walrelay-run";
/// Begins the paragraph that becomes a section of its own.
const EXIT: &str = "Exit code ";

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
    let mut program = super::Cli::command().disable_help_subcommand(true);
    program.build();
    let written = fs::create_dir_all(folder).and_then(|()| write(&program, folder));
    written.with_context(|| format!("cannot write the pages into {}", folder.display()))?;
    Ok(Exit::Done)
}

/// The command's page, and those of its subcommands.
fn write(command: &Command, folder: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        write(subcommand, folder)?;
    }
    let man = Man::new(command.clone())
        .source(concat!("walrelay ", env!("CARGO_PKG_VERSION")))
        .manual("walrelay");
    let help = command.get_after_long_help().or(command.get_after_help());
    let remarks = Remarks::of(&help.map(ToString::to_string).unwrap_or_default());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    remarks.description.to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    remarks.exit.to_writer(&mut page)?;
    remarks.examples.to_writer(&mut page)?;
    fs::write(folder.join(man.get_filename()), page)
}

/// What stands behind the options in `--help`, by the sections of a page. clap_mangen makes one paragraph of it all.
#[derive(Default)]
struct Remarks {
    description: Roff,
    exit: Roff,
    examples: Roff,
}

impl Remarks {
    fn of(help: &str) -> Remarks {
        let mut remarks = Remarks::default();
        for paragraph in help.split("\n\n") {
            if let Some(list) = paragraph.strip_prefix("Examples:\n") {
                remarks.examples.control("SH", ["EXAMPLES"]);
                add_list(&mut remarks.examples, list);
            } else if paragraph.starts_with(EXIT) {
                remarks.exit.control("SH", ["EXIT STATUS"]);
                remarks.exit.text([roman(one_line(paragraph))]);
            } else if paragraph.lines().any(|line| line.trim().contains("  ")) {
                add_list(&mut remarks.description, paragraph);
            } else if !paragraph.trim().is_empty() {
                remarks.description.control("PP", []);
                remarks.description.text([roman(one_line(paragraph))]);
            }
        }
        remarks
    }
}

fn one_line(paragraph: &str) -> String {
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Lines of two columns with two spaces or more between them; what is further to the right than the first one goes on with the last.
fn add_list(roff: &mut Roff, list: &str) {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let first = indent(list);
    for line in list.lines() {
        let text = line.trim();
        if indent(line) > first {
            roff.text([roman(text)]);
            continue;
        }
        let (term, meaning) = text.split_once("  ").unwrap_or((text, ""));
        roff.control("TP", []);
        roff.text([bold(term)]);
        if !meaning.is_empty() {
            roff.text([roman(meaning.trim_start())]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_stay_lists_and_the_rest_becomes_paragraphs() {
        let help = "\
Examples:
  walrelay a --b c      what it does
  walrelay a --long-flag
                        what that does

One line,
and another.

missing    in one,
           not in the other
doubled    twice

Exit code 0: well.
1: not.";
        let remarks = Remarks::of(help);
        let description = remarks.description.to_roff();
        let lines: Vec<_> = description.lines().collect();
        let expected = [
            ".PP",
            "One line, and another.",
            ".TP",
            "\\fBmissing\\fR",
            "in one,",
            "not in the other",
            ".TP",
            "\\fBdoubled\\fR",
            "twice",
        ];
        assert_eq!(lines, expected);
        let expected = ".SH \"EXIT STATUS\"\nExit code 0: well. 1: not.\n";
        assert_eq!(remarks.exit.to_roff(), expected);
        let examples = remarks.examples.to_roff();
        let lines: Vec<_> = examples.lines().collect();
        let expected = [
            ".SH EXAMPLES",
            ".TP",
            r"\fBwalrelay a \-\-b c\fR",
            "what it does",
            ".TP",
            r"\fBwalrelay a \-\-long\-flag\fR",
            "what that does",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn each_command_has_a_page_without_a_shapeless_rest() {
        let folder = tempfile::tempdir().expect("a folder");
        let args = Args {
            folder: folder.path().to_owned(),
        };
        execute(&args).expect("written");
        let page = |name: &str| fs::read_to_string(folder.path().join(name)).expect("a page");
        for name in [
            "walrelay.1",
            "walrelay-run.1",
            "walrelay-dead-letters-list.1",
        ] {
            assert!(page(name).contains(".SH NAME\n"), "{name}");
            assert!(!page(name).contains("Examples:"), "{name}");
        }
        assert!(page("walrelay-verify.1").contains(".TP\n\\fBmissing\\fR\n"));
        assert!(page("walrelay-run.1").contains(".SH \"EXIT STATUS\"\nExit code 0"));
    }
}
