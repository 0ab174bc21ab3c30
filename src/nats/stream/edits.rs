//! One command for all that `nats stream edit` mends of a stream: nobody types it once for each key.
//!
//! In: commands. Out: the same, where they edit one stream. Pure.

use std::collections::BTreeMap;

const EDIT: &str = "nats stream edit ";
const MIB: u64 = 1 << 20;

/// Gives each command that edits a stream the flags of all others that edit it.
pub fn together<'a>(commands: impl Iterator<Item = &'a mut String>) {
    let commands: Vec<_> = commands.filter(|it| it.starts_with(EDIT)).collect();
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for command in &commands {
        if let Some((stream, flags)) = command[EDIT.len()..].split_once(' ') {
            let known = all.entry(stream.to_owned()).or_default();
            flags.split(' ').for_each(|flag| add(known, flag));
        }
    }
    for command in commands {
        let stream = command[EDIT.len()..].split_once(' ');
        if let Some(flags) = stream.and_then(|(stream, _)| all.get_key_value(stream)) {
            let (stream, flags) = flags;
            *command = format!("{EDIT}{stream} {}", flags.join(" "));
        }
    }
}

/// A limit in bytes as `nats` reads one: a number without a unit has at most 31 bits there.
pub(super) fn bytes(limit: u64) -> String {
    match (i32::try_from(limit), i32::try_from(limit.div_ceil(MIB))) {
        (Ok(_), _) => limit.to_string(),
        (_, Ok(mib)) => format!("{mib}M"),
        _ => "-1".to_owned(),
    }
}

/// Of two limits the wider one counts; -1 is none.
fn add(known: &mut Vec<String>, flag: &str) {
    let limit = |flag: &str| {
        let (key, value) = flag.split_once('=')?;
        let value: i64 = match value.strip_suffix('M') {
            Some(mib) => mib.parse::<i64>().ok()?.checked_mul(MIB.cast_signed())?,
            None => value.parse().ok()?,
        };
        (key.starts_with("--max-")).then(|| (key.to_owned(), value.cast_unsigned()))
    };
    let same = |other: &&mut String| match (limit(other), limit(flag)) {
        (Some((one, _)), Some((other, _))) => one == other,
        _ => *other == flag,
    };
    match known.iter_mut().find(same) {
        Some(other) => {
            if limit(other).map(|(_, value)| value) < limit(flag).map(|(_, value)| value) {
                flag.clone_into(other);
            }
        }
        None => known.push(flag.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_command_has_the_keys_of_all() {
        let mut commands = [
            "nats stream edit A --subjects='a.>' --subjects='b'",
            "nats stream edit A --max-msgs=10",
            "nats stream edit B --max-msgs=20",
            "nats stream edit A --max-msgs=-1 --allow-fast",
            "where slot x is no more: nats stream edit A --ack",
            "nats stream rm A --force",
        ]
        .map(str::to_owned);
        together(commands.iter_mut());
        let a = "nats stream edit A --subjects='a.>' --subjects='b' --max-msgs=-1 --allow-fast";
        let b = "nats stream edit B --max-msgs=20";
        assert_eq!(commands[..4], [a, a, b, a]);
        assert!(commands[4].ends_with(" A --ack"));
        let once = commands.clone();
        together(commands.iter_mut());
        assert_eq!(commands, once);
    }
}
