//! Durations and sizes as people write them.
//!
//! In: `130s`, `2m`, `8MiB`. Out: the value, if it is one.

use std::time::Duration;

/// Reads a duration such as `130s`, `2m 10s` or `0s`; a bare `0` needs no unit.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    match text.trim() {
        "0" => Some(Duration::ZERO),
        text => humantime::parse_duration(text).ok(),
    }
}

/// Reads a size such as `8MiB`, `1 GB` or `65536`, in bytes.
pub(crate) fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Writes a size in the largest binary unit that divides it.
pub(crate) fn format_bytes(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units
        .iter()
        .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
    {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations() {
        for (text, seconds) in [
            ("130s", 130.0),
            ("2m", 120.0),
            ("2m 10s", 130.0),
            ("0s", 0.0),
            ("0", 0.0),
            ("250ms", 0.25),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_secs_f64(seconds)),
                "{text}"
            );
        }
        for text in ["", "130", "-1s", "1 parsec", "s", "99999999999999999999y"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn reads_and_writes_sizes() {
        for (text, bytes) in [
            ("8MiB", 8 << 20),
            ("1 GiB", 1 << 30),
            ("64KiB", 65536),
            ("2MB", 2_000_000),
            ("7", 7),
            ("7B", 7),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "MiB",
            "8M",
            "8mib",
            "-1",
            "1.5MiB",
            "99999999999GiB",
            "999999999999999999999",
        ] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
        for (bytes, text) in [
            (8 << 20, "8MiB"),
            (1 << 30, "1GiB"),
            (65536, "64KiB"),
            (7, "7B"),
            (0, "0B"),
            (1025, "1025B"),
        ] {
            assert_eq!(format_bytes(bytes), text);
        }
    }
}
