//! Connection strings as libpq understands them.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::syntax::parse;
use super::*;
use crate::environment::Environment;

fn environment() -> Environment {
    Environment::new::<&str, &str>([]).with_os_user("os")
}

fn resolve(text: &str) -> Result<Conninfo, ConninfoError> {
    Conninfo::resolve(Some(text), None, &environment()).map(|(conninfo, _)| conninfo)
}

fn tcp(name: &str, port: u16) -> HostPort {
    HostPort {
        host: Host::Tcp(name.to_owned()),
        hostaddr: None,
        port,
    }
}

fn unix(dir: &str, port: u16) -> HostPort {
    HostPort {
        host: Host::Unix(dir.into()),
        hostaddr: None,
        port,
    }
}

#[test]
fn reads_both_forms_into_the_same_parameters() {
    for (text, expected) in [
        ("postgres://", ""),
        ("postgresql:///app", "dbname=app"),
        ("postgres://h", "host=h"),
        ("postgres://u@h", "user=u host=h"),
        (
            "postgres://u:p@h:1/d",
            "user=u password=p host=h port=1 dbname=d",
        ),
        ("postgres://u:@h", "user=u host=h"),
        ("postgres://u:p:w@h", "user=u password=p:w host=h"),
        ("postgres://u:p%40%2F%3Aw@h", "user=u password=p@/:w host=h"),
        (
            "postgres://u:p?w@h/d",
            "user=u password=p?w host=h dbname=d",
        ),
        ("postgres://%75ser@h/%64b", "user=user host=h dbname=db"),
        ("postgres://[::1]:5433/d", "host=::1 port=5433 dbname=d"),
        ("postgres://[::1]", "host=::1"),
        (
            "postgres://a:1,b:2,[::1]/d",
            "host=a,b,::1 port=1,2, dbname=d",
        ),
        ("postgres://%2Frun%2Fpg/d", "host=/run/pg dbname=d"),
        (
            "postgres:///d?host=/run/pg&port=5433",
            "host=/run/pg port=5433 dbname=d",
        ),
        (
            "postgres://h/d?user=u&password=p",
            "host=h dbname=d user=u password=p",
        ),
        ("postgres://h?sslmode=disable", "host=h sslmode=disable"),
        ("postgres://h/d?ssl=true", "host=h dbname=d sslmode=require"),
        (
            "postgres://h/d?options=-c%20a%3Db&",
            "host=h dbname=d options='-c a=b'",
        ),
        ("jdbc:postgresql://h/d?user=u", "host=h dbname=d user=u"),
        ("postgresql+asyncpg://u@h/d", "user=u host=h dbname=d"),
        ("  postgres://h/d \n", "host=h dbname=d"),
        (
            "host = h  dbname= 'a b' password='it\\'s \\\\'",
            "host=h dbname='a b' password=it\\'s\\ \\\\",
        ),
        ("user=a user=b", "user=b"),
        ("password='postgres://x'", "password=postgres://x"),
        ("password=''", "password=''"),
    ] {
        let expected: BTreeMap<_, _> = super::syntax::key_values(expected)
            .unwrap()
            .into_iter()
            .collect();
        assert_eq!(
            parse(text).map(|parsed| parsed.parameters),
            Ok(expected),
            "{text}"
        );
    }
}

