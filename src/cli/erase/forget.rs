//! The aggregate's id in command lines that others have left in their leases.
//!
//! In: a line as it was typed. Out: the line without the id. Guarantee: what is left can be typed again once the id is put in its place.

use super::Erasing;
use super::aggregate::{Shown, shown_anywhere};
use crate::cli::command_line::{quoted, words};
use crate::relay::bulk_work::NOT_KEPT;

/// Its value is such an id.
const ID_FLAG: &str = "--aggregate-id";
/// Flags whose values may have such an id among other text. Elsewhere a short one may be a part of something else.
const TEXT_FLAGS: [&str; 2] = ["--where", "--set"];

/// How the id may be written.
#[derive(Debug)]
pub(super) struct Forget(Vec<Shown>);

impl Forget {
    pub(super) fn of(erasing: &[Erasing<'_>]) -> Self {
        let own = erasing.iter().map(|lane| lane.id.shown());
        let given = erasing.first().map(|lane| &lane.args.aggregate_id);
        let given = given.map(|given| shown_anywhere(given));
        Forget(own.chain(given).collect())
    }

    fn is(&self, text: &str) -> bool {
        self.0.iter().any(|shown| shown.is(text))
    }

    /// What stays of a line; none where it was about no other aggregate, so that nothing is left to do for it.
    pub(super) fn line(&self, line: &str) -> Option<String> {
        let (mut own, mut others) = (0, 0);
        let mut flag = String::new();
        let mut kept = Vec::new();
        for word in words(line) {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (Some(name.to_owned()), value),
                _ => (None, &*word),
            };
            let of_flag = name.as_deref().unwrap_or(&flag);
            let value = match of_flag {
                ID_FLAG if self.is(value) => {
                    own += 1;
                    NOT_KEPT.to_owned()
                }
                ID_FLAG => {
                    others += 1;
                    value.to_owned()
                }
                _ if TEXT_FLAGS.contains(&of_flag) => self.without(value),
                _ => value.to_owned(),
            };
            kept.push(quoted(&match &name {
                Some(name) => format!("{name}={value}"),
                None => value,
            }));
            flag = word;
        }
        (own == 0 || others > 0).then(|| kept.join(" "))
    }

    /// A text without the ids in it.
    fn without(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // Those that have blanks or quotes, as SQL has them and as they are.
        for shown in self.0.iter().flat_map(|shown| &shown.texts) {
            if shown.contains(ends_token) {
                text = text.replace(&shown.replace('\'', "''"), NOT_KEPT);
                text = text.replace(shown, NOT_KEPT);
            }
        }
        let mut kept = String::new();
        for part in text.split_inclusive(ends_token) {
            let token = part.trim_end_matches(ends_token);
            match self.is(token) {
                true => kept += NOT_KEPT,
                false => kept += token,
            }
            kept += &part[token.len()..];
        }
        kept
    }
}

fn ends_token(c: char) -> bool {
    c.is_whitespace() || "'\"=,();".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0192f7a0-0000-7000-8000-00000000000a";

    fn is_left(id: &str, typed: &[&str], expected: Option<&[&str]>) {
        let line = |typed: &[&str]| {
            let quoted: Vec<String> = typed.iter().map(|word| quoted(word)).collect();
            quoted.join(" ")
        };
        let left = Forget(vec![shown_anywhere(id)]).line(&line(typed));
        assert_eq!(left, expected.map(line), "{id} {typed:?}");
    }

    #[test]
    fn an_id_is_taken_out_of_the_lines_of_others() {
        let other = ["replay", "--from", "0/7", "--aggregate-id", "b"];
        is_left(ID, &other, Some(&other));
        let both = [&other[..], &["--aggregate-id", ID, "--subject", "a b"]].concat();
        let left = [&other[..], &["--aggregate-id", "<ID>", "--subject", "a b"]];
        is_left(ID, &both, Some(&left.concat()));
        let in_one = format!("--aggregate-id={ID}");
        let once_more = [&both[..], &[&in_one]].concat();
        let left = [&left.concat()[..], &["--aggregate-id=<ID>"]].concat();
        is_left(ID, &once_more, Some(&left));
        is_left(ID, &["replay", "--aggregate-id", ID, "--yes"], None);

        let rows = format!("who = '{ID}' OR false");
        let left = "who = '<ID>' OR false";
        for id in [ID, &ID.to_uppercase()] {
            is_left(
                id,
                &["backfill", "--where", &rows],
                Some(&["backfill", "--where", left]),
            );
        }
        is_left(
            "it's anna",
            &["backfill", "--where", "who='it''s anna'"],
            Some(&["backfill", "--where", "who='<ID>'"]),
        );
        is_left(
            "7",
            &["retry", "0/7:7", "--set=n=7", "--share", "7"],
            Some(&["retry", "0/7:7", "--set=n=<ID>", "--share", "7"]),
        );
        let others = ["backfill", "--where", "n=77"];
        is_left("7", &others, Some(&others));
    }
}
