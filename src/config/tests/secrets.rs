//! Where secrets come from, which one is taken, and that none is shown.

use std::path::Path;

use super::{Case, shown};
use crate::config::origin::ValueOrigin;
use crate::config::{ConfigError, Key};
use crate::nats::address::NatsAuth;
use crate::postgres::conninfo::{PasswordCommand, PasswordSource};

#[test]
fn secrets_come_from_files_too() {
    let case = Case::new("");
    let url = case.write("url", "postgres://u:filed@h/d\n");
    let token = case.write("token", "t0ken\r\n");
    let empty = case.write("empty", "\n");
    let case = case.env("DATABASE_URL_FILE", url.to_str().unwrap());
    let case = case.env("WALRELAY_NATS_TOKEN_FILE", token.to_str().unwrap());
    let loaded = case.load().unwrap();
    assert_eq!(
        loaded.lane().unwrap().postgres.conninfo.password,
        PasswordSource::Given("filed".into())
    );
    assert_eq!(
        loaded.lane().unwrap().nats.connection.login.read(),
        Ok(NatsAuth::Token("t0ken".into()))
    );
    assert_eq!(
        shown(&loaded, Key::PostgresUrl).source,
        ValueOrigin::Fallback("DATABASE_URL_FILE".to_owned())
    );

    let case = case.env("WALRELAY_NATS_TOKEN", "again");
    assert!(
        matches!(case.load(), Err(ConfigError::Twice { variable }) if variable == "WALRELAY_NATS_TOKEN")
    );
    for path in [empty.as_path(), Path::new("/nowhere/at/all")] {
        let case = Case::new("").env("WALRELAY_POSTGRES_PASSWORD_FILE", path.to_str().unwrap());
        assert!(matches!(case.load(), Err(ConfigError::SecretFile { .. })));
    }
    let warnings = Case::new("")
        .env("WALRELAY_NATS_STREAM_FILE", "x")
        .load()
        .unwrap()
        .warnings;
    assert_eq!(warnings.len(), 1, "only secrets have a _FILE");
}

#[test]
fn what_is_in_a_file_is_not_shown_where_its_path_was_asked_for() {
    let key = "-----BEGIN PRIVATE KEY-----\nMIIEhunter2\n-----END PRIVATE KEY-----\n";
    for variable in [
        "WALRELAY_NATS_TLS_KEY",
        "WALRELAY_NATS_TLS_CERT",
        "WALRELAY_NATS_TLS_CA",
        "PGSSLKEY",
        "PGSSLCERT",
    ] {
        let error = Case::new("").env(variable, key).load().expect_err(variable);
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(
            !text.contains("hunter2") && text.contains("path"),
            "{variable}: {text}"
        );
    }
}

#[test]
fn a_file_without_an_end_is_no_secret() {
    for variable in [
        "WALRELAY_POSTGRES_PASSWORD_FILE",
        "WALRELAY_NATS_TOKEN_FILE",
    ] {
        let error = Case::new("")
            .env(variable, "/dev/zero")
            .load()
            .expect_err(variable);
        assert!(
            format!("{:#}", anyhow::Error::from(error)).contains("65536 bytes"),
            "{variable}"
        );
    }
}

#[test]
fn a_command_gives_the_password_where_nothing_higher_does() {
    let source = |case: Case| {
        case.load()
            .unwrap()
            .lane()
            .unwrap()
            .postgres
            .conninfo
            .password
            .clone()
    };
    let command = |words: &[&str]| {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        PasswordSource::Command(PasswordCommand::new(words).unwrap())
    };
    let file = "[postgres]\npassword_command = ['token', '--for', 'a b']";
    assert_eq!(source(Case::new(file)), command(&["token", "--for", "a b"]));
    // An argument may be a secret.
    let loaded = Case::new(file).load().unwrap();
    assert_eq!(
        shown(&loaded, Key::PostgresPasswordCommand).text,
        "token ***"
    );
    let variable = "WALRELAY_POSTGRES_PASSWORD_COMMAND";
    for (text, words) in [
        ("other token", &["other", "token"]),
        ("[\"other\", \"token\"]", &["other", "token"]),
    ] {
        assert_eq!(source(Case::new(file).env(variable, text)), command(words));
    }
    let higher = Case::new(file).flag(Key::PostgresUrl, "postgres://u:flag@h/d");
    // The connection string keeps its own.
    assert_eq!(source(higher), PasswordSource::Given("flag".into()));
    let lower = Case::new(file).env("PGPASSWORD", "pg");
    assert_eq!(source(lower), command(&["token", "--for", "a b"]));
    for other in ["password = 'p'", "url = 'postgres://u:p@h/d'"] {
        let error = Case::new(&format!("{file}\n{other}")).load().unwrap_err();
        assert!(
            matches!(error, ConfigError::PasswordTwice { .. }),
            "{error}"
        );
    }
    for wrong in ["[]", "[1]", "[\"\"]", "[", " "] {
        let error = Case::new("").env(variable, wrong).load().unwrap_err();
        assert!(
            matches!(error, ConfigError::Value { .. }),
            "{wrong}: {error}"
        );
    }
}

