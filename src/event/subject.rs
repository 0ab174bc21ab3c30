//! The subject of an event: a template filled from the row.
//!
//! In: the row's values. Out: a subject that NATS takes, or why it is none.
//! A value of a row never becomes a subject of NATS' (`$…`) or of walrelay's own (`walrelay.…`).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Longest subject in bytes. The server takes a protocol line of 4,096 bytes (`max_control_line`), and the line of
/// a published message also holds the reply subject and two lengths.
pub const SUBJECT_BYTES_MAX: usize = 3_800;

/// Longest template in bytes: it leaves the rows' values most of a subject.
const TEMPLATE_BYTES_MAX: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// A value of the row; as one token where `token` says so.
    Value {
        of: Placeholder,
        token: bool,
    },
}

/// What a placeholder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placeholder {
    /// `{id}`
    Id,
    /// `{event_type}`
    EventType,
    /// `{aggregate_id}`
    AggregateId,
    /// `{event_version}`
    EventVersion,
    /// Any other name: the column with this index in [`SubjectTemplate::columns`].
    Column(usize),
}

/// A subject template such as `outbox.{event_type}`. It begins with a fixed token, and `Display` gives its text.
///
/// A placeholder is one of the event's fields, or a column of the table. `{name:token}` makes one token of a value: each
/// run of ASCII characters other than letters, digits, `_` and `-` becomes one `_`; characters beyond ASCII stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectTemplate {
    parts: Vec<Part>,
    columns: Vec<String>,
}

/// A template that cannot become a subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A placeholder without a name, or with an unknown form behind the colon.
    #[error(
        "{{{0}}} is not a placeholder: use {{event_type}}, {{aggregate_id}}, {{event_version}}, {{id}} or a column of the \
         table, each also as {{name:token}}"
    )]
    UnknownPlaceholder(String),
    /// White space in a placeholder.
    #[error(
        "{{{0}}} has white space or a control character, which no placeholder may: rename the column, or fill one of another name"
    )]
    SpaceInPlaceholder(String),
    /// A brace without its partner.
    #[error("a brace has no partner: braces stand only around a placeholder")]
    UnbalancedBrace,
    /// Empty, or longer than a template may be.
    #[error("a template has 1 to {TEMPLATE_BYTES_MAX} bytes")]
    Length,
    /// The template must begin with fixed tokens of the events' own.
    #[error(
        "begin it with a whole token such as `outbox.`, and not with a placeholder, `$` or `walrelay.`"
    )]
    Root,
    /// No type in it to filter by.
    #[error("the template {0} does not name {{event_type}}, so no subject tells an event's type")]
    NoType(String),
    /// No subject.
    #[error(transparent)]
    Subject(#[from] SubjectError),
}

/// Why a text is no subject to publish on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// Nothing between two dots, or at an end.
    #[error("the subject has an empty token")]
    EmptyToken,
    /// White space or a control character.
    #[error("the subject has white space or a control character")]
    WhiteSpace,
    /// `*` or `>`.
    #[error("the subject has a wildcard")]
    Wildcard,
    /// NULL in the field or column of this name, which the template has.
    #[error("{{{0}}} of the subject is null")]
    Null(String),
    /// Longer than [`SUBJECT_BYTES_MAX`].
    #[error("the subject is longer than {SUBJECT_BYTES_MAX} bytes")]
    TooLong,
}

impl FromStr for SubjectTemplate {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        if text.is_empty() || text.len() > TEMPLATE_BYTES_MAX {
            return Err(TemplateError::Length);
        }
        // The server would take white space beyond ASCII; in a template it is a slip.
        let is_space = |c: char| c.is_whitespace() || c.is_control();
        if text.contains(is_space) {
            let mut inside = text.split('{').skip(1).filter_map(|it| it.split_once('}'));
            return Err(match inside.find(|(name, _)| name.contains(is_space)) {
                Some((name, _)) => TemplateError::SpaceInPlaceholder(name.to_owned()),
                None => SubjectError::WhiteSpace.into(),
            });
        }
        let mut parts = Vec::new();
        let mut columns = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            if !rest[open..].starts_with('{') {
                return Err(TemplateError::UnbalancedBrace);
            }
            if open > 0 {
                parts.push(Part::Literal(rest[..open].to_owned()));
            }
            let inner = &rest[open + 1..];
            let close = inner.find('}').ok_or(TemplateError::UnbalancedBrace)?;
            parts.push(placeholder(&inner[..close], &mut columns)?);
            rest = &inner[close + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        let template = SubjectTemplate { parts, columns };
        template.check()?;
        Ok(template)
    }
}