#[test]
fn refuses_what_libpq_refuses() {
    use ConninfoError as E;
    for (text, expected) in [
        ("mysql://u@h", E::Scheme("mysql".to_owned())),
        ("postgres://u:p@ss@h/d", E::AtSign),
        ("postgres://[::1/d", E::Bracket),
        ("postgres://[::1]5432/d", E::Bracket),
        ("postgres://h/d?sslmode", E::QueryPair),
        ("postgres://u:50%@h", E::Encoding { what: "password" }),
        ("postgres://u:%zz@h", E::Encoding { what: "password" }),
        ("postgres://h/%00", E::Encoding { what: "dbname" }),
        ("postgres://h/%ff", E::Encoding { what: "dbname" }),
        ("app", E::Equals { at: 0 }),
        ("host=h secret words", E::Equals { at: 7 }),
        ("=x", E::Equals { at: 0 }),
        ("password='open", E::Quote { at: 0 }),
        (
            "host=h hots=x",
            E::UnknownParameter {
                name: "hots".to_owned(),
                nearest: Some("host"),
            },
        ),
        (
            "postgres://h/d?sllmode=x",
            E::UnknownParameter {
                name: "sllmode".to_owned(),
                nearest: Some("sslmode"),
            },
        ),
        (
            "postgres://h:0/d",
            E::Value {
                parameter: "port",
                expected: "a number from 1 to 65535",
            },
        ),
        (
            "postgres://u:p/ss@h/d",
            E::Value {
                parameter: "port",
                expected: "a number from 1 to 65535",
            },
        ),
        (
            "host=a,b,c port=1,2",
            E::Value {
                parameter: "port",
                expected: "one port, or as many as hosts (at most 32)",
            },
        ),
    ] {
        assert_eq!(resolve(text), Err(expected), "{text}");
    }
    for (text, name) in [
        ("host=a,b hostaddr=10.0.0.1", "hostaddr"),
        ("hostaddr=localhost", "hostaddr"),
        ("connect_timeout=soon", "connect_timeout"),
        ("sslmode=no-verify", "sslmode"),
        (
            "ssl_max_protocol_version=TLSv1.1",
            "ssl_max_protocol_version",
        ),
        ("require_auth=md5,!password", "require_auth"),
        ("require_auth=ldap", "require_auth"),
        ("keepalives_idle=soon", "keepalives_idle"),
        // Forgotten values are no weaker ones.
        ("sslmode=''", "sslmode"),
        ("postgres://u@h/d?sslmode=", "sslmode"),
        ("require_auth=''", "require_auth"),
        ("connect_timeout=''", "connect_timeout"),
    ] {
        assert!(
            matches!(resolve(text), Err(E::Value { parameter, .. }) if parameter == name),
            "{text}"
        );
    }
    for text in [
        "target_session_attrs=some",
        "load_balance_hosts=1",
        "sslsni=yes",
        "channel_binding=on",
        "ssl_min_protocol_version=SSLv3",
        "channel_binding=''",
        "target_session_attrs=''",
        "sslnegotiation=''",
        "load_balance_hosts=''",
    ] {
        assert!(matches!(resolve(text), Err(E::Choice { .. })), "{text}");
    }
    for text in [
        "gssencmode=require",
        "requirepeer=postgres",
        "sslcrldir=/x",
        "sslcertmode=require",
    ] {
        assert!(matches!(resolve(text), Err(E::Refused { .. })), "{text}");
    }
}

#[test]
fn no_error_shows_a_password() {
    for text in [
        "postgres://u:hunter2@h@i/d",
        "postgres://u:hunter2@h:x/d",
        "postgres://u:hunter2@h/d?sslmode=maybe",
        "postgres://u:hunter2@h/d?hots=1",
        "postgres://u:hunter2/@h",
        "postgres://u:hunter2%@h",
        "password=hunter2 host",
        "password=x hunter2",
        "password='hunter2",
        "password=hunter2 sslmode=hunter2",
        "sslkey='-----BEGIN PRIVATE KEY----- hunter2'",
    ] {
        let error = resolve(text).expect_err(text);
        assert!(
            !format!("{error} {error:?}").contains("hunter2"),
            "{text}: {error}"
        );
    }
}

#[test]
fn fills_in_defaults() {
    let conninfo = resolve("host=h").unwrap();
    assert_eq!(conninfo.hosts, [tcp("h", 5432)]);
    assert_eq!(
        (conninfo.user.as_str(), conninfo.dbname.as_str()),
        ("os", "os")
    );
    assert_eq!(conninfo.password, PasswordSource::None);
    assert_eq!(conninfo.tls.mode, SslMode::Prefer);
    assert_eq!(conninfo.tls.roots, RootChoice::File(FileChoice::None));
    assert!((conninfo.tls.tls12, conninfo.tls.tls13, conninfo.tls.sni) == (true, true, true));
    for method in [Method::None, Method::Password, Method::Md5] {
        assert!(conninfo.authentication.allow(method));
    }
    assert_eq!(conninfo.tcp, TcpSettings::default());
    assert_eq!(conninfo.connect_timeout, Duration::from_secs(10));
    assert_eq!(resolve("host=h user=u").unwrap().dbname, "u");
    let nobody = Conninfo::resolve(None, None, &Environment::default());
    assert!(matches!(nobody, Err(ConninfoError::User)));
}

