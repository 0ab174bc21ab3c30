//! The service file, `~/.pg_service.conf` (manual, 32.17).
//!
//! In: a service's name. Out: its parameters. Guarantee: a service that was named is found or is an error.

use std::fs;
use std::path::{Path, PathBuf};

use super::ConninfoError;
use super::syntax::Parsed;
use crate::environment::Environment;

/// Where most distributions compile libpq to look for the file of the whole system.
const SYSTEM_FOLDER: &str = "/etc/postgresql-common";

/// Reads the service's section: of `file` or PGSERVICEFILE if named, else of the user's file, else of the system's.
pub(super) fn read(
    name: &str,
    file: Option<&str>,
    environment: &Environment,
) -> Result<Parsed, ConninfoError> {
    let user = match file.or(environment.get("PGSERVICEFILE")) {
        Some(path) => Some(PathBuf::from(path)),
        None => environment
            .get("HOME")
            .map(|home| Path::new(home).join(".pg_service.conf")),
    };
    let folder = environment.get("PGSYSCONFDIR").unwrap_or(SYSTEM_FOLDER);
    let system = Path::new(folder).join("pg_service.conf");
    for path in user.iter().chain([&system]) {
        let Ok(text) = fs::read_to_string(path) else {
            continue;
        };
        if let Some(parsed) = section(&text, name).map_err(|why| ConninfoError::ServiceFile {
            path: path.clone(),
            why,
        })? {
            return Ok(parsed);
        }
    }
    Err(ConninfoError::Service {
        name: name.to_owned(),
        path: user.unwrap_or(system),
    })
}

/// The section's parameters; `None` where there is no such section. Of two of one name the first counts.
fn section(text: &str, name: &str) -> Result<Option<Parsed>, String> {
    let header = |line: &str| {
        line.strip_prefix('[')
            .map(|rest| rest.starts_with(&format!("{name}]")))
    };
    let mut lines = text
        .lines()
        .map(str::trim)
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    if !lines.any(|(_, line)| header(line) == Some(true)) {
        return Ok(None);
    }
    let mut parsed = Parsed::default();
    for (index, line) in lines.take_while(|(_, line)| header(line).is_none()) {
        let number = index + 1;
        let (key, value) = line
            .split_once('=')
            .ok_or_else(|| format!("line {number} has no `=`"))?;
        if matches!(key, "service" | "servicefile") {
            return Err(format!("line {number} names a further service"));
        }
        if !parsed.parameters.contains_key(key) {
            parsed
                .set(key, value.to_owned())
                .map_err(|error| format!("line {number}: {error}"))?;
        }
    }
    Ok(Some(parsed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_section_that_was_named() {
        let text = "# shared\n[a]\nhost=a.example\n\n[b]\nhost=b.example\nport=5433\nhost=later\n[c]\nhost\n[d]\nservice=a\n[e]\nhots=x\n";
        let section = |name| section(text, name);
        let b = section("b").unwrap().unwrap().parameters;
        assert_eq!(b["host"], "b.example");
        assert_eq!(b["port"], "5433");
        assert_eq!(b.len(), 2);
        assert!(section("z").unwrap().is_none());
        for (name, said) in [("c", "line 10"), ("d", "further service"), ("e", "hots")] {
            assert!(section(name).unwrap_err().contains(said), "{name}");
        }
    }
}
