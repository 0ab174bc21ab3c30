//! What a user may not do: the server's `-ERR 'Permissions Violation …'`, which is all that tells of it.
//!
//! In: the text of a -ERR. Out: a [`Denial`] that names the permission to add. A request that is denied gets no answer, so
//! whoever waits for one must look at these as well.

use super::filters::covers;
use std::fmt;

/// Parts of the API's subjects behind which the stream stands, and then a name that is made anew each time.
const NAMED_ANEW: [&str; 4] = [
    "CONSUMER.CREATE.",
    "CONSUMER.MSG.NEXT.",
    "CONSUMER.INFO.",
    "CONSUMER.DELETE.",
];

/// A subject that the user may not use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Denial {
    /// Which of the two lists of permissions lacks it.
    pub right: Right,
    /// As the server names it.
    pub subject: String,
    /// The narrowest permission that suffices.
    pub permission: String,
}

/// What is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// To publish.
    Publish,
    /// To subscribe.
    Subscribe,
}

impl Denial {
    /// Reads the text of a -ERR; `None` where it is about something else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Denial> {
        let rest = text.trim().strip_prefix("nats: ").unwrap_or(text.trim());
        let rest = strip_ignoring_case(rest, "permissions violation for ")?;
        let right = match rest.split_ascii_whitespace().next()? {
            word if word.eq_ignore_ascii_case("publish") => Right::Publish,
            word if word.eq_ignore_ascii_case("subscription") => Right::Subscribe,
            _ => return None,
        };
        // A queue's name may follow the subject.
        let subject = rest.split('"').nth(1)?.to_owned();
        Some(Denial {
            right,
            permission: permission(right, &subject),
            subject,
        })
    }

    /// The same where `events` covers the subject: one permission for all events.
    #[must_use]
    pub(crate) fn among(mut self, events: &str) -> Denial {
        if self.right == Right::Publish && covers(events, &self.subject) {
            self.permission = events.to_owned();
        }
        self
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, list, flag) = match self.right {
            Right::Publish => ("publish", "publish", "--allow-pub"),
            Right::Subscribe => ("subscribe", "subscribe", "--allow-sub"),
        };
        // The name of an inbox is another one at each try.
        let subject = match self.right {
            Right::Publish => &self.subject,
            Right::Subscribe => &self.permission,
        };
        write!(
            f,
            "permission denied to {verb} to {}: add \"{permission}\" to {list}.allow of the NATS user (with nsc: {flag} \
             \"{permission}\"), and have no deny cover it",
            subject.escape_debug(),
            permission = self.permission.escape_debug(),
        )
    }
}

fn strip_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix)
        .then(|| &text[prefix.len()..])
}

fn permission(right: Right, subject: &str) -> String {
    if right == Right::Subscribe {
        // An inbox: its last words are made anew for each connection.
        return match subject.rsplit_once('.') {
            Some((inbox, ">" | "*")) => match inbox.rsplit_once('.') {
                Some((prefix, _)) => format!("{prefix}.>"),
                None => subject.to_owned(),
            },
            _ => subject.to_owned(),
        };
    }
    for action in NAMED_ANEW {
        if let Some(at) = subject.find(action) {
            let (head, names) = subject.split_at(at + action.len());
            // The stream alone where the server chooses the name.
            if let Some((stream, _)) = names.split_once('.') {
                return format!("{head}{stream}.>");
            }
        }
    }
    subject.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (Right, String) {
        let denial = Denial::parse(text).expect(text);
        (denial.right, denial.permission)
    }

    #[test]
    fn the_servers_words_name_the_permission() {
        for (text, right, permission) in [
            (
                r#"Permissions Violation for Publish to "$JS.API.STREAM.INFO.OUTBOX""#,
                Right::Publish,
                "$JS.API.STREAM.INFO.OUTBOX",
            ),
            (
                r#"nats: permissions violation for publish to "walrelay.lane.OUTBOX.s""#,
                Right::Publish,
                "walrelay.lane.OUTBOX.s",
            ),
            (
                r#"Permissions Violation for Publish to "$JS.hub.API.CONSUMER.CREATE.OUTBOX.x7.outbox.>""#,
                Right::Publish,
                "$JS.hub.API.CONSUMER.CREATE.OUTBOX.>",
            ),
            (
                r#"Permissions Violation for Publish to "$JS.API.CONSUMER.CREATE.OUTBOX""#,
                Right::Publish,
                "$JS.API.CONSUMER.CREATE.OUTBOX",
            ),
            (
                r#"Permissions Violation for Subscription to "_INBOX.Ab3.>""#,
                Right::Subscribe,
                "_INBOX.>",
            ),
            (
                r#"Permissions Violation for Subscription to "my.inbox.Ab3.*" using queue "q""#,
                Right::Subscribe,
                "my.inbox.>",
            ),
        ] {
            assert_eq!(of(text), (right, permission.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_said_of_an_inbox_is_the_same_at_each_try() {
        let said = |inbox: &str| {
            let text = format!("Permissions Violation for Subscription to \"{inbox}.>\"");
            Denial::parse(&text).expect("a denial").to_string()
        };
        assert_eq!(said("_INBOX.Ab3"), said("_INBOX.Xy9"));
        assert!(said("_INBOX.Ab3").contains("_INBOX.>"));
    }

    #[test]
    fn other_words_are_no_denial() {
        for text in [
            "Authorization Violation",
            "Permissions Violation",
            "Permissions Violation for Publish to x",
            "Permissions Violation for ",
            "",
            "é",
        ] {
            assert_eq!(Denial::parse(text), None, "{text}");
        }
    }

    #[test]
    fn events_need_one_permission() {
        let denial = |subject: &str| {
            let text = format!("Permissions Violation for Publish to \"{subject}\"");
            Denial::parse(&text).unwrap().among("outbox.>").permission
        };
        assert_eq!(denial("outbox.lesson.published.v1"), "outbox.>");
        assert_eq!(denial("outbox"), "outbox");
        assert_eq!(denial("outboxes.a"), "outboxes.a");
    }

    #[test]
    fn a_subject_is_shown_without_what_a_terminal_would_obey() {
        let text = "Permissions Violation for Publish to \"a\u{1b}[31m\"";
        let shown = Denial::parse(text).unwrap().to_string();
        assert!(!shown.contains('\u{1b}'), "{shown}");
    }
}
