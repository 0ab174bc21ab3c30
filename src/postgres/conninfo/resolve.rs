//! Connection string, environment, password file and defaults → [`Conninfo`].
//!
//! In: what was configured and the [`Environment`]. Out: a [`Conninfo`] and warnings. Guarantee:
//! each parameter comes from the string, else from its `PG*` variable, else is libpq's default.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::parameters::{Treatment, treatment};
use super::passfile::{self, Wanted};
use super::syntax::{self, Parsed};
use super::{
    Conninfo, ConninfoError, DEFAULT_PORT, DEFAULT_SOCKET_DIR, Host, HostPort, SslMode,
    TargetSessionAttrs,
};
use crate::environment::Environment;
use crate::secret::Secret;

/// libpq waits for ever by default; a relay backs off and tries again instead.
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// What an explicit `connect_timeout=0`, libpq's "for ever", becomes: everything here has a limit.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// Hosts that one connection string may name.
const HOSTS_MAX: usize = 32;

/// The variables that stand in for parameters (manual, 32.15).
const VARIABLES: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("sslmode", "PGSSLMODE"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("application_name", "PGAPPNAME"),
    ("options", "PGOPTIONS"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
];

/// Variables that have no effect here, but must not be ignored in silence when they ask for more
/// safety or another server than the connection would have.
const REFUSABLE: &[(&str, &str)] = &[
    ("channel_binding", "PGCHANNELBINDING"),
    ("gssencmode", "PGGSSENCMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("require_auth", "PGREQUIREAUTH"),
];

impl Conninfo {
    /// Resolves a connection string as libpq does; without one, the `PG*` variables and the
    /// defaults decide alone. `password` goes before the string's own. Returned beside it:
    /// warnings for people.
    ///
    /// # Errors
    /// [`ConninfoError`], which never shows a password.
    pub fn resolve(
        text: Option<&str>,
        password: Option<Secret>,
        environment: &Environment,
    ) -> Result<(Conninfo, Vec<String>), ConninfoError> {
        let parsed = text.map_or_else(|| Ok(Parsed::default()), syntax::parse)?;
        check_refusable(text.is_some(), environment)?;
        let mut warnings = parsed.warnings.clone();
        let source = Parameters {
            parsed: &parsed,
            environment,
        };

        let (sslmode, sslmode_origin) = source.sslmode()?;
        if matches!(
            sslmode,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull
        ) {
            return Err(ConninfoError::Tls {
                sslmode,
                origin: sslmode_origin,
            });
        }
        let hosts = source.hosts()?;
        let user = match source.get("user").or(environment.os_user()) {
            Some(user) => user.to_owned(),
            None => return Err(ConninfoError::User),
        };
        let dbname = source.get("dbname").unwrap_or(&user).to_owned();
        let password = match password.or_else(|| source.get("password").map(Secret::from)) {
            Some(password) => Some(password),
            None => source.password_of_file(&hosts, &dbname, &user, &mut warnings),
        };
        let application_name = source
            .get("application_name")
            .or(source.get("fallback_application_name"));
        let conninfo = Conninfo {
            password,
            sslmode,
            connect_timeout: source.connect_timeout()?,
            application_name: application_name.map(str::to_owned),
            options: source.get("options").map(str::to_owned),
            target_session_attrs: source.target_session_attrs()?,
            hosts,
            user,
            dbname,
        };
        Ok((conninfo, warnings))
    }
}

fn check_refusable(has_text: bool, environment: &Environment) -> Result<(), ConninfoError> {
    let service = (!has_text).then_some(("service", "PGSERVICE"));
    for (name, variable) in REFUSABLE.iter().copied().chain(service) {
        if let Some(value) = environment.get(variable)
            && let Treatment::Refused(why) = treatment(name, value)
        {
            return Err(ConninfoError::Refused {
                name: variable.to_owned(),
                why,
            });
        }
    }
    Ok(())
}

/// Parameters of the string, else of the environment.
struct Parameters<'a> {
    parsed: &'a Parsed,
    environment: &'a Environment,
}

impl<'a> Parameters<'a> {
    /// A value that is not empty.
    fn get(&self, name: &'static str) -> Option<&'a str> {
        self.get_with_origin(name).map(|(value, _)| value)
    }

    /// A value with what to call it in an error: the parameter's or the variable's name.
    fn get_with_origin(&self, name: &'static str) -> Option<(&'a str, &'static str)> {
        match self.parsed.parameters.get(name) {
            Some(value) => Some((value.as_str(), name)).filter(|(value, _)| !value.is_empty()),
            None => {
                let (_, variable) = VARIABLES.iter().find(|(parameter, _)| *parameter == name)?;
                Some((self.environment.get(variable)?, variable))
            }
        }
    }

    fn hosts(&self) -> Result<Vec<HostPort>, ConninfoError> {
        let names = list(self.get("host"));
        let (addresses, address_origin) = match self.get_with_origin("hostaddr") {
            Some((value, origin)) => (list(Some(value)), origin),
            None => (Vec::new(), "hostaddr"),
        };
        let (ports, port_origin) = match self.get_with_origin("port") {
            Some((value, origin)) => (list(Some(value)), origin),
            None => (Vec::new(), "port"),
        };
        let count = names.len().max(addresses.len()).max(1);
        if count > HOSTS_MAX || ports.len() > 1 && ports.len() != count {
            return Err(invalid(
                port_origin,
                "one port, or as many as hosts (at most 32)",
            ));
        }
        if !addresses.is_empty() && !names.is_empty() && addresses.len() != names.len() {
            return Err(invalid(address_origin, "as many addresses as hosts"));
        }
        (0..count)
            .map(|index| {
                let port_text = ports
                    .get(index)
                    .or(ports.first())
                    .copied()
                    .unwrap_or_default();
                let port = match port_text.trim() {
                    "" => DEFAULT_PORT,
                    text => match text.parse::<u16>() {
                        Ok(port) if port > 0 => port,
                        _ => return Err(invalid(port_origin, "a number from 1 to 65535")),
                    },
                };
                let hostaddr = match addresses.get(index).copied().unwrap_or_default() {
                    "" => None,
                    text => {
                        let address = text.parse::<IpAddr>();
                        Some(address.map_err(|_| invalid(address_origin, "an IP address"))?)
                    }
                };
                let host = match (names.get(index).copied().unwrap_or_default(), hostaddr) {
                    ("", Some(address)) => Host::Tcp(address.to_string()),
                    ("", None) => default_host(port),
                    (name, _) if name.starts_with('/') || name.starts_with('@') => {
                        Host::Unix(PathBuf::from(name))
                    }
                    (name, _) => Host::Tcp(name.to_owned()),
                };
                Ok(HostPort {
                    host,
                    hostaddr,
                    port,
                })
            })
            .collect()
    }

    fn sslmode(&self) -> Result<(SslMode, &'static str), ConninfoError> {
        let Some((value, origin)) = self.get_with_origin("sslmode") else {
            return Ok((SslMode::Prefer, "sslmode"));
        };
        let mode = match value {
            "disable" => SslMode::Disable,
            "allow" => SslMode::Allow,
            "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => {
                return Err(invalid(
                    origin,
                    "disable, allow, prefer, require, verify-ca or verify-full",
                ));
            }
        };
        Ok((mode, origin))
    }

    fn connect_timeout(&self) -> Result<Duration, ConninfoError> {
        let Some((value, origin)) = self.get_with_origin("connect_timeout") else {
            return Ok(CONNECT_TIMEOUT_DEFAULT);
        };
        match value.trim().parse::<i32>() {
            Ok(seconds) => Ok(match u64::try_from(seconds) {
                Ok(seconds) if seconds > 0 => Duration::from_secs(seconds).min(CONNECT_TIMEOUT_MAX),
                _ => CONNECT_TIMEOUT_MAX,
            }),
            Err(_) => Err(invalid(origin, "a whole number of seconds")),
        }
    }

    fn target_session_attrs(&self) -> Result<TargetSessionAttrs, ConninfoError> {
        match self.get_with_origin("target_session_attrs") {
            None | Some(("any", _)) => Ok(TargetSessionAttrs::Any),
            Some(("read-write" | "primary", _)) => Ok(TargetSessionAttrs::ReadWrite),
            Some(("read-only" | "standby", _)) => Ok(TargetSessionAttrs::ReadOnly),
            Some((_, origin)) => Err(invalid(
                origin,
                "any, read-write, primary, read-only or standby",
            )),
        }
    }

    /// The password file's answer for the first host that it knows.
    fn password_of_file(
        &self,
        hosts: &[HostPort],
        dbname: &str,
        user: &str,
        warnings: &mut Vec<String>,
    ) -> Option<Secret> {
        let path = match self.get("passfile") {
            Some(path) => PathBuf::from(path),
            None => Path::new(self.environment.get("HOME")?).join(".pgpass"),
        };
        let text = passfile::read(&path, warnings)?;
        let mut passwords = hosts.iter().filter_map(|host| {
            let name = match &host.host {
                Host::Tcp(name) => name.clone(),
                // As libpq: the default directory is called localhost in the file.
                Host::Unix(dir)
                    if dir == Path::new(DEFAULT_SOCKET_DIR) || dir == Path::new("/tmp") =>
                {
                    "localhost".to_owned()
                }
                Host::Unix(dir) => dir.display().to_string(),
            };
            passfile::find(
                &text,
                Wanted {
                    host: &name,
                    port: host.port,
                    dbname,
                    user,
                },
            )
        });
        let password = passwords.next()?;
        if passwords.any(|other| other != password) {
            warnings.push(format!(
                "password file {} has different passwords for the hosts: that of the first is used for all",
                path.display()
            ));
        }
        Some(password)
    }
}

/// The parts of a comma-separated list; none for no value.
fn list(value: Option<&str>) -> Vec<&str> {
    value
        .map(|value| value.split(',').map(str::trim).collect())
        .unwrap_or_default()
}

/// The directory that has the server's socket, else localhost. libpq's answer is compiled in and
/// differs between distributions, so we look.
fn default_host(port: u16) -> Host {
    [DEFAULT_SOCKET_DIR, "/tmp"]
        .into_iter()
        .find(|dir| Path::new(dir).join(format!(".s.PGSQL.{port}")).exists())
        .map_or_else(
            || Host::Tcp("localhost".to_owned()),
            |dir| Host::Unix(PathBuf::from(dir)),
        )
}

fn invalid(parameter: &'static str, expected: &'static str) -> ConninfoError {
    ConninfoError::Value {
        parameter,
        expected,
    }
}
