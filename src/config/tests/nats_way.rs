//! TLS, JetStream's subjects and contexts of the NATS command line.

use super::*;
use crate::nats::address::NatsAuth;
use crate::nats::login::Login;
use crate::nats::settings::ConnectionSettings;
use crate::secret::Secret;
use crate::tls::Roots;

fn connection(case: &Case) -> ConnectionSettings {
    case.load().unwrap().lane().unwrap().nats.connection.clone()
}

#[test]
fn whoever_names_what_tls_needs_has_it() {
    let required = |case: Case| connection(&case).tls.required;
    assert!(!required(Case::new("")));
    assert!(required(
        Case::new("").env("NATS_URL", "nats://a, tls://t@b")
    ));
    let roots = Case::new("");
    let path = roots.write("ca.crt", CERTIFICATE).display().to_string();
    assert!(required(roots.env("WALRELAY_NATS_TLS_CA", &path)));
    assert!(required(Case::new("[nats]\ntls_first = true\n")));
    let system = Case::new("[nats]\ntls_ca = \"system\"\n");
    assert_eq!(connection(&system).tls.roots, Roots::System);
    let half = Case::new("[nats]\ntls_key = \"client.key\"\n");
    assert!(matches!(half.load(), Err(ConfigError::AuthHalf { .. })));
    // Once, also where there is a login that is whole.
    let half = half.env("WALRELAY_NATS_TOKEN", "t");
    assert!(matches!(half.load(), Err(ConfigError::AuthHalf { .. })));
}

/// As a missing file of a login is.
#[test]
fn a_file_of_tls_that_is_not_there_is_told_before_the_first_connection() {
    let refused = |text: &str| {
        let error = Case::new(text).load().expect_err(text);
        format!("{:#}", anyhow::Error::from(error))
    };
    for (text, words) in [
        (
            "[nats]\ntls_ca = '/no/ca.crt'",
            ["nats.tls_ca", "/no/ca.crt"],
        ),
        (
            "[nats]\ntls_cert = '/no/own.crt'\ntls_key = '/no/own.key'",
            ["nats.tls_cert", "/no/own.crt"],
        ),
        (
            "[postgres]\nurl = 'host=h user=u sslmode=verify-full sslrootcert=/no/root.crt'",
            ["sslrootcert", "/no/root.crt"],
        ),
        (
            "[postgres]\nurl = 'host=h user=u sslcert=/no/own.crt sslkey=/no/own.key'",
            ["sslcert", "/no/own.crt"],
        ),
        (
            "[postgres]\nurl = 'host=h user=u sslmode=allow sslrootcert=/no/root.crt'",
            ["sslrootcert", "/no/root.crt"],
        ),
    ] {
        let told = refused(text);
        assert_eq!(told.lines().count(), 1, "{told}");
        for word in words {
            assert!(told.contains(word), "{told}");
        }
    }
    // Nothing reads it.
    let plain = "[postgres]\nurl = 'host=h user=u sslmode=disable sslrootcert=/no/root.crt'";
    Case::new(plain).load().unwrap();
}

#[test]
fn the_api_is_where_domain_or_prefix_say() {
    let prefix = |text: &str| connection(&Case::new(text)).api_prefix;
    assert_eq!(prefix(""), "$JS.API");
    assert_eq!(prefix("[nats]\ndomain = \"hub\"\n"), "$JS.hub.API");
    assert_eq!(prefix("[nats]\napi_prefix = \"js.from.a\"\n"), "js.from.a");
    let both = Case::new("[nats]\ndomain = \"hub\"\napi_prefix = \"js\"\n");
    assert!(matches!(both.load(), Err(ConfigError::ApiTwice { .. })));
    let higher = Case::new("[nats]\ndomain = \"hub\"\n").env("WALRELAY_NATS_API_PREFIX", "js");
    assert_eq!(connection(&higher).api_prefix, "js");
}

#[test]
fn a_context_stands_below_the_file_and_above_the_fallback() {
    let context = r#"{"description": "x", "url": "tls://ctx:4333", "user": "alice", "password": "hunter2",
        "ca": "~/ca.crt", "jetstream_domain": "hub", "inbox_prefix": "mine", "cert": "", "unknown": 1}"#;
    let mut case = Case::new("[nats]\ncontext = \"prod\"\ninbox_prefix = \"file\"\n")
        .env("NATS_URL", "nats://fallback");
    let home = case.folder.path().display().to_string();
    fs::create_dir_all(case.folder.path().join("nats/context")).unwrap();
    case.write("nats/context/prod.json", context);
    case.write("ca.crt", CERTIFICATE);
    case = case.env("XDG_CONFIG_HOME", &home).env("HOME", &home);
    let found = connection(&case);
    assert_eq!(found.servers[0].host, "ctx");
    assert_eq!(found.inbox_prefix, "file");
    assert_eq!(found.api_prefix, "$JS.hub.API");
    assert_eq!(
        found.tls.roots,
        Roots::File(case.folder.path().join("ca.crt"))
    );
    assert_eq!(
        found.login,
        Login::Given(NatsAuth::UserPassword {
            user: "alice".to_owned(),
            password: Secret::new("hunter2"),
        })
    );
    let loaded = case.load().unwrap();
    let password = shown(&loaded, Key::NatsPassword);
    assert_eq!(password.text, "***");
    assert!(password.source.to_string().contains("prod.json"));
}

