//! Connection string, environment, password file and defaults → [`Conninfo`].
//!
//! In: what was configured and the [`Environment`]. Out: a [`Conninfo`] and warnings. Guarantee:
//! each parameter comes from the string, else from its `PG*` variable, else is libpq's default.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::parameters::{Treatment, treatment};
use super::syntax::{self, Parsed};
use super::{
    Conninfo, ConninfoError, DEFAULT_PORT, DEFAULT_SOCKET_DIR, Host, HostPort, PasswordSource,
    TargetSessionAttrs, TcpSettings, passfile, service,
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
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("service", "PGSERVICE"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("require_auth", "PGREQUIREAUTH"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("sslcert", "PGSSLCERT"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("sslcrl", "PGSSLCRL"),
    ("sslkey", "PGSSLKEY"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslsni", "PGSSLSNI"),
];

/// Parameters whose variable libpq refuses where it is empty; an empty one of the others is none.
const NEVER_EMPTY: &[&str] = &[
    "sslmode",
    "channel_binding",
    "target_session_attrs",
    "load_balance_hosts",
    "sslnegotiation",
    "sslcertmode",
    "connect_timeout",
    "service",
];

/// Variables that have no effect here, but must not be ignored in silence when they ask for more
/// safety or another server than the connection would have.
const REFUSABLE: &[(&str, &str)] = &[
    ("gssencmode", "PGGSSENCMODE"),
    ("requirepeer", "PGREQUIREPEER"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslcertmode", "PGSSLCERTMODE"),
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
        password: Option<PasswordSource>,
        environment: &Environment,
    ) -> Result<(Conninfo, Vec<String>), ConninfoError> {
        let parsed = text.map_or_else(|| Ok(Parsed::default()), syntax::parse)?;
        check_refusable(environment)?;
        let mut warnings = parsed.warnings.clone();
        let no_service = Parsed::default();
        let mut source = Parameters {
            parsed: &parsed,
            service: &no_service,
            environment,
        };
        let service = match source.given("service") {
            Some((name, _)) => service::read(name, source.get("servicefile"), environment)?,
            None => Parsed::default(),
        };
        warnings.extend(service.warnings.iter().cloned());
        source.service = &service;

        let hosts = source.hosts()?;
        let user = match source.get("user").or(environment.os_user()) {
            Some(user) => user.to_owned(),
            None => return Err(ConninfoError::User),
        };
        let dbname = source.get("dbname").unwrap_or(&user).to_owned();
        let password = password
            .or_else(|| Some(Secret::from(source.get("password")?).into()))
            .unwrap_or_else(|| source.password_file(&mut warnings));
        let application_name = source
            .get("application_name")
            .or(source.get("fallback_application_name"));
        let conninfo = Conninfo {
            password,
            tls: source.tls()?,
            authentication: source.authentication()?,
            connect_timeout: source.connect_timeout()?,
            tcp: source.tcp()?,
            load_balance_hosts: source
                .choice(
                    "load_balance_hosts",
                    &[("disable", false), ("random", true)],
                )?
                .unwrap_or(false),
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

fn check_refusable(environment: &Environment) -> Result<(), ConninfoError> {
    for (name, variable) in REFUSABLE {
        if let Some(value) = environment.get(variable)
            && let Treatment::Refused(why) = treatment(name, value)
        {
            return Err(ConninfoError::Refused {
                name: (*variable).to_owned(),
                why,
            });
        }
    }
    Ok(())
}

/// Parameters of the string, else of the service file, else of the environment.
pub(super) struct Parameters<'a> {
    parsed: &'a Parsed,
    service: &'a Parsed,
    environment: &'a Environment,
}

impl<'a> Parameters<'a> {
    /// A value that is not empty.
    pub(super) fn get(&self, name: &'static str) -> Option<&'a str> {
        self.get_with_origin(name).map(|(value, _)| value)
    }

    /// The same with what to call it in an error: the parameter's or the variable's name.
    pub(super) fn get_with_origin(&self, name: &'static str) -> Option<(&'a str, &'static str)> {
        self.given(name).filter(|(value, _)| !value.is_empty())
    }

    /// The same, also where it is empty: no choice is made of a forgotten value, as in libpq.
    pub(super) fn given(&self, name: &'static str) -> Option<(&'a str, &'static str)> {
        let own = self.parsed.parameters.get(name);
        match own.or_else(|| self.service.parameters.get(name)) {
            Some(value) => Some((value.as_str(), name)),
            None => {
                let (_, variable) = VARIABLES.iter().find(|(parameter, _)| *parameter == name)?;
                let value = match NEVER_EMPTY.contains(&name) {
                    true => self.environment.get_even_empty(variable)?,
                    false => self.environment.get(variable)?,
                };
                Some((value, variable))
            }
        }
    }

    /// What the value stands for among those that the parameter takes.
    pub(super) fn choice<T: Copy>(
        &self,
        name: &'static str,
        values: &[(&'static str, T)],
    ) -> Result<Option<T>, ConninfoError> {
        let Some((value, origin)) = self.given(name) else {
            return Ok(None);
        };
        match values.iter().find(|(known, _)| *known == value) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let known: Vec<&str> = values.iter().map(|(known, _)| *known).collect();
                Err(ConninfoError::Choice {
                    parameter: origin,
                    expected: known.join(", "),
                })
            }
        }
    }

    /// The user's folder.
    pub(super) fn home(&self) -> Option<&'a Path> {
        self.environment.get("HOME").map(Path::new)
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

    fn connect_timeout(&self) -> Result<Duration, ConninfoError> {
        let Some((value, origin)) = self.given("connect_timeout") else {
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
        let wanted = self.choice(
            "target_session_attrs",
            &[
                ("any", TargetSessionAttrs::Any),
                ("read-write", TargetSessionAttrs::ReadWrite),
                ("read-only", TargetSessionAttrs::ReadOnly),
                ("primary", TargetSessionAttrs::Primary),
                ("standby", TargetSessionAttrs::Standby),
                ("prefer-standby", TargetSessionAttrs::PreferStandby),
            ],
        )?;
        Ok(wanted.unwrap_or_default())
    }

    fn tcp(&self) -> Result<TcpSettings, ConninfoError> {
        let default = TcpSettings::default();
        let number = |name| match self.get_with_origin(name) {
            None => Ok(None),
            Some((value, origin)) => match value.trim().parse::<u32>() {
                // The system takes no more.
                Ok(number) if number <= 32_767 || name == "tcp_user_timeout" => Ok(Some(number)),
                _ => Err(invalid(origin, "a whole number from 0 to 32767")),
            },
        };
        let seconds = |name| Ok(number(name)?.map(|number| Duration::from_secs(number.into())));
        let user_timeout = number("tcp_user_timeout")?;
        Ok(TcpSettings {
            keepalives: number("keepalives")?.map_or(default.keepalives, |number| number != 0),
            idle: seconds("keepalives_idle")?.unwrap_or(default.idle),
            interval: seconds("keepalives_interval")?.unwrap_or(default.interval),
            count: number("keepalives_count")?.unwrap_or(default.count),
            user_timeout: user_timeout.map_or(default.user_timeout, |number| {
                Duration::from_millis(number.into())
            }),
        })
    }

    /// The password file; what keeps it from being used becomes a warning.
    fn password_file(&self, warnings: &mut Vec<String>) -> PasswordSource {
        let path = match (self.get("passfile"), self.home()) {
            (Some(path), _) => PathBuf::from(path),
            (None, Some(home)) => home.join(".pgpass"),
            (None, None) => return PasswordSource::None,
        };
        passfile::read(&path, warnings);
        PasswordSource::PasswordFile(path)
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

pub(super) fn invalid(parameter: &'static str, expected: &'static str) -> ConninfoError {
    ConninfoError::Value {
        parameter,
        expected,
    }
}