#[test]
fn reads_hosts_ports_and_addresses() {
    let with_address = |name: &str, address: &str| HostPort {
        hostaddr: Some(address.parse().unwrap()),
        ..tcp(name, 5432)
    };
    for (text, expected) in [
        (
            "postgres://a:1,b,[::1]:3/d",
            vec![tcp("a", 1), tcp("b", 5432), tcp("::1", 3)],
        ),
        ("host=a,b port=7", vec![tcp("a", 7), tcp("b", 7)]),
        ("host=/run/pg", vec![unix("/run/pg", 5432)]),
        ("host=@abstract", vec![unix("@abstract", 5432)]),
        (
            "postgres:///d?host=/run/pg,h&port=1,2",
            vec![unix("/run/pg", 1), tcp("h", 2)],
        ),
        (
            "host=a hostaddr=10.0.0.1",
            vec![with_address("a", "10.0.0.1")],
        ),
        (
            "hostaddr=10.0.0.1,::1",
            vec![
                with_address("10.0.0.1", "10.0.0.1"),
                with_address("::1", "::1"),
            ],
        ),
    ] {
        assert_eq!(resolve(text).unwrap().hosts, expected, "{text}");
    }
    assert_eq!(
        resolve("dbname=d").unwrap().hosts.len(),
        1,
        "the socket's directory, or localhost"
    );
}

/// Checked against psql 18.
#[test]
fn an_empty_variable_is_none_or_no_choice() {
    let resolve = |variable: &'static str| {
        let environment = Environment::new([("PGUSER", "u"), ("HOME", "/home/u"), (variable, "")]);
        let environment = environment.with_os_user("u");
        Conninfo::resolve(None, None, &environment).map(|(conninfo, _)| conninfo)
    };
    for variable in [
        "PGSSLMODE",
        "PGCHANNELBINDING",
        "PGTARGETSESSIONATTRS",
        "PGLOADBALANCEHOSTS",
        "PGSSLNEGOTIATION",
        "PGSSLCERTMODE",
        "PGCONNECT_TIMEOUT",
        "PGSERVICE",
    ] {
        let refused = resolve(variable).unwrap_err().to_string();
        assert!(
            refused.contains(variable) || variable == "PGSERVICE",
            "{refused}"
        );
    }
    let unset = resolve("PGAPPNAME").unwrap();
    for variable in [
        "PGHOST",
        "PGPORT",
        "PGUSER",
        "PGDATABASE",
        "PGOPTIONS",
        "PGSSLROOTCERT",
        "PGSSLMINPROTOCOLVERSION",
        "PGSSLSNI",
        "PGREQUIREAUTH",
    ] {
        assert_eq!(resolve(variable).unwrap(), unset, "{variable}");
    }
}

#[test]
fn the_environment_fills_what_the_string_leaves_open() {
    let environment = Environment::new([
        ("PGHOST", "envhost"),
        ("PGPORT", "6543"),
        ("PGUSER", "envuser"),
        ("PGPASSWORD", "envpass"),
        ("PGDATABASE", "envdb"),
        ("PGCONNECT_TIMEOUT", "3"),
        ("PGAPPNAME", "envapp"),
        ("PGOPTIONS", "-c x=y"),
        ("PGSSLMODE", "disable"),
        ("PGTARGETSESSIONATTRS", "read-write"),
    ]);
    let (all, _) = Conninfo::resolve(None, None, &environment).unwrap();
    assert_eq!(all.hosts, [tcp("envhost", 6543)]);
    assert_eq!(
        (all.user.as_str(), all.dbname.as_str()),
        ("envuser", "envdb")
    );
    let given = |password: &str| PasswordSource::Given(password.into());
    assert_eq!(all.password, given("envpass"));
    assert_eq!(all.connect_timeout, Duration::from_secs(3));
    assert_eq!(all.application_name.as_deref(), Some("envapp"));
    assert_eq!(all.options.as_deref(), Some("-c x=y"));
    assert_eq!(all.tls.mode, SslMode::Disable);
    assert_eq!(all.target_session_attrs, TargetSessionAttrs::ReadWrite);

    let url = "postgres://u:p@h:1/d?application_name=a&connect_timeout=0";
    let (own, _) = Conninfo::resolve(Some(url), None, &environment).unwrap();
    assert_eq!(own.hosts, [tcp("h", 1)]);
    assert_eq!((own.user.as_str(), own.dbname.as_str()), ("u", "d"));
    assert_eq!(own.password, given("p"));
    assert_eq!(own.application_name.as_deref(), Some("a"));
    assert!(
        own.connect_timeout >= Duration::from_secs(3600),
        "0 is as good as for ever"
    );

    let (own, _) = Conninfo::resolve(Some(url), Some(given("given")), &environment).unwrap();
    assert_eq!(own.password, given("given"));
    let port = Environment::new([("PGPORT", "x"), ("PGUSER", "u")]);
    let error = Conninfo::resolve(None, None, &port).unwrap_err();
    assert!(matches!(
        error,
        ConninfoError::Value {
            parameter: "PGPORT",
            ..
        }
    ));
}

