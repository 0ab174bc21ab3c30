//! The password file, `~/.pgpass` (manual, 32.16).
//!
//! In: the file's text and which server, database and user are meant. Out: the password of the
//! first line that fits. Guarantee: a file that others may read is not used, as in libpq.

use std::fs;
use std::io;
use std::path::Path;

use crate::secret::Secret;

/// Largest password file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a line is compared with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) dbname: &'a str,
    pub(super) user: &'a str,
}

/// Reads the file; a file that is not there is as good as an empty one. What keeps one that is
/// there from being used becomes a warning.
pub(super) fn read(path: &Path, warnings: &mut Vec<String>) -> Option<String> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound
                && error.kind() != io::ErrorKind::NotADirectory
            {
                warnings.push(format!(
                    "password file {} is not used: {error}",
                    path.display()
                ));
            }
            return None;
        }
    };
    let problem = if !metadata.is_file() {
        Some("it is not a plain file".to_owned())
    } else if others_may_read(&metadata) {
        Some("others may read it; mend it with chmod 0600".to_owned())
    } else if metadata.len() > FILE_BYTES_MAX {
        Some(format!("it is larger than {FILE_BYTES_MAX} bytes"))
    } else {
        match fs::read_to_string(path) {
            Ok(text) => return Some(text),
            Err(error) => Some(error.to_string()),
        }
    };
    let problem = problem.unwrap_or_default();
    warnings.push(format!(
        "password file {} is not used: {problem}",
        path.display()
    ));
    None
}

#[cfg(unix)]
fn others_may_read(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    metadata.permissions().mode() & 0o077 != 0
}

#[cfg(not(unix))]
fn others_may_read(_: &fs::Metadata) -> bool {
    false
}

/// The password of the first line that fits.
pub(super) fn find(text: &str, wanted: Wanted<'_>) -> Option<Secret> {
    let port = wanted.port.to_string();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let rest = after_field(line, wanted.host)?;
            let rest = after_field(rest, &port)?;
            let rest = after_field(rest, wanted.dbname)?;
            let rest = after_field(rest, wanted.user)?;
            Some(unescape(rest))
                .filter(|password| !password.is_empty())
                .map(Secret::new)
        })
}

/// What follows the first field and its colon, if that field is `*` or, unescaped, `wanted`.
fn after_field<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut wanted = wanted.chars();
    let mut chars = line.char_indices();
    loop {
        let c = match chars.next()?.1 {
            ':' => return wanted.next().is_none().then_some(chars.as_str()),
            '\\' => chars.next()?.1,
            c => c,
        };
        if wanted.next() != Some(c) {
            return None;
        }
    }
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(chars.next().unwrap_or('\\')),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'_> = Wanted {
        host: "db.example",
        port: 5432,
        dbname: "app",
        user: "relay",
    };

    #[test]
    fn finds_the_first_line_that_fits() {
        for (text, expected) in [
            ("db.example:5432:app:relay:pw", Some("pw")),
            ("*:*:*:*:any", Some("any")),
            (
                "other:5432:app:relay:no\n*:5432:*:relay:yes\n*:*:*:*:later\n",
                Some("yes"),
            ),
            (
                "# db.example:5432:app:relay:comment\ndb.example:5432:app:relay:real",
                Some("real"),
            ),
            ("db.example:5432:app:relay:p\\:w\\\\d", Some("p:w\\d")),
            ("db.example:5432:app:relay:with:colon", Some("with:colon")),
            ("db.example:5432:app:relay:crlf\r\n", Some("crlf")),
            ("d\\b.example:5432:app:relay:escaped", Some("escaped")),
            ("db.example:5433:app:relay:pw", None),
            ("db.example:5432:apple:relay:pw", None),
            ("db.example:5432:ap:relay:pw", None),
            ("db.example:5432:app:relay", None),
            ("db.example:5432:app:relay:", None),
            ("**:5432:app:relay:pw", None),
            ("", None),
            ("\\", None),
        ] {
            assert_eq!(
                find(text, WANTED).as_ref().map(Secret::expose),
                expected,
                "{text:?}"
            );
        }
    }

    #[test]
    fn fields_are_unescaped_before_they_are_compared() {
        let wanted = Wanted {
            host: "::1",
            port: 5432,
            dbname: "a\\b",
            user: "*",
        };
        let password = find("\\:\\:1:5432:a\\\\b:\\*:pw", wanted);
        assert_eq!(password, Some(Secret::new("pw")));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_may_read_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgpass");
        fs::write(&path, "*:*:*:*:pw\n").unwrap();
        for (mode, used) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let mut warnings = Vec::new();
            assert_eq!(read(&path, &mut warnings).is_some(), used, "{mode:o}");
            assert_eq!(warnings.is_empty(), used, "{mode:o}");
        }
        let mut warnings = Vec::new();
        assert_eq!(read(&folder.path().join("missing"), &mut warnings), None);
        assert_eq!(read(folder.path(), &mut warnings), None);
        assert_eq!(warnings.len(), 1, "only the folder is worth a warning");
    }
}
