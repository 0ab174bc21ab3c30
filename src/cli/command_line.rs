//! The command line of this process, as it can be typed again.
//!
//! In: the arguments. Out: one line for a POSIX shell. Guarantee: no password and no token in it: whoever may read it need not
//! have these.

/// Flags whose values may have a secret.
const WITH_SECRETS: [&str; 3] = ["--database-url", "--nats-url", "--to-nats"];

/// The command line of this process.
pub(super) fn typed() -> String {
    let arguments = std::env::args_os().skip(1);
    of(arguments.map(|argument| argument.to_string_lossy().into_owned()))
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

/// For a POSIX shell.
pub(super) fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match !argument.is_empty() && argument.chars().all(is_plain) {
        true => argument.to_owned(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arguments: &[&str]) -> String {
        of(arguments.iter().map(|&argument| argument.to_owned()))
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
