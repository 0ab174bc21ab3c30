//! The command line of this process, as it can be typed again, and those of other commands beside it.
//!
//! In: the arguments. Out: one line for a POSIX shell. Guarantees: no password and no token in it: whoever may read it need not
//! have these; a command that a person is to type is about the same lane as this one, and about the same rows.

use chrono::{DateTime, SecondsFormat, Utc};

use crate::relay::bulk_work::NOT_KEPT;

/// Flags whose values may have a secret.
const WITH_SECRETS: [&str; 3] = ["--database-url", "--nats-url", "--to-nats"];

/// Flags that say which lane is meant: each takes a value, and each command of a lane takes them.
const OF_LANE: [&str; 8] = [
    "--config",
    "--name",
    "--database-url",
    "--slot",
    "--publication",
    "--share",
    "--nats-url",
    "--stream",
];

/// The command line of this process.
pub(super) fn typed() -> String {
    of(arguments())
}

/// The same without the values of a flag: what is to be erased is not kept.
pub(super) fn typed_without_value(of_flag: &str) -> String {
    of(without_value(arguments(), of_flag))
}

/// The same without a flag that takes no value, and with more at its end.
pub(super) fn typed_anew(without: &str, more: &[&str]) -> String {
    let typed = arguments().filter(|argument| argument != without);
    of(typed.chain(more.iter().map(|&more| more.to_owned())))
}

/// The backfill of these rows, for the lane of this process.
pub(super) fn backfill(since: Option<DateTime<Utc>>, only: Option<&str>, unjudged: bool) -> String {
    let mut line = vec!["backfill".to_owned()];
    if unjudged {
        line.push("--unjudged".to_owned());
    }
    if let Some(since) = since {
        let since = since.to_rfc3339_opts(SecondsFormat::AutoSi, true);
        line.extend(["--since".to_owned(), since]);
    }
    if let Some(only) = only {
        line.extend(["--where".to_owned(), only.to_owned()]);
    }
    line.extend(of_lane(arguments()));
    of(line.into_iter())
}

/// A command of `nats`, of these servers without a login where they are not those of the configuration: whoever types it has often the
/// latter in the environment, and a stream of the same name there.
pub(super) fn nats(elsewhere: Option<&str>, command: &str) -> String {
    let server = elsewhere.map_or_else(String::new, |servers| {
        format!(
            " --server {}",
            quoted(&without_secrets("--nats-url", servers))
        )
    });
    format!("nats{server} {command}")
}

fn arguments() -> impl Iterator<Item = String> {
    let arguments = std::env::args_os().skip(1);
    arguments.map(|argument| argument.to_string_lossy().into_owned())
}

/// The flags among these that say which lane is meant, with their values.
fn of_lane(mut arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(argument) = arguments.next() {
        let name = argument.split('=').next().unwrap_or_default();
        if !OF_LANE.contains(&name) {
            continue;
        }
        let value = match name == argument {
            true => arguments.next(),
            false => None,
        };
        found.push(argument);
        found.extend(value);
    }
    found
}

/// With [`NOT_KEPT`] where a value of the flag stood.
fn without_value(
    arguments: impl Iterator<Item = String>,
    of_flag: &str,
) -> impl Iterator<Item = String> {
    let mut is_value = false;
    arguments.map(move |argument| {
        if std::mem::take(&mut is_value) {
            return NOT_KEPT.to_owned();
        }
        is_value = argument == of_flag;
        let value = argument.strip_prefix(of_flag);
        match value.is_some_and(|value| value.starts_with('=')) {
            true => format!("{of_flag}={NOT_KEPT}"),
            false => argument,
        }
    })
}

fn of(arguments: impl Iterator<Item = String>) -> String {
    let mut line = "walrelay".to_owned();
    let mut flag = None;
    for argument in arguments {
        let shown = match (flag.take(), argument.split_once('=')) {
            (Some(flag), _) => without_secrets(flag, &argument),
            (None, Some((name, value))) => match known(name) {
                Some(flag) => format!("{name}={}", without_secrets(flag, value)),
                None => argument.clone(),
            },
            (None, None) => {
                flag = known(&argument);
                argument.clone()
            }
        };
        line.push(' ');
        line.push_str(&quoted(&shown));
    }
    line
}

/// The words of a line that is made of [`quoted`] ones.
pub(super) fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut is_quoted, mut is_escaped) = (false, false);
    for c in line.chars() {
        let word = words.last_mut().expect("there is one");
        match c {
            _ if is_escaped => {
                is_escaped = false;
                word.push(c);
            }
            '\\' if !is_quoted => is_escaped = true,
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(String::new()),
            c => word.push(c),
        }
    }
    words
}

fn known(name: &str) -> Option<&'static str> {
    WITH_SECRETS.into_iter().find(|flag| *flag == name)
}