#[test]
fn a_service_fills_what_the_string_leaves_open_before_the_environment_does() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(".pg_service.conf");
    std::fs::write(
        &file,
        "[app]\nhost=s.example\nport=7\nsslmode=verify-full\n",
    )
    .unwrap();
    let home = folder.path().to_str().unwrap();
    let base = [("HOME", home), ("PGUSER", "u"), ("PGPORT", "9")];
    let environment = Environment::new(base);
    let resolve = |text, environment| Conninfo::resolve(text, None, environment);
    let (conninfo, _) = resolve(Some("service=app sslmode=require"), &environment).unwrap();
    assert_eq!(conninfo.hosts, [tcp("s.example", 7)]);
    assert_eq!(conninfo.tls.mode, SslMode::Require);

    let named = Environment::new(base.into_iter().chain([("PGSERVICE", "app")]));
    let (conninfo, _) = resolve(Some("postgres://own/d"), &named).unwrap();
    assert_eq!(conninfo.hosts, [tcp("own", 7)]);
    assert_eq!(conninfo.tls.mode, SslMode::VerifyFull);

    let elsewhere = Environment::new([
        ("PGUSER", "u"),
        ("PGSERVICEFILE", file.to_str().unwrap()),
        ("PGSYSCONFDIR", home),
    ]);
    assert!(resolve(Some("service=app"), &elsewhere).is_ok());
    let missing = resolve(Some("service=nope"), &elsewhere).unwrap_err();
    assert_eq!(
        missing,
        ConninfoError::Service {
            name: "nope".to_owned(),
            path: file.clone(),
        }
    );
    assert!(missing.to_string().contains("[nope]"));
    std::fs::write(&file, "[app]\nhost\n").unwrap();
    assert!(matches!(
        resolve(Some("service=app"), &elsewhere),
        Err(ConninfoError::ServiceFile { .. })
    ));
}

#[test]
fn tls_is_as_the_parameters_say_or_as_libpq_has_it() {
    for mode in [
        "disable",
        "allow",
        "prefer",
        "require",
        "verify-ca",
        "verify-full",
    ] {
        let conninfo = resolve(&format!("host=h sslmode={mode}")).unwrap();
        assert_eq!(conninfo.tls.mode.to_string(), mode);
    }
    let tls = |text: &str| resolve(text).unwrap().tls;
    let of_system = tls("host=h sslrootcert=system");
    assert_eq!(
        (of_system.mode, of_system.roots),
        (SslMode::VerifyFull, RootChoice::System)
    );
    let versions = |text: &str| (tls(text).tls12, tls(text).tls13);
    assert_eq!(versions("ssl_min_protocol_version=TLSv1"), (true, true));
    assert_eq!(versions("ssl_min_protocol_version=TLSv1.3"), (false, true));
    assert_eq!(versions("ssl_max_protocol_version=TLSv1.2"), (true, false));
    assert!(!tls("sslsni=0").sni);
    assert!(tls("sslmode=require sslnegotiation=direct").direct);
    assert_eq!(
        tls("sslcertmode=disable sslcert=/c sslkey=/k").certificate,
        FileChoice::None
    );
    for text in [
        "sslrootcert=system sslmode=verify-ca",
        "sslnegotiation=direct",
        "sslnegotiation=direct sslmode=prefer",
    ] {
        assert!(
            matches!(resolve(text), Err(ConninfoError::WeakSslMode { .. })),
            "{text}"
        );
    }
    let environment = Environment::new([
        ("HOME", "/home/u"),
        ("PGUSER", "u"),
        ("PGSSLMODE", "require"),
        ("PGSSLROOTCERT", "/r.crt"),
    ]);
    let tls = Conninfo::resolve(None, None, &environment).unwrap().0.tls;
    assert_eq!(tls.mode, SslMode::Require);
    assert_eq!(
        tls.roots,
        RootChoice::File(FileChoice::Named("/r.crt".into()))
    );
    assert_eq!(
        tls.key,
        FileChoice::Default("/home/u/.postgresql/postgresql.key".into())
    );
}

