//! The two forms of a connection string.
//!
//! In: a URI or `key=value` pairs (manual, 32.1.1). Out: parameters by name, and warnings about
//! those that are ignored. Guarantee: an error names the place, never a value that may be a
//! password.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

use super::ConninfoError;
use super::parameters::{Treatment, nearest, treatment};

/// What a connection string says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    /// libpq's parameters that take effect.
    pub(super) parameters: BTreeMap<String, String>,
    /// What was ignored, and why.
    pub(super) warnings: Vec<String>,
}

/// Reads either form.
pub(super) fn parse(text: &str) -> Result<Parsed, ConninfoError> {
    let text = text.trim();
    let mut parsed = Parsed::default();
    match split_uri(text) {
        Some((scheme, rest)) => {
            let scheme = match scheme.strip_prefix(JDBC) {
                Some(scheme) => {
                    parsed
                        .warnings
                        .push("`jdbc:` before the Postgres URL is ignored".to_owned());
                    scheme
                }
                None => scheme,
            };
            parsed.check_scheme(scheme)?;
            parsed.parse_uri(rest)?;
        }
        None => {
            for (key, value) in key_values(text)? {
                parsed.set(&key, value)?;
            }
        }
    }
    Ok(parsed)
}

/// What JDBC writes before a URL.
const JDBC: &str = "jdbc:";

/// Splits the URI form at its `://`; `None` for the other form, whose values may hold one too.
pub(super) fn split_uri(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    is_scheme(scheme.strip_prefix(JDBC).unwrap_or(scheme)).then_some((scheme, rest))
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-._".contains(c))
}

impl Parsed {
    fn check_scheme(&mut self, scheme: &str) -> Result<(), ConninfoError> {
        let (base, driver) = match scheme.split_once('+') {
            Some((base, driver)) => (base, Some(driver)),
            None => (scheme, None),
        };
        if !matches!(base, "postgres" | "postgresql") {
            return Err(ConninfoError::Scheme(scheme.to_owned()));
        }
        if let Some(driver) = driver {
            self.warnings.push(format!(
                "the driver `+{driver}` in the Postgres URL is ignored"
            ));
        }
        Ok(())
    }