#[test]
fn a_password_of_its_own_goes_with_the_url() {
    let password = |case: Case| {
        case.load()
            .unwrap()
            .lane()
            .unwrap()
            .postgres
            .conninfo
            .password
            .clone()
    };
    let given = |text: &str| PasswordSource::Given(text.into());
    let file = "[postgres]\nurl = 'postgres://u:inurl@h/d'\npassword = 'own'";
    assert_eq!(password(Case::new(file)), given("own"));
    assert_eq!(
        password(Case::new(file).flag(Key::PostgresUrl, "postgres://u:flag@h/d")),
        given("flag")
    );
    assert_eq!(
        password(Case::new(file).flag(Key::PostgresUrl, "postgres://u@h/d")),
        given("own")
    );
    assert_eq!(
        password(
            Case::new(file)
                .env("WALRELAY_POSTGRES_PASSWORD", "env")
                .env("PGPASSWORD", "pg")
        ),
        given("env")
    );
}

#[test]
fn one_way_to_authenticate() {
    let seed = nkeys::KeyPair::new_user().seed().unwrap();
    let case = Case::new("[nats]\nuser = 'u'\npassword = 'p'");
    let creds = format!(
        "-----BEGIN NATS USER JWT-----\neyJ0.a.b\n------END NATS USER JWT------\n\n\
         ************ IMPORTANT ************\nNKEY Seed is sensitive.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    let creds = case.write("user.creds", &creds);
    let seed_path = case.write("user.nk", &format!("{seed}\n"));
    let auth = |case: &Case| {
        case.load()
            .map(|loaded| loaded.lane().unwrap().nats.connection.login.read().unwrap())
    };
    assert_eq!(
        auth(&case).unwrap(),
        NatsAuth::UserPassword {
            user: "u".to_owned(),
            password: "p".into()
        }
    );
    let case = case.env("WALRELAY_NATS_CREDENTIALS", creds.to_str().unwrap());
    assert_eq!(
        auth(&case).unwrap(),
        NatsAuth::Jwt {
            jwt: "eyJ0.a.b".into(),
            seed: seed.as_str().into()
        }
    );
    // A login in the address beside another one, in whichever layers.
    let case = case.flag(Key::NatsUrl, "nats://t@h");
    assert!(matches!(auth(&case), Err(ConfigError::AuthTwice { .. })));
    for (name, value) in [("WALRELAY_NATS_TOKEN", "t"), ("WALRELAY_NATS_USER", "u")] {
        let case = Case::new("[nats]\nurl = 'nats://a:b@h'\npassword = 'p'").env(name, value);
        let Err(ConfigError::AuthTwice { first, .. }) = auth(&case) else {
            panic!("{name} beside the address' login");
        };
        assert!(first.starts_with("nats.url"), "{first}");
    }

    let with = |name: &str, value: &str| Case::new("").env(name, value);
    let by_seed = with("WALRELAY_NATS_NKEY_SEED", seed_path.to_str().unwrap());
    assert_eq!(
        auth(&by_seed).unwrap(),
        NatsAuth::NKey {
            seed: seed.as_str().into()
        }
    );
    let twice = by_seed.env("WALRELAY_NATS_TOKEN", "t");
    assert!(matches!(auth(&twice), Err(ConfigError::AuthTwice { .. })));
    assert!(matches!(
        auth(&with("WALRELAY_NATS_USER", "u")),
        Err(ConfigError::AuthHalf { .. })
    ));
    assert!(matches!(
        auth(&with("WALRELAY_NATS_PASSWORD", "p")),
        Err(ConfigError::AuthHalf { .. })
    ));

    let pasted = auth(&with("WALRELAY_NATS_NKEY_SEED", &seed)).unwrap_err();
    assert!(
        matches!(pasted, ConfigError::SecretFile { .. })
            && !format!("{pasted} {pasted:?}").contains(&seed)
    );
    let not_creds = with("WALRELAY_NATS_CREDENTIALS", seed_path.to_str().unwrap());
    assert!(matches!(
        auth(&not_creds),
        Err(ConfigError::SecretFile { .. })
    ));
    assert!(matches!(
        auth(&with("WALRELAY_NATS_URL", "nats://a@h,nats://b@i")),
        Err(ConfigError::Value { .. })
    ));
}

#[test]
fn what_is_shown_and_debugged_has_no_secret() {
    let case = Case::new("[postgres]\nurl = 'postgres://u:hunter2@h/d'\npassword = 'hunter2'\n[nats]\nurl = 'nats://u:hunter2@h'")
        .flag(Key::HttpListen, "");
    let loaded = case.load().unwrap();
    assert!(!format!("{loaded:?}").contains("hunter2"));
    assert_eq!(
        shown(&loaded, Key::PostgresUrl).text,
        "postgres://u:***@h/d"
    );
    assert_eq!(shown(&loaded, Key::PostgresPassword).text, "***");
    assert_eq!(shown(&loaded, Key::NatsUrl).text, "nats://u:***@h");
    for (name, value) in [
        ("WALRELAY_POSTGRES_URL", "postgres://u:hunter2@h@x/d"),
        (
            "WALRELAY_POSTGRES_URL",
            "host=h password=hunter2 sslmode=maybe",
        ),
        ("NATS_URL", "http://u:hunter2@h"),
        ("NATS_URL", "nats://hunter2@h:x"),
        ("NATS_URL", "nats://u:hunter2,more@h"),
    ] {
        let error = Case::new("").env(name, value).load().unwrap_err();
        assert!(
            !format!("{error} {error:?}").contains("hunter2"),
            "{error:?}"
        );
    }
}