fn placeholder(text: &str, columns: &mut Vec<String>) -> Result<Part, TemplateError> {
    let unknown = || TemplateError::UnknownPlaceholder(text.to_owned());
    let (name, token) = match text.split_once(':') {
        Some((name, "token")) => (name, true),
        Some(_) => return Err(unknown()),
        None => (text, false),
    };
    let of = match name {
        name if name.is_empty() || name.contains('{') => return Err(unknown()),
        "id" => Placeholder::Id,
        "event_type" => Placeholder::EventType,
        "aggregate_id" => Placeholder::AggregateId,
        "event_version" => Placeholder::EventVersion,
        column => {
            columns.push(column.to_owned());
            Placeholder::Column(columns.len() - 1)
        }
    };
    Ok(Part::Value { of, token })
}

impl fmt::Display for SubjectTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Literal(literal) => f.write_str(literal),
            Part::Value { of, token } => {
                let form = if *token { ":token" } else { "" };
                write!(f, "{{{}{form}}}", self.name(*of))
            }
        })
    }
}

impl SubjectTemplate {
    fn check(&self) -> Result<(), TemplateError> {
        self.render(|_| Some(Cow::Borrowed(b"x")), &mut Vec::new())?;
        // The first token must be fixed: it is the root under which the stream takes the events.
        match self.parts.first() {
            Some(Part::Literal(first))
                if (first.contains('.') || self.parts.len() == 1)
                    && !first.starts_with('$')
                    && first != "walrelay"
                    && !first.starts_with("walrelay.") =>
            {
                Ok(())
            }
            _ => Err(TemplateError::Root),
        }
    }

    /// What a placeholder is called in the template.
    fn name(&self, of: Placeholder) -> &str {
        match of {
            Placeholder::Id => "id",
            Placeholder::EventType => "event_type",
            Placeholder::AggregateId => "aggregate_id",
            Placeholder::EventVersion => "event_version",
            Placeholder::Column(index) => &self.columns[index],
        }
    }

    /// The table's columns that it names, one for each [`Placeholder::Column`].
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(String::as_str)
    }

    /// Whether it names this field of the event.
    pub fn names(&self, placeholder: Placeholder) -> bool {
        let named = |part: &Part| matches!(part, Part::Value { of, .. } if *of == placeholder);
        self.parts.iter().any(named)
    }

    /// The template behind its fixed root, to be put under another one: `{event_type}` of `outbox.{event_type}`.
    pub fn under_root(&self) -> String {
        let text = self.to_string();
        let fixed = text.find('{').unwrap_or(text.len());
        let root = text[..fixed].rfind('.').map_or(0, |dot| dot + 1);
        text[root..].to_owned()
    }

    /// The subjects that the template can produce, as a filter: `outbox.>`.
    pub fn filter(&self) -> String {
        match &self.parts[..] {
            [Part::Literal(whole)] => whole.clone(),
            [Part::Literal(first), ..] => {
                let root = first
                    .rsplit_once('.')
                    .map_or(first.as_str(), |(root, _)| root);
                format!("{root}.>")
            }
            _ => unreachable!("check() has seen a literal first"),
        }
    }

    /// The subjects of the events of one type, as a filter: `outbox.*.order.made` of `outbox.{tenant}.{event_type}`. Any
    /// other placeholder is one token in it, or all the rest where it ends the template.
    ///
    /// # Errors
    /// [`TemplateError::NoType`] where the template does not name the type, [`TemplateError::Subject`] where the type can be
    /// in no subject.
    pub fn filter_of(&self, event_type: &str) -> Result<String, TemplateError> {
        if !self.names(Placeholder::EventType) {
            return Err(TemplateError::NoType(self.to_string()));
        }
        let mut subject = Vec::new();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => subject.extend_from_slice(literal.as_bytes()),
                Part::Value { of, token: false } if *of == Placeholder::EventType => {
                    check(event_type.as_bytes())?;
                    subject.extend_from_slice(event_type.as_bytes());
                }
                Part::Value { of, .. } if *of == Placeholder::EventType => {
                    push_token(&mut subject, event_type.as_bytes());
                }
                Part::Value { .. } => subject.push(b'*'),
            }
        }
        let subject = String::from_utf8(subject).expect("made of texts");
        // A wildcard is one only by itself.
        let token = |token| match token {
            _ if str::contains(token, '*') => "*",
            token => token,
        };
        let mut tokens: Vec<&str> = subject.split('.').map(token).collect();
        let is_open = |part: &Part| matches!(part, Part::Value { of, token: false } if *of != Placeholder::EventType);
        if self.parts.last().is_some_and(is_open) {
            tokens.pop();
            tokens.push(">");
        }
        Ok(tokens.join("."))
    }

    /// Replaces `subject` by the row's subject. `value` gives what a placeholder stands for, none for NULL.
    ///
    /// # Errors
    /// The row's values give no subject to publish on; `subject` then holds what they gave.
    #[inline]
    pub fn render<'v>(
        &self,
        value: impl Fn(Placeholder) -> Option<Cow<'v, [u8]>>,
        subject: &mut Vec<u8>,
    ) -> Result<(), SubjectError> {
        subject.clear();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => subject.extend_from_slice(literal.as_bytes()),
                Part::Value { of, token } => {
                    let null = || SubjectError::Null(self.name(*of).to_owned());
                    let value = value(*of).ok_or_else(null)?;
                    match token {
                        false => subject.extend_from_slice(&value),
                        true => push_token(subject, &value),
                    }
                }
            }
        }
        check(subject)
    }
}