/// A URL without its password, and of one of NATS also without the user, which may be a token; of what else says "password",
/// nothing stays.
fn without_secrets(flag: &str, value: &str) -> String {
    if value.to_ascii_lowercase().contains("password") {
        return String::new();
    }
    let is_nats = flag != "--database-url";
    let urls = value.split(',').map(|url| {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        // Also where the password has signs of its own that should have been escaped.
        let Some((login, host)) = rest.rsplit_once('@') else {
            return url.to_owned();
        };
        let user = login.split(':').next().unwrap_or_default();
        let scheme = match scheme {
            "" => String::new(),
            scheme => format!("{scheme}://"),
        };
        match is_nats {
            true => format!("{scheme}{host}"),
            false => format!("{scheme}{user}@{host}"),
        }
    });
    urls.collect::<Vec<_>>().join(",")
}

/// For a POSIX shell, which takes the place of what is not kept for no value.
pub(super) fn quoted(argument: &str) -> String {
    let before = argument.strip_suffix(NOT_KEPT);
    if before.is_some_and(|before| before.is_empty() || before == "--aggregate-id=") {
        return argument.to_owned();
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match !argument.is_empty() && argument.chars().all(is_plain) {
        true => argument.to_owned(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;
    use crate::cli::flags::StreamFlags;

    fn line(arguments: &[&str]) -> String {
        of(arguments.iter().map(|&argument| argument.to_owned()))
    }

    #[test]
    fn a_command_for_another_nats_names_it() {
        assert_eq!(nats(None, "stream rm A"), "nats stream rm A");
        let there = "nats://me:secret@a:4222,tls://[::1]:4222";
        let shown = "nats --server 'nats://a:4222,tls://[::1]:4222' stream rm A";
        assert_eq!(nats(Some(there), "stream rm A"), shown);
    }

    #[test]
    fn what_was_typed_can_be_typed_again() {
        assert_eq!(
            line(&["backfill", "--where", "dispatched_at IS NULL", "--json"]),
            "walrelay backfill --where 'dispatched_at IS NULL' --json"
        );
        assert_eq!(line(&["x", "it's", ""]), r"walrelay x 'it'\''s' ''");
    }

    #[test]
    fn a_line_has_the_words_that_were_typed() {
        let typed = ["backfill", "--where", "it's = 'a b'", "", r"\"];
        let words = words(&line(&typed));
        assert_eq!(words[0], "walrelay");
        assert_eq!(words[1..], typed);
    }

    #[test]
    fn what_is_erased_is_not_kept() {
        let without = |arguments: &[&str]| {
            let arguments = arguments.iter().map(|&argument| argument.to_owned());
            of(without_value(arguments, "--aggregate-id"))
        };
        assert_eq!(
            without(&["erase", "--aggregate-id", "a b", "--yes"]),
            "walrelay erase --aggregate-id <ID> --yes"
        );
        assert_eq!(
            without(&["erase", "--aggregate-id=a b", "--yes"]),
            "walrelay erase --aggregate-id=<ID> --yes"
        );
        assert_eq!(line(&["erase", "a = <ID>"]), "walrelay erase 'a = <ID>'");
    }

    #[test]
    fn another_command_is_about_the_same_lane() {
        let typed = [
            "--config=a.toml",
            "verify",
            "--since",
            "2026-11-01T00:00:00Z",
            "--share",
            "1",
            "-v",
            "--json",
        ];
        let found = of_lane(typed.into_iter().map(str::to_owned));
        assert_eq!(found, ["--config=a.toml", "--share", "1"]);
    }

    #[test]
    fn every_flag_of_a_lane_is_taken_along() {
        let command = StreamFlags::augment_args(clap::Command::new("x"));
        let flags = command.get_arguments().filter_map(|flag| flag.get_long());
        for flag in flags {
            assert!(OF_LANE.contains(&&*format!("--{flag}")), "{flag}");
        }
    }

    #[test]
    fn secrets_are_left_out() {
        for (argument, shown) in [
            ("nats://a:p@h:4222,nats://token@i", "nats://h:4222,nats://i"),
            ("nats://h", "nats://h"),
            ("a:p@h:4222", "h:4222"),
            ("nats://a:p@q@h", "nats://h"),
        ] {
            assert_eq!(
                line(&["move", "--to-nats", argument]),
                format!("walrelay move --to-nats {shown}")
            );
            assert_eq!(
                line(&["move", &format!("--to-nats={argument}")]),
                format!("walrelay move --to-nats={shown}")
            );
        }
        for (argument, shown) in [
            ("postgres://a:p@h/d", "postgres://a@h/d"),
            ("postgres://a@h/d", "postgres://a@h/d"),
            ("postgres://a@h/d?password=p", "''"),
            ("host=h PASSWORD = p", "''"),
        ] {
            assert_eq!(
                line(&["erase", "--database-url", argument]),
                format!("walrelay erase --database-url {shown}")
            );
        }
    }
}
