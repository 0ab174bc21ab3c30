//! `walrelay config`: the configuration that a command would run with, and where it comes from.
//!
//! In: what was loaded. Out: each value with its source, as TOML that can be pasted into a file, or
//! as JSON. Guarantee: secrets are masked before they come here.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use super::asyncapi;
use super::exit::Exit;
use super::flags::{AllFlags, KeyFlags as _};
use super::stdout;
use crate::config::keys::KEYS;
use crate::config::origin::ValueOrigin;
use crate::config::{Key, Loaded, Shown};

const EXAMPLES: &str = "\
Examples:
  walrelay config show                            each value and where it comes from
  walrelay config show --hold-back 0s             with a flag over environment and file
  walrelay config show --json | jq .values
  walrelay config check --config staging.toml     exit code 0 if it can be used, else 2
  walrelay config keys                            every key, and what it is for
  walrelay config asyncapi > asyncapi.json        subject, headers and body of what is published";

/// Show or check the configuration
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,

    #[command(flatten)]
    keys: AllFlags,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print each value with its source, secrets masked
    Show {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check the configuration without connecting anywhere
    Check,
    /// Print what is published as an AsyncAPI 3.0 document
    Asyncapi,
    /// Print every key with its default, its variable, its flag and what it is for, as Markdown
    Keys,
}

impl Args {
    /// The keys that were given as flags.
    pub(super) fn given(&self) -> Vec<(Key, String)> {
        self.keys.given()
    }
}

/// Prints the configuration; that it was loaded is the check.
///
/// # Errors
/// Where standard output cannot be written.
pub fn execute(args: &Args, loaded: &Loaded) -> Result<Exit, anyhow::Error> {
    let text = match &args.action {
        Action::Show { json: true } => format!("{:#}\n", as_json(loaded)),
        Action::Show { json: false } => as_toml(loaded),
        Action::Asyncapi => format!("{:#}\n", asyncapi::document(loaded.lane()?)),
        Action::Keys => keys(),
        Action::Check => format!("The configuration can be used ({}).\n", file_text(loaded)),
    };
    stdout::write(&text)?;
    Ok(Exit::Done)
}

/// All keys, a table for each section of the file.
fn keys() -> String {
    let mut text = "# All keys\n\nMade by `walrelay config keys`. What they are for together: [configuration](configuration.md).\n".to_owned();
    let mut section = Some("");
    for entry in KEYS {
        if entry.section != section {
            section = entry.section;
            let title = section.map_or("At the top".to_owned(), |name| format!("`[{name}]`"));
            let _ = write!(
                text,
                "\n## {title}\n\n| key | default | variable | flag | what it is for |\n|---|---|---|---|---|\n"
            );
        }
        let code = |value: &str| match value {
            "" => "empty".to_owned(),
            value => format!("`{value}`"),
        };
        let file = match entry.has_file_variable() {
            true => ", `…_FILE`",
            false => "",
        };
        let or = entry
            .fallback
            .map_or_else(String::new, |name| format!(", else `{name}`"));
        let _ = writeln!(
            text,
            "| `{}` | {} | `{}`{file}{or} | {} | {} |",
            entry.name,
            entry.default.map_or_else(String::new, code),
            entry.variable(),
            entry.flag.map_or_else(String::new, code),
            entry.key.about(),
        );
    }
    text
}

fn file_text(loaded: &Loaded) -> String {
    match &loaded.file {
        Some(path) => path.display().to_string(),
        None => "no file".to_owned(),
    }
}

fn nats_text(loaded: &Loaded) -> String {
    let servers = loaded.lanes[0]
        .nats
        .connection
        .servers
        .iter()
        .map(ToString::to_string);
    servers.collect::<Vec<_>>().join(",")
}

/// Dotted keys, so that each line stands alone, with the source as a comment.
fn as_toml(loaded: &Loaded) -> String {
    let lines: Vec<(String, String)> = KEYS
        .iter()
        .map(
            |entry| match loaded.values.iter().find(|shown| shown.key == entry.key) {
                Some(Shown { text, source, .. }) => {
                    let quoted = toml::Value::from(text.as_str());
                    (format!("{} = {quoted}", entry.path()), source.to_string())
                }
                None => (
                    format!("# {} =", entry.path()),
                    format!("not set, {}", entry.variable()),
                ),
            },
        )
        .collect();
    // Long values do not push the sources of the others out of sight.
    let width = lines
        .iter()
        .map(|(line, _)| line.chars().count())
        .filter(|width| *width <= 60)
        .max()
        .unwrap_or(0);
    let mut text = format!("# {}\n", file_text(loaded));
    let conninfo = &loaded.lanes[0].postgres.conninfo;
    let _ = writeln!(text, "# {conninfo} -> {}", nats_text(loaded));
    for (line, source) in lines {
        let _ = writeln!(text, "{line:width$}  # {source}");
    }
    text
}

fn as_json(loaded: &Loaded) -> Json {
    let values = loaded.values.iter().map(
        |Shown {
             key, text, source, ..
         }| {
            (
                key.path(),
                json!({ "value": text, "source": source_json(source) }),
            )
        },
    );
    json!({
        "file": loaded.file.as_ref().map(|path| path.display().to_string()),
        "postgres": loaded.lanes[0].postgres.conninfo.to_string(),
        "nats": nats_text(loaded),
        "values": values.collect::<serde_json::Map<_, _>>(),
        "warnings": loaded.warnings,
    })
}

fn source_json(source: &ValueOrigin) -> Json {
    match source {
        ValueOrigin::Default => json!({ "kind": "default" }),
        ValueOrigin::FromName => json!({ "kind": "default", "from": "name" }),
        ValueOrigin::FromPreset => json!({ "kind": "default", "from": "preset" }),
        ValueOrigin::File { path, line } => {
            json!({ "kind": "file", "path": path.display().to_string(), "line": line })
        }
        ValueOrigin::Context(path) => {
            json!({ "kind": "context", "path": path.display().to_string() })
        }
        ValueOrigin::Fallback(name) | ValueOrigin::Variable(name) => {
            json!({ "kind": "env", "name": name })
        }
        ValueOrigin::Flag(flag) => json!({ "kind": "flag", "name": flag }),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_of_all_keys_is_what_the_command_prints() {
        let page = std::fs::read_to_string("docs/configuration-keys.md").expect("the page");
        assert_eq!(
            page,
            super::keys(),
            "walrelay config keys > docs/configuration-keys.md"
        );
    }
}
