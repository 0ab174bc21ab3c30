//! A connection string as one may print it.

use super::syntax::{key_values, parse, split_uri};
use crate::secret::MASK;

/// The same connection string with its passwords as `***`; wholly `***` where it cannot be read.
pub fn mask(text: &str) -> String {
    match split_uri(text.trim()) {
        Some((scheme, rest)) => format!("{scheme}://{}", mask_uri(rest)),
        None => mask_pairs(text),
    }
}

/// Whether a connection string has a password of its own.
pub(crate) fn has_password(text: &str) -> bool {
    parse(text).is_ok_and(|parsed| {
        parsed
            .parameters
            .get("password")
            .is_some_and(|password| !password.is_empty())
    })
}

fn mask_uri(rest: &str) -> String {
    // The last `@` of what can be credentials: rather too much is hidden than too little.
    let (before_query, query) = match rest.split_once('?') {
        Some((before, query)) if !query.contains('@') || before.contains('@') => {
            (before, Some(query))
        }
        _ => (rest, None),
    };
    let place = match before_query.rsplit_once('@') {
        Some((credentials, place)) => match credentials.split_once(':') {
            Some((user, _)) => format!("{user}:{MASK}@{place}"),
            None => format!("{credentials}@{place}"),
        },
        None => before_query.to_owned(),
    };
    let Some(query) = query else { return place };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((key, _)) if is_secret(key) => format!("{key}={MASK}"),
        _ => pair.to_owned(),
    });
    format!("{place}?{}", pairs.collect::<Vec<_>>().join("&"))
}

fn mask_pairs(text: &str) -> String {
    let Ok(pairs) = key_values(text) else {
        return MASK.to_owned();
    };
    let shown = pairs.into_iter().map(|(key, value)| match is_secret(&key) {
        true => format!("{key}={MASK}"),
        false if value.is_empty() || value.contains([' ', '\'', '\\']) => {
            format!(
                "{key}='{}'",
                value.replace('\\', "\\\\").replace('\'', "\\'")
            )
        }
        false => format!("{key}={value}"),
    });
    shown.collect::<Vec<_>>().join(" ")
}

fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    key.contains("pass") && key != "passfile" || key.contains('%') || key.starts_with("scram_")
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    use super::*;
    use crate::environment::Environment;
    use crate::postgres::conninfo::{Conninfo, PasswordSource};

    #[test]
    fn hides_passwords_and_nothing_else() {
        for (text, expected) in [
            ("postgres://u@h/d", "postgres://u@h/d"),
            (
                "postgres://u:p?w@h/d?application_name=x",
                "postgres://u:***@h/d?application_name=x",
            ),
            (
                "postgres://u:p@h/d?options=a@b",
                "postgres://u:***@h/d?options=a@b",
            ),
            (
                "postgres://h/d?user=u&password=p&sslpassword=q",
                "postgres://h/d?user=u&password=***&sslpassword=***",
            ),
            (
                "host=h password='a b' dbname='c d'",
                "host=h password=*** dbname='c d'",
            ),
            ("hunter2", "***"),
            // Found by the property below: a value of the other form that looks like a URI.
            ("user='://' password=p", "user=:// password=***"),
            (
                "jdbc:postgresql://h/d?password=p",
                "jdbc:postgresql://h/d?password=***",
            ),
        ] {
            assert_eq!(mask(text), expected);
        }
    }

    proptest! {
    #[test]
    fn any_password_arrives_by_either_form_and_is_never_shown(password in "[^\0]{1,30}", user in "[a-z@:/ ]{1,9}") {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let quote = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let marked = format!("q7{password}7q");
        for text in [
            format!("postgres://{}:{}@h/d", encode(&user), encode(&marked)),
            format!("postgres://h/d?user={}&password={}", encode(&user), encode(&marked)),
            format!("host=h dbname=d user={} password={}", quote(&user), quote(&marked)),
        ] {
            let conninfo = Conninfo::resolve(Some(&text), None, &Environment::default()).unwrap().0;
            prop_assert_eq!(&conninfo.password, &PasswordSource::Given(marked.as_str().into()));
            prop_assert_eq!(&conninfo.user, &user);
            let shown = format!("{conninfo} {conninfo:?} {}", mask(&text));
            prop_assert!(!shown.contains("q7"));
        }
    }
    }
}
