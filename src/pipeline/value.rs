//! What a column's text becomes in JSON and in a header.
//!
//! In: the text form of a value and the OID of its type. Out: JSON: numbers stay numbers, truth values truth values, json
//! and jsonb their own text, byte for byte; a bytea is base64; everything else is a string. Manual: 8.1 to 8.14.

use super::bytes::{base64, id_of_bytes};
use super::envelope::{Reject, escaped, occurred_at, shown};
use super::kind::Kind;
use super::mapping::HeaderValues;

/// Appends the value as a header's value: as [`push_json`] has it, or its text, times in RFC 3339, a bytea in base64.
///
/// # Errors
/// A text that would end the header's line.
pub(crate) fn push_header(
    out: &mut Vec<u8>,
    name: &str,
    values: HeaderValues,
    kind: Kind,
    text: &[u8],
) -> Result<(), Reject> {
    let begin = out.len();
    match (values, kind) {
        (HeaderValues::Json, _) => push_json(out, kind, text),
        (_, Kind::Time) => out.extend_from_slice(&time_or_text(text)),
        (_, Kind::Bytes) => out.extend_from_slice(&base64(text)),
        _ => out.extend_from_slice(text),
    }
    let ends_line = |byte: &u8| matches!(byte, b'\r' | b'\n' | 0);
    match out[begin..].iter().any(ends_line) {
        true => Err(Reject::Header(name.to_owned())),
        false => Ok(()),
    }
}

/// Appends the value as JSON.
pub(crate) fn push_json(out: &mut Vec<u8>, kind: Kind, text: &[u8]) {
    match kind {
        Kind::Json | Kind::Integer => out.extend_from_slice(text),
        // NaN and Infinity are no JSON numbers.
        Kind::Number if is_number(text) => out.extend_from_slice(text),
        Kind::Truth => out.extend_from_slice(match text {
            // As the output function has it, or a cast to text.
            b"t" | b"true" => b"true",
            _ => b"false",
        }),
        Kind::Bytes => push_string(out, &base64(text)),
        Kind::Time => push_string(out, &time_or_text(text)),
        Kind::Text | Kind::Padded | Kind::Number | Kind::Date => push_string(out, text),
    }
}

/// Appends a JSON string.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(&escaped(text));
    out.push(b'"');
}

/// Appends an id as JSON: as [`push_json`] has it, but 16 bytes are a UUID.
pub(crate) fn push_id(out: &mut Vec<u8>, kind: Kind, text: &[u8]) {
    match kind {
        Kind::Bytes => push_string(out, &id_of_bytes(text)),
        _ => push_json(out, kind, text),
    }
}

/// A moment as the envelope writes it: RFC 3339 in UTC with microseconds.
///
/// # Errors
/// One that RFC 3339 cannot write, or that is none.
pub(crate) fn push_moment(out: &mut Vec<u8>, kind: Kind, text: &[u8]) -> Result<(), Reject> {
    match kind {
        Kind::Date => {
            let midnight = [text, b" 00:00:00"].concat();
            out.extend_from_slice(&occurred_at(&midnight).map_err(|_| no_moment(text))?);
        }
        Kind::Integer => {
            let moment = std::str::from_utf8(text)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .and_then(|ms| ms.checked_mul(1_000));
            push_unix_us(out, moment.ok_or_else(|| no_moment(text))?)?;
        }
        _ => out.extend_from_slice(&occurred_at(text)?),
    }
    Ok(())
}

/// A commit's time as [`push_moment`] has it. `us` counts from 2000-01-01 UTC.
///
/// # Errors
/// One that RFC 3339 cannot write.
pub(crate) fn push_commit_time(out: &mut Vec<u8>, us: i64) -> Result<(), Reject> {
    const EPOCHS_US: i64 = 946_684_800_000_000;
    let unix_us = us.checked_add(EPOCHS_US);
    push_unix_us(
        out,
        unix_us.ok_or_else(|| no_moment(us.to_string().as_bytes()))?,
    )
}

fn push_unix_us(out: &mut Vec<u8>, us: i64) -> Result<(), Reject> {
    use chrono::Datelike as _;
    let moment = chrono::DateTime::from_timestamp_micros(us)
        .filter(|moment| (1..=9999).contains(&moment.year()))
        .ok_or_else(|| no_moment(us.to_string().as_bytes()))?;
    let written = moment.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    out.extend_from_slice(written.as_bytes());
    Ok(())
}

fn no_moment(text: &[u8]) -> Reject {
    Reject::OccurredAt(shown(text))
}

/// Infinity, or a year that RFC 3339 cannot write, is given as Postgres has it.
fn time_or_text(text: &[u8]) -> Vec<u8> {
    occurred_at(text).map_or_else(|_| text.to_vec(), |moment| moment.to_vec())
}

