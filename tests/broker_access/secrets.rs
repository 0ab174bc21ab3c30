//! No secret in what the program prints, whichever way it has it, and whether or not the servers take it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;
use walrelay::local::{Authentication, PasswordMethod, PostgresOptions};

use nkeys::KeyPair;

use crate::support::{Fixture, Servers, secure};

/// Of Postgres; with what a URL must encode.
const PASSWORD: &str = "p4ss/w\u{f6}rd%1";
const ENCODED: &str = "p4ss%2Fw%C3%B6rd%251";
const KEY_PASSWORD: &str = "opensesame";

/// All that end by themselves, once there is an event.
const COMMANDS: [&[&str]; 10] = [
    &["config", "show"],
    &["config", "check"],
    &["status"],
    &["position"],
    &["doctor"],
    &["verify"],
    &["tail", "--since", "all", "--count", "1"],
    &["backfill"],
    &["dead-letters", "list"],
    &["adopt", "--yes"],
];

/// A way to log in somewhere: variables, and files by the variable that names them.
struct Way {
    set: Vec<(&'static str, String)>,
    files: Vec<(&'static str, String)>,
    secrets: Vec<String>,
}

fn way(set: &[(&'static str, &str)], files: &[(&'static str, &str)], secrets: &[&str]) -> Way {
    let owned = |pairs: &[(&'static str, &str)]| {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        pairs.collect()
    };
    Way {
        set: owned(set),
        files: owned(files),
        secrets: secrets.iter().map(|secret| (*secret).to_owned()).collect(),
    }
}

fn ways_to_postgres(port: u16, name: &str, file: &str) -> Vec<Way> {
    let url = format!("postgres://postgres@127.0.0.1:{port}/{name}");
    let full =
        format!("postgres://postgres:{ENCODED}@127.0.0.1:{port}/{name}?sslpassword={KEY_PASSWORD}");
    let pairs = format!(
        "host=127.0.0.1 port={port} user=postgres dbname={name} password={PASSWORD} sslpassword={KEY_PASSWORD}"
    );
    let command = format!("cat {file}");
    let both = [PASSWORD, ENCODED, KEY_PASSWORD];
    vec![
        way(&[("WALRELAY_POSTGRES_URL", &full)], &[], &both),
        way(&[("WALRELAY_POSTGRES_URL", &pairs)], &[], &both),
        way(
            &[
                ("WALRELAY_POSTGRES_URL", &url),
                ("WALRELAY_POSTGRES_PASSWORD", PASSWORD),
            ],
            &[],
            &both,
        ),
        way(
            &[
                ("WALRELAY_POSTGRES_URL", &url),
                ("WALRELAY_POSTGRES_PASSWORD_COMMAND", &command),
            ],
            &[],
            &both,
        ),
        way(
            &[("WALRELAY_POSTGRES_URL", &url)],
            &[("WALRELAY_POSTGRES_PASSWORD_FILE", PASSWORD)],
            &both,
        ),
    ]
}

/// With the configuration of a server that takes it.
fn ways_to_nats(port: u16) -> Vec<(String, Way)> {
    let pair = KeyPair::new_user();
    let seed = pair.seed().unwrap();
    let url = format!("nats://relay:t0ps3cret@127.0.0.1:{port}");
    let token_url = format!("nats://t0k3nt0k3n@127.0.0.1:{port}");
    let user = "authorization { user: relay, password: t0ps3cret }".to_owned();
    let token = "authorization { token: t0k3nt0k3n }".to_owned();
    let nkey = format!(
        "authorization {{ users: [{{ nkey: {} }}] }}",
        pair.public_key()
    );
    vec![
        (
            user.clone(),
            way(&[("WALRELAY_NATS_URL", &url)], &[], &["t0ps3cret"]),
        ),
        (
            user,
            way(
                &[
                    ("WALRELAY_NATS_USER", "relay"),
                    ("WALRELAY_NATS_PASSWORD", "t0ps3cret"),
                ],
                &[],
                &["t0ps3cret"],
            ),
        ),
        (
            token.clone(),
            way(&[("WALRELAY_NATS_URL", &token_url)], &[], &["t0k3nt0k3n"]),
        ),
        (
            token,
            way(
                &[],
                &[("WALRELAY_NATS_TOKEN_FILE", "t0k3nt0k3n")],
                &["t0k3nt0k3n"],
            ),
        ),
        (
            nkey,
            way(
                &[],
                &[("WALRELAY_NATS_NKEY_SEED", &seed)],
                &[&seed, &seed[..20]],
            ),
        ),
    ]
}

/// What all commands print with these logins, beside a relay that has an event to publish where the servers take them.
async fn everything_said(fixture: &mut Fixture, number: u64, servers_take_it: bool) -> String {
    let setup = fixture.walrelay(&["setup", "-vv"]).await;
    assert_eq!(setup.code == Some(0), servers_take_it, "{setup:?}");
    let mut said = setup.stdout + &setup.stderr;
    let mut relay = fixture.run_with(&["-vv"]);
    if servers_take_it {
        relay.streams().await;
        fixture.insert(number, number).await;
    } else {
        assert_eq!(relay.ends().await, Some(1));
    }
    for command in COMMANDS {
        let arguments: Vec<&str> = command.iter().chain(&["-vv"]).copied().collect();
        let output = fixture.walrelay(&arguments).await;
        if command[0] == "config" {
            assert_eq!(output.code, Some(0), "{output:?}");
        }
        said += &(output.stdout + &output.stderr);
    }
    said += &relay.log();
    if servers_take_it {
        relay.stop().await;
    }
    said
}

#[tokio::test]
async fn nothing_that_is_printed_has_a_secret() {
    let postgres = PostgresOptions {
        authentication: Authentication::Password {
            method: PasswordMethod::ScramSha256,
            password: PASSWORD.to_owned(),
        },
        fsync: false,
        ..PostgresOptions::default()
    };
    let mut fixture = Fixture::bare_on(Servers::with(postgres).await).await;
    let folder = tempfile::tempdir().unwrap();
    let (servers, name) = (fixture.servers(), fixture.name.clone());
    // What a command prints; its arguments are no secret, and config show shows them.
    let printed = folder.path().join("printed");
    std::fs::write(&printed, PASSWORD).unwrap();
    let of_postgres = ways_to_postgres(servers.postgres.port(), &name, printed.to_str().unwrap());
    let of_nats = ways_to_nats(servers.nats.port());
    let ways = of_postgres.into_iter().zip(of_nats);
    for (number, (mut to_postgres, (configuration, to_nats))) in (1..).zip(ways) {
        let mut variables = Vec::new();
        let nats_url = fixture.servers().nats.url();
        fixture.set("WALRELAY_NATS_URL", nats_url);
        to_postgres.secrets.extend(to_nats.secrets);
        let secrets = to_postgres.secrets;
        for (variable, value) in to_postgres.set.into_iter().chain(to_nats.set) {
            fixture.set(variable, value);
            variables.push(variable);
        }
        for (variable, content) in to_postgres.files.into_iter().chain(to_nats.files) {
            let path = folder.path().join(variable);
            std::fs::write(&path, content).unwrap();
            fixture.set(variable, path.display().to_string());
            variables.push(variable);
        }
        let other = "authorization { user: other, password: other }".to_owned();
        for (configuration, takes) in [(configuration, true), (other, false)] {
            let nats = &mut fixture.own_servers().nats;
            nats.stop().await.unwrap();
            nats.reload(configuration).await.unwrap();
            nats.start_again().await.unwrap();
            let said = everything_said(&mut fixture, number, takes).await;
            for secret in &secrets {
                let line = said.lines().find(|line| line.contains(secret.as_str()));
                assert_eq!(line, None, "{variables:?}");
            }
        }
        for variable in variables {
            fixture.unset(variable);
        }
    }
}

/// The JWT and the seed of credentials, also as two files.
#[tokio::test]
async fn nothing_that_is_printed_has_a_jwt_or_its_seed() {
    let mut fixture = Fixture::bare_on(Servers::with_logins_of_nats().await).await;
    let [roots, credentials] = secure::files(&fixture.servers().nats);
    let text = std::fs::read_to_string(&credentials).unwrap();
    let of = |mark: &str| {
        let mut lines = text.lines().skip_while(|line| !line.contains(mark));
        lines.nth(1).unwrap().to_owned()
    };
    let (jwt, seed) = (of("BEGIN NATS USER JWT"), of("BEGIN USER NKEY SEED"));
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let other_seed = KeyPair::new_user().seed().unwrap();
    fixture.set("WALRELAY_NATS_TLS_CA", roots.display().to_string());
    let ways = [
        (
            vec![(
                "WALRELAY_NATS_CREDENTIALS",
                credentials.display().to_string(),
            )],
            true,
        ),
        (
            vec![
                ("WALRELAY_NATS_JWT", file("user.jwt", &jwt)),
                ("WALRELAY_NATS_NKEY_SEED", file("user.nk", &seed)),
            ],
            true,
        ),
        (
            vec![
                ("WALRELAY_NATS_JWT", file("user.jwt", &jwt)),
                ("WALRELAY_NATS_NKEY_SEED", file("other.nk", &other_seed)),
            ],
            false,
        ),
    ];
    for (number, (variables, takes)) in (1..).zip(ways) {
        for (variable, value) in &variables {
            fixture.set(variable, value);
        }
        let said = everything_said(&mut fixture, number, takes).await;
        let claims = jwt.split('.').nth(1).unwrap();
        for secret in [claims, &seed, &other_seed] {
            assert_eq!(said.lines().find(|line| line.contains(secret)), None);
        }
        for (variable, _) in variables {
            fixture.unset(variable);
        }
    }
}

/// What every user of the machine may read, and the command that ends that, typed.
#[tokio::test]
async fn a_secret_that_others_may_read_is_told() {
    let mut fixture = Fixture::new().await;
    fixture.configure("[postgres]\npassword = \"of nobody\"\n");
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("the token's file");
    std::fs::write(&token, "secret\n").unwrap();
    fixture.set("WALRELAY_NATS_TOKEN_FILE", token.display().to_string());
    for file in [&token, &fixture.configuration()] {
        std::fs::set_permissions(file, Permissions::from_mode(0o644)).unwrap();
    }
    let mends = async |fixture: &Fixture| {
        let report = fixture.walrelay(&["doctor", "--json"]).await.stdout;
        let report: Value = serde_json::from_str(&report).unwrap();
        let found = report["findings"].as_array().unwrap().iter();
        let found = found.filter(|found| found["code"] == "exposed");
        let mends = found.map(|found| found["mend"].as_str().unwrap().to_owned());
        mends.collect::<Vec<_>>()
    };
    let found = mends(&fixture).await;
    assert_eq!(found.len(), 2, "{found:?}");
    let mut relay = fixture.run();
    relay.streams().await;
    let log = relay.log();
    relay.stop().await;
    let told = "every user of this machine may read it: chmod o-rwx ";
    assert_eq!(log.matches(told).count(), 2, "{log}");
    for mend in found {
        let typed = std::process::Command::new("sh")
            .args(["-c", &mend])
            .status();
        assert!(typed.unwrap().success(), "{mend}");
    }
    assert_eq!(mends(&fixture).await, Vec::<String>::new());
}