#[test]
fn a_context_may_hold_a_jwt_and_its_seed() {
    let case = Case::new("");
    let seed = nkeys::KeyPair::new_user().seed().unwrap();
    let context = format!(r#"{{"user_jwt": "eyJ0.a.b", "user_seed": "{seed}"}}"#);
    let path = case.write("ctx.json", &context);
    let case = case.env("WALRELAY_NATS_CONTEXT", &path.display().to_string());
    assert_eq!(
        connection(&case).login,
        Login::Given(NatsAuth::Jwt {
            jwt: Secret::new("eyJ0.a.b"),
            seed: Secret::new(&*seed),
        })
    );
    let loaded = case.load().unwrap();
    for key in [Key::NatsJwt, Key::NatsNkeySeed] {
        assert_eq!(shown(&loaded, key).text, "***");
    }
}

#[test]
fn a_context_that_cannot_be_used_says_why() {
    let refused = |text: &str| {
        let case = Case::new("");
        let path = case.write("ctx.json", text);
        let case = case.env("WALRELAY_NATS_CONTEXT", &path.display().to_string());
        let Err(error) = case.load() else {
            panic!("{text} is taken");
        };
        assert!(matches!(error, ConfigError::Context { .. }), "{error}");
        error.to_string()
    };
    let text = refused(r#"{"nsc": "nsc://o/a/u", "password": "hunter2"}"#);
    assert!(text.contains("uses nsc"), "{text}");
    let text = refused("{\"password\": \"hunter2\",\n oops}");
    assert!(
        text.contains("ctx.json:2") && !text.contains("hunter2"),
        "{text}"
    );
    let missing = Case::new("[nats]\ncontext = \"none\"\n").env("HOME", "/nowhere");
    let text = missing.load().unwrap_err().to_string();
    assert!(
        text.contains("/nowhere/.config/nats/context/none.json"),
        "{text}"
    );
}

#[test]
fn a_jwt_goes_with_the_file_of_its_seed() {
    let case = Case::new("");
    let jwt = case.write("user.jwt", "eyJ0.a.b\n");
    let seed = nkeys::KeyPair::new_user().seed().unwrap();
    let seed = case.write("user.nk", &seed);
    let text = |path: &std::path::Path| path.display().to_string();
    let case = case.env("WALRELAY_NATS_JWT", &text(&jwt));
    assert!(matches!(case.load(), Err(ConfigError::AuthHalf { .. })));
    let case = case.env("WALRELAY_NATS_NKEY_SEED", &text(&seed));
    let wanted = Login::JwtAndSeed { jwt, seed };
    let found = connection(&case).login;
    assert_eq!(found, wanted);
    assert!(matches!(found.read(), Ok(NatsAuth::Jwt { .. })));
    for content in ["SUAseed", "", "eyJ0.a"] {
        case.write("user.jwt", content);
        let refused = case.load();
        assert!(
            matches!(refused, Err(ConfigError::SecretFile { .. })),
            "{content}"
        );
    }
    let pasted = Case::new("").env("WALRELAY_NATS_NKEY_SEED", &text(case.folder.path()));
    let pasted = pasted
        .env("WALRELAY_NATS_JWT", "eyJ0.a.b")
        .load()
        .unwrap_err();
    assert!(!pasted.to_string().contains("eyJ0.a.b"), "{pasted}");
}

#[test]
fn websockets_are_refused_with_what_serves() {
    for url in ["ws://h:8080", "WSS://u:hunter2@h"] {
        let error = Case::new("").env("NATS_URL", url).load().unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("WebSocket") && text.contains("tls://"),
            "{text}"
        );
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_secret_of_a_file_is_read_at_each_connect() {
    let case = Case::new("");
    let path = case.write("token", "t0k3n\n");
    let case = case.env("WALRELAY_NATS_TOKEN_FILE", &path.display().to_string());
    assert_eq!(connection(&case).login, Login::TokenFile(path));
}