/// A value as one token. Letters beyond ASCII stay: NATS takes them.
fn push_token(subject: &mut Vec<u8>, value: &[u8]) {
    let begin = subject.len();
    for &byte in value {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte >= 0x80 {
            subject.push(byte);
        } else if subject.len() == begin || subject.last() != Some(&b'_') || byte == b'_' {
            subject.push(b'_');
        }
    }
    if subject.len() == begin {
        subject.push(b'_');
    }
}

/// Whether a subject can be published on.
fn check(subject: &[u8]) -> Result<(), SubjectError> {
    if subject.len() > SUBJECT_BYTES_MAX {
        return Err(SubjectError::TooLong);
    }
    // One pass without an early end. Both ends count as a dot, so that two dots in a row are an empty token.
    let (mut found, mut empty, mut before) = (0, 0, DOT);
    for &byte in subject {
        let class = CLASSES[usize::from(byte)];
        found |= class;
        empty |= class & before & DOT;
        before = class;
    }
    if found & SPACE != 0 {
        return Err(SubjectError::WhiteSpace);
    }
    if found & WILDCARD != 0 {
        return Err(SubjectError::Wildcard);
    }
    if (empty | before) & DOT != 0 {
        return Err(SubjectError::EmptyToken);
    }
    Ok(())
}

const DOT: u8 = 1;
/// White space or a control character.
const SPACE: u8 = 2;
const WILDCARD: u8 = 4;