    /// Reads what follows `postgres://`.
    fn parse_uri(&mut self, rest: &str) -> Result<(), ConninfoError> {
        // As libpq: credentials end at the first `@` that no `/` precedes.
        let rest = match rest.find(['@', '/']) {
            Some(at) if rest.as_bytes()[at] == b'@' => {
                let (user, password) = match rest[..at].split_once(':') {
                    Some((user, password)) => (user, Some(password)),
                    None => (&rest[..at], None),
                };
                self.set_decoded("user", user)?;
                if let Some(password) = password {
                    self.set_decoded("password", password)?;
                }
                &rest[at + 1..]
            }
            _ => rest,
        };
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let (hosts, dbname) = match rest.split_once('/') {
            Some((hosts, dbname)) => (hosts, Some(dbname)),
            None => (rest, None),
        };
        self.parse_hosts(hosts)?;
        if let Some(dbname) = dbname {
            self.set_decoded("dbname", dbname)?;
        }
        for pair in query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            let (key, value) = pair.split_once('=').ok_or(ConninfoError::QueryPair)?;
            let (key, value) = (
                decode(key, "a parameter's name")?,
                decode(value, "a parameter")?,
            );
            match (key.as_str(), value.as_str()) {
                // JDBC's, which libpq understands too.
                ("ssl", "true") => self.set("sslmode", "require".to_owned())?,
                ("ssl", "false") => self.set("sslmode", "disable".to_owned())?,
                // asyncpg's, with libpq's values.
                ("ssl", _) => self.set("sslmode", value)?,
                _ => self.set(&key, value)?,
            }
        }
        Ok(())
    }

    fn parse_hosts(&mut self, text: &str) -> Result<(), ConninfoError> {
        if text.contains('@') {
            return Err(ConninfoError::AtSign);
        }
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        for part in text.split(',') {
            let (host, port) = match part.strip_prefix('[') {
                Some(rest) => {
                    let (host, rest) = rest.split_once(']').ok_or(ConninfoError::Bracket)?;
                    match rest.strip_prefix(':') {
                        Some(port) => (host, port),
                        None if rest.is_empty() => (host, ""),
                        None => return Err(ConninfoError::Bracket),
                    }
                }
                None => part.split_once(':').unwrap_or((part, "")),
            };
            hosts.push(decode(host, "the host")?);
            ports.push(decode(port, "the port")?);
        }
        if hosts.iter().any(|host| !host.is_empty()) {
            self.set("host", hosts.join(","))?;
        }
        if ports.iter().any(|port| !port.is_empty()) {
            self.set("port", ports.join(","))?;
        }
        Ok(())
    }

    fn set_decoded(&mut self, name: &'static str, value: &str) -> Result<(), ConninfoError> {
        if value.is_empty() {
            return Ok(());
        }
        self.set(name, decode(value, name)?)
    }

    pub(super) fn set(&mut self, name: &str, value: String) -> Result<(), ConninfoError> {
        match treatment(name, &value) {
            Treatment::Used => {
                self.parameters.insert(name.to_owned(), value);
            }
            Treatment::Unused => {
                self.warnings.push(format!(
                    "the connection parameter `{name}` has no effect here"
                ));
            }
            Treatment::Foreign if name == "pgbouncer" && value == "true" => {
                self.warnings.push(
                    "the connection parameter `pgbouncer` is ignored, but replication does not pass \
                     through a pooler: give the address of Postgres itself"
                        .to_owned(),
                );
            }
            Treatment::Foreign => {
                self.warnings.push(format!(
                    "the connection parameter `{name}` belongs to a pooler or ORM and is ignored"
                ));
            }
            Treatment::Refused(why) => {
                return Err(ConninfoError::Refused {
                    name: name.to_owned(),
                    why,
                });
            }
            Treatment::Unknown => {
                return Err(ConninfoError::UnknownParameter {
                    name: name.to_owned(),
                    nearest: nearest(name),
                });
            }
        }
        Ok(())
    }
}

fn decode(text: &str, what: &'static str) -> Result<String, ConninfoError> {
    let bytes = text.as_bytes();
    let mut percents = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%');
    let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    if percents.any(|(at, _)| !hex(at + 1) || !hex(at + 2)) {
        return Err(ConninfoError::Encoding { what });
    }
    let decoded = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| ConninfoError::Encoding { what })?;
    match decoded.contains('\0') {
        true => Err(ConninfoError::Encoding { what }),
        false => Ok(decoded.into_owned()),
    }
}

/// Reads `key = 'va\'lue' …` in order.
pub(super) fn key_values(text: &str) -> Result<Vec<(String, String)>, ConninfoError> {
    let mut pairs = Vec::new();
    let mut chars = text.char_indices().peekable();
    loop {
        while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        let Some(&(start, _)) = chars.peek() else {
            return Ok(pairs);
        };
        let mut key = String::new();
        while let Some((_, c)) = chars.next_if(|(_, c)| !c.is_whitespace() && *c != '=') {
            key.push(c);
        }
        while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        if chars.next_if(|(_, c)| *c == '=').is_none() || key.is_empty() {
            return Err(ConninfoError::Equals { at: start });
        }
        while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if(|(_, c)| *c == '\'').is_some();
        let mut value = String::new();
        loop {
            match chars.next() {
                Some((_, '\'')) if quoted => break,
                Some((_, '\\')) => value.extend(chars.next().map(|(_, c)| c)),
                Some((_, c)) if c.is_whitespace() && !quoted => break,
                Some((at, '\0')) => return Err(ConninfoError::Equals { at }),
                Some((_, c)) => value.push(c),
                None if quoted => return Err(ConninfoError::Quote { at: start }),
                None => break,
            }
        }
        pairs.push((key, value));
    }
}