#[test]
fn parameters_of_poolers_and_orms_are_ignored_with_a_warning() {
    for (text, warnings_expected) in [
        (
            "postgres://h/d?pgbouncer=true&connection_limit=1&pool_timeout=2",
            3,
        ),
        (
            "postgres://h/d?schema=public&statement_cache_size=0&sslaccept=strict",
            3,
        ),
        ("postgresql+psycopg2://h/d?pool_pre_ping=1", 2),
        (
            "jdbc:postgresql://h/d?currentSchema=x&prepareThreshold=0",
            3,
        ),
        ("host=h TimeZone=UTC client_encoding=UTF8", 2),
        ("postgres://h/d?pool_max_conns=4&keepalives_idle=3", 1),
        ("postgres://h/d?application_name=x", 0),
    ] {
        let (_, warnings) = Conninfo::resolve(Some(text), None, &environment()).unwrap();
        assert_eq!(warnings.len(), warnings_expected, "{text}: {warnings:?}");
    }
}

#[cfg(unix)]
#[test]
fn the_password_file_is_asked_last() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".pgpass");
    std::fs::write(
        &path,
        "h:5432:d:u:filed\nlocalhost:*:d:u:socketed\n/run/pg:*:d:u:dired\n",
    )
    .unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let home = Environment::new([("HOME", folder.path().to_str().unwrap())]);
    let passfile = Environment::new([("PGPASSFILE", path.to_str().unwrap())]);
    let password = |text: &str, environment: &Environment| {
        let (conninfo, _) = Conninfo::resolve(Some(text), None, environment).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let passwords = runtime.block_on(conninfo.password.read()).unwrap();
        conninfo
            .hosts
            .iter()
            .find_map(|host| passwords.of(host, &conninfo.dbname, &conninfo.user))
            .map(|password| password.expose().to_owned())
    };
    for environment in [&home, &passfile] {
        assert_eq!(
            password("host=h dbname=d user=u", environment).as_deref(),
            Some("filed")
        );
    }
    assert_eq!(
        password("host=/var/run/postgresql dbname=d user=u", &home).as_deref(),
        Some("socketed")
    );
    assert_eq!(
        password("host=/run/pg dbname=d user=u", &home).as_deref(),
        Some("dired")
    );
    assert_eq!(
        password("host=x,h dbname=d user=u", &home).as_deref(),
        Some("filed")
    );
    assert_eq!(password("host=x dbname=d user=u", &home), None);
    assert_eq!(
        password("host=h dbname=d user=u password=own", &home).as_deref(),
        Some("own")
    );
    assert_eq!(
        password("host=h dbname=d user=u passfile=/nowhere", &home),
        None
    );
}

#[test]
fn display_and_debug_hide_passwords() {
    let conninfo = resolve("postgres://u:hunter2@a:1,[::1]:2/d").unwrap();
    assert_eq!(conninfo.to_string(), "postgres://u:***@a:1,[::1]:2/d");
    assert!(!format!("{conninfo:?}").contains("hunter2"));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_without_a_panic(text in "(postgres(ql)?(\\+x)?://|jdbc:)?(\\PC|[@:/?&=%'\\\\,\\[\\] ]){0,40}") {
        let _ = Conninfo::resolve(Some(&text), None, &environment());
        let _ = mask(&text);
    }
}