fn is_number(text: &[u8]) -> bool {
    text.last().is_some_and(u8::is_ascii_digit)
}

/// Whether a text is JSON by itself.
pub(crate) fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(oid: u32, text: &str) -> String {
        let mut out = Vec::new();
        push_json(&mut out, Kind::of_type(oid), text.as_bytes());
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn each_type_has_its_json() {
        for (oid, text, expected) in [
            (16, "t", "true"),
            (16, "f", "false"),
            (17, r"\x00ff10", r#""AP8Q""#),
            (17, r"\x", r#""""#),
            (20, "-9223372036854775808", "-9223372036854775808"),
            (23, "7", "7"),
            (25, "a\"b", r#""a\"b""#),
            (114, "{\"a\" : 1}", "{\"a\" : 1}"),
            (701, "1e+300", "1e+300"),
            (701, "NaN", r#""NaN""#),
            (701, "-Infinity", r#""-Infinity""#),
            (
                1700,
                "123456789012345678901234567890.5",
                "123456789012345678901234567890.5",
            ),
            (1082, "2026-11-28", r#""2026-11-28""#),
            (
                1114,
                "2026-11-28 07:05:32.5",
                r#""2026-11-28T07:05:32.500000Z""#,
            ),
            (
                1184,
                "2026-11-28 07:05:32+00",
                r#""2026-11-28T07:05:32.000000Z""#,
            ),
            (1184, "infinity", r#""infinity""#),
            (
                2950,
                "0192f7a0-0000-7000-8000-000000000001",
                r#""0192f7a0-0000-7000-8000-000000000001""#,
            ),
            (99_999, "mood", r#""mood""#),
        ] {
            assert_eq!(json(oid, text), expected, "{oid}");
        }
    }

    #[test]
    fn sixteen_bytes_are_a_uuid() {
        let mut out = Vec::new();
        push_id(
            &mut out,
            Kind::Bytes,
            br"\x0192f7a0000070008000000000000001",
        );
        push_id(&mut out, Kind::Bytes, br"\x0192");
        push_id(&mut out, Kind::Integer, b"42");
        assert_eq!(
            String::from_utf8_lossy(&out),
            r#""0192f7a0-0000-7000-8000-000000000001""AZI="42"#
        );
    }

    #[test]
    fn moments_are_rfc_3339() {
        let moment = |kind, text: &str| {
            let mut out = Vec::new();
            push_moment(&mut out, kind, text.as_bytes())
                .map(|()| String::from_utf8(out).expect("ASCII"))
        };
        for (kind, text, expected) in [
            (
                Kind::Time,
                "2026-11-28 07:05:32.5+00",
                "2026-11-28T07:05:32.500000Z",
            ),
            (Kind::Date, "2026-11-28", "2026-11-28T00:00:00.000000Z"),
            (
                Kind::Integer,
                "1795849532123",
                "2026-11-28T07:05:32.123000Z",
            ),
            (Kind::Integer, "-1", "1969-12-31T23:59:59.999000Z"),
        ] {
            assert_eq!(moment(kind, text).as_deref(), Ok(expected));
        }
        for (kind, text) in [
            (Kind::Date, "infinity"),
            (Kind::Integer, "9223372036854775807"),
            (Kind::Integer, "x"),
            (Kind::Time, "infinity"),
        ] {
            assert_eq!(
                moment(kind, text),
                Err(Reject::OccurredAt(text.into())),
                "{text}"
            );
        }
        let mut out = Vec::new();
        push_commit_time(&mut out, 0).expect("a time");
        assert_eq!(out, b"2000-01-01T00:00:00.000000Z");
        assert!(push_commit_time(&mut out, i64::MAX).is_err());
    }

    #[test]
    fn a_header_keeps_its_line() {
        let header = |values, kind, text: &str| {
            let mut out = Vec::new();
            push_header(&mut out, "a", values, kind, text.as_bytes())
                .map(|()| String::from_utf8(out).expect("UTF-8"))
        };
        let (text, json) = (HeaderValues::Text, HeaderValues::Json);
        let ended = "x\r\nNats-Msg-Id: 1";
        for (values, kind, value, expected) in [
            (text, Kind::Text, ended, None),
            (text, Kind::Text, "é b", Some("é b")),
            (text, Kind::Truth, "t", Some("t")),
            (json, Kind::Text, ended, Some(r#""x\r\nNats-Msg-Id: 1""#)),
            (json, Kind::Text, "é b", Some("\"é b\"")),
            (json, Kind::Truth, "t", Some("true")),
            (json, Kind::Number, "1.50", Some("1.50")),
            (json, Kind::Json, "{\n}", None),
        ] {
            assert_eq!(header(values, kind, value).ok().as_deref(), expected);
        }
    }
}