/// What each byte is in a subject.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte <= b' ' as usize {
        classes[byte] = SPACE;
        byte += 1;
    }
    classes[0x7f] = SPACE;
    classes[b'.' as usize] = DOT;
    classes[b'*' as usize] = WILDCARD;
    classes[b'>' as usize] = WILDCARD;
    classes
};

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, event_type: &str) -> Result<String, SubjectError> {
        let template: SubjectTemplate = template.parse().expect("a template");
        let mut subject = Vec::new();
        let value = |of| {
            Some(Cow::Borrowed(match of {
                Placeholder::Id => b"i".as_slice(),
                Placeholder::EventType => event_type.as_bytes(),
                Placeholder::AggregateId => b"a1",
                Placeholder::EventVersion => b"7",
                Placeholder::Column(_) => return None,
            }))
        };
        template
            .render(value, &mut subject)
            .map(|()| String::from_utf8(subject).expect("UTF-8"))
    }

    #[test]
    fn a_filter_of_one_type() {
        let filter = |template: &str, event_type| {
            template
                .parse::<SubjectTemplate>()
                .expect("a template")
                .filter_of(event_type)
        };
        for (template, expected) in [
            ("outbox.{event_type}", "outbox.a.b"),
            ("outbox.{event_type:token}.x", "outbox.a_b.x"),
            ("outbox.{tenant}.{event_type}.{id}", "outbox.*.a.b.>"),
            ("outbox.{event_type}.{id:token}", "outbox.a.b.*"),
            ("outbox.v{event_version}.{event_type}", "outbox.*.a.b"),
        ] {
            assert_eq!(filter(template, "a.b").as_deref(), Ok(expected));
        }
        assert_eq!(
            filter("outbox.{event_type}", "a.>"),
            Err(SubjectError::Wildcard.into())
        );
        let none = filter("outbox.{id}", "a");
        assert_eq!(none, Err(TemplateError::NoType("outbox.{id}".to_owned())));
    }

    #[test]
    fn fills_placeholders() {
        assert_eq!(
            render("outbox.{event_type}", "lesson.published.v1").as_deref(),
            Ok("outbox.lesson.published.v1")
        );
        assert_eq!(
            render("a.{aggregate_id}.{event_type}-{event_version}", "t").as_deref(),
            Ok("a.a1.t-7")
        );
        assert_eq!(render("fixed.one", "t").as_deref(), Ok("fixed.one"));
    }

    #[test]
    fn a_value_becomes_one_token_where_it_is_to() {
        let token = |value: &str| render("a.{event_type:token}", value);
        for (value, expected) in [
            ("lesson.published v1", "a.lesson_published_v1"),
            ("a-b_c", "a.a-b_c"),
            ("  >*.", "a._"),
            ("", "a._"),
            ("prüfung!", "a.prüfung_"),
        ] {
            assert_eq!(token(value).as_deref(), Ok(expected), "{value:?}");
        }
    }

    #[test]
    fn a_null_column_gives_no_subject() {
        assert_eq!(
            render("a.{tenant}", "t"),
            Err(SubjectError::Null("tenant".to_owned()))
        );
    }

    #[test]
    fn refuses_what_nats_would_refuse() {
        let r = |event_type| render("outbox.{event_type}", event_type);
        assert_eq!(r(""), Err(SubjectError::EmptyToken));
        assert_eq!(r("a..b"), Err(SubjectError::EmptyToken));
        assert_eq!(r(".a"), Err(SubjectError::EmptyToken));
        assert_eq!(r("a."), Err(SubjectError::EmptyToken));
        assert_eq!(r("a b"), Err(SubjectError::WhiteSpace));
        assert_eq!(r("a\r\nb"), Err(SubjectError::WhiteSpace));
        assert_eq!(r("*"), Err(SubjectError::Wildcard));
        assert_eq!(r("a.>"), Err(SubjectError::Wildcard));
        let long = "x".repeat(4_000);
        assert_eq!(r(&long), Err(SubjectError::TooLong));
        assert_eq!(r("ünï"), Ok("outbox.ünï".to_owned()));
    }

    #[test]
    fn refuses_templates_that_cannot_give_subjects_of_their_own() {
        let placeholder = |name: &str| TemplateError::UnknownPlaceholder(name.to_owned());
        let long = format!("a.{}", "x".repeat(TEMPLATE_BYTES_MAX - 1));
        for (text, expected) in [
            ("", TemplateError::Length),
            (&*long, TemplateError::Length),
            ("{event_type}", TemplateError::Root),
            ("x{event_type}", TemplateError::Root),
            ("$JS.{event_type}", TemplateError::Root),
            ("walrelay.{event_type}", TemplateError::Root),
            ("walrelay", TemplateError::Root),
            ("a.{event_type:slug}", placeholder("event_type:slug")),
            ("a.{:token}", placeholder(":token")),
            ("a.{}", placeholder("")),
            ("a.{{event_type}}", placeholder("{event_type")),
            ("a.{event_type", TemplateError::UnbalancedBrace),
            ("a}.b", TemplateError::UnbalancedBrace),
            (".a", SubjectError::EmptyToken.into()),
            ("a.", SubjectError::EmptyToken.into()),
            ("a..{event_type}", SubjectError::EmptyToken.into()),
            ("a. {event_type}", SubjectError::WhiteSpace.into()),
            ("a\u{a0}b", SubjectError::WhiteSpace.into()),
            ("a\u{7f}", SubjectError::WhiteSpace.into()),
            ("a.*", SubjectError::Wildcard.into()),
            ("a.>", SubjectError::Wildcard.into()),
        ] {
            assert_eq!(text.parse::<SubjectTemplate>(), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn display_gives_the_text() {
        for text in [
            "a",
            "walrelays.x",
            "a$b",
            "a.{aggregate_id}.{event_type}-v{event_version}",
            "a.{aggregatetype}.{id}.{kind:token}",
        ] {
            let template: SubjectTemplate = text.parse().expect("a template");
            assert_eq!(template.to_string(), text);
        }
    }

    #[test]
    fn filter_covers_the_template() {
        let filter = |text: &str| text.parse::<SubjectTemplate>().expect("template").filter();
        assert_eq!(filter("outbox.{event_type}"), "outbox.>");
        assert_eq!(filter("a.b.{event_type}.c"), "a.b.>");
        assert_eq!(filter("a.b-{event_type}"), "a.>");
        assert_eq!(filter("a.b"), "a.b");
    }
}
