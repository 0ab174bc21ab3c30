//! `WALRELAY_TEST_TLS=1`: the relay has TLS and logins on both sides, the tests' own connections to Postgres have neither.
//!
//! Postgres asks whoever comes over TLS for a password, by SCRAM bound to the channel; NATS takes nothing but TLS and the
//! JWT of a user. All servers of a process have one certificate, signed by itself.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use walrelay::local::{LocalNats, LocalPostgres, NatsOptions, PostgresOptions};
use walrelay::nats::login::Login;
use walrelay::nats::settings::ConnectionSettings;
use walrelay::tls::Roots;

/// Of the superuser.
pub(crate) const PASSWORD: &str = "hush";

const HBA: &str = "local all all trust
hostssl all postgres 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
";

const CERTIFICATE: &str = "server.crt";
const KEY: &str = "server.key";
const CREDENTIALS: &str = "user.creds";
const PASSFILE: &str = "pgpass";

struct Identity {
    certificate: String,
    key: String,
    account: KeyPair,
    credentials: String,
    /// Operator and accounts.
    configuration: String,
}

pub(crate) fn is_wanted() -> bool {
    std::env::var_os("WALRELAY_TEST_TLS").is_some_and(|text| !text.is_empty())
}

/// Adds TLS, and the login.
pub(crate) fn postgres(options: &mut PostgresOptions, login: bool) {
    let own = identity();
    for (name, content) in [(CERTIFICATE, &own.certificate), (KEY, &own.key)] {
        options.files.push((name.to_owned(), content.clone()));
    }
    options.settings.push(("ssl".to_owned(), "on".to_owned()));
    if login {
        options.hba = Some(HBA.to_owned());
    }
}

pub(crate) async fn set_password(server: &LocalPostgres) {
    let client = server.connect("postgres").await.expect("connects");
    let sql = format!("ALTER ROLE postgres PASSWORD '{PASSWORD}'");
    client.batch_execute(&sql).await.expect("a superuser may");
}

/// Adds TLS and the login.
pub(crate) fn nats(options: &mut NatsOptions) {
    let own = identity();
    let passfile = format!("*:*:*:postgres:{PASSWORD}\n");
    for (name, content) in [
        (CERTIFICATE, &own.certificate),
        (KEY, &own.key),
        (CREDENTIALS, &own.credentials),
        (PASSFILE, &passfile),
    ] {
        options.files.push((name.to_owned(), content.clone()));
    }
    let tls = format!("tls {{ cert_file: \"{CERTIFICATE}\", key_file: \"{KEY}\" }}");
    options.config_extra = format!("{}\n{tls}\n{}", options.config_extra, own.configuration);
}

/// What the relay has to be told.
pub(crate) fn environment(nats: &LocalNats) -> [(&'static str, String); 5] {
    let file = |name| nats.file(name).display().to_string();
    [
        ("PGSSLMODE", "verify-full".to_owned()),
        ("PGSSLROOTCERT", file(CERTIFICATE)),
        ("PGPASSFILE", file(PASSFILE)),
        ("WALRELAY_NATS_TLS_CA", file(CERTIFICATE)),
        ("WALRELAY_NATS_CREDENTIALS", file(CREDENTIALS)),
    ]
}

/// The same to Postgres in the URL, for a relay inside the test.
#[allow(dead_code)] // The chaos tests embed none.
pub(crate) fn postgres_url(url: &str, nats: &LocalNats) -> String {
    let file = |name| nats.file(name).display().to_string();
    let (roots, passfile) = (file(CERTIFICATE), file(PASSFILE));
    format!("{url}?sslmode=verify-full&sslrootcert={roots}&passfile={passfile}")
}

/// The same to NATS.
#[allow(dead_code)]
pub(crate) fn nats_connection(connection: &mut ConnectionSettings, nats: &LocalNats) {
    connection.login = Login::Credentials(nats.file(CREDENTIALS));
    connection.tls.roots = Roots::File(nats.file(CERTIFICATE));
}

/// Roots and credentials.
pub(crate) fn files(nats: &LocalNats) -> [PathBuf; 2] {
    [nats.file(CERTIFICATE), nats.file(CREDENTIALS)]
}

/// For the tests' own connections to a NATS that [`nats`] has made.
pub(crate) fn client(roots: &Path) -> async_nats::ConnectOptions {
    async_nats::ConnectOptions::with_credentials(&identity().credentials)
        .expect("credentials")
        .add_root_certificates(roots.to_owned())
        .require_tls(true)
}

fn identity() -> &'static Identity {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let own = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let accounts = Accounts::new();
        let unlimited =
            json!({ "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1 });
        let configuration = accounts.configuration(&unlimited);
        let account = accounts.account;
        Identity {
            certificate: own.cert.pem(),
            key: own.signing_key.serialize_pem(),
            credentials: credentials(&account, None),
            account,
            configuration,
        }
    })
}

/// Credentials of another user, until `expires_at` in seconds of Unix time.
#[allow(dead_code)] // The tests of logins use it.
pub(crate) fn credentials_until(expires_at: u64) -> String {
    credentials(&identity().account, Some(expires_at))
}

/// Accounts by JWT of an operator: one for the system, one for everything else.
pub(crate) struct Accounts {
    operator: KeyPair,
    system: KeyPair,
    account: KeyPair,
}

impl Accounts {
    pub(crate) fn new() -> Self {
        Accounts {
            operator: KeyPair::new_operator(),
            system: KeyPair::new_account(),
            account: KeyPair::new_account(),
        }
    }

    /// For nats-server, where the account has these limits in JetStream.
    pub(crate) fn configuration(&self, jetstream: &Value) -> String {
        let of_operator = json!({ "type": "operator", "version": 2 });
        let operator_jwt = jwt(&self.operator, &self.operator, None, of_operator);
        let account_jwt = |pair, jetstream: &Value| {
            let mut limits = json!({ "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
                "conn": -1, "leaf": -1 });
            let all = limits.as_object_mut().expect("an object");
            all.extend(jetstream.as_object().expect("an object").clone());
            let claims = json!({ "type": "account", "version": 2, "limits": limits });
            jwt(&self.operator, pair, None, claims)
        };
        format!(
            "operator: {operator_jwt}\nsystem_account: {system_key}\nresolver: MEMORY\n\
             resolver_preload: {{ {system_key}: {}, {account_key}: {} }}",
            account_jwt(&self.system, &json!({})),
            account_jwt(&self.account, jetstream),
            system_key = self.system.public_key(),
            account_key = self.account.public_key(),
        )
    }

    /// Of a user of the account.
    #[allow(dead_code)] // The tests of tiers use it.
    pub(crate) fn credentials(&self) -> String {
        credentials(&self.account, None)
    }
}

/// Of a new user, as nsc writes them.
fn credentials(account: &KeyPair, expires_at: Option<u64>) -> String {
    let user = KeyPair::new_user();
    let claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let user_jwt = jwt(account, &user, expires_at, claims);
    let seed = user.seed().expect("a private key");
    format!(
        "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

/// A NATS JWT of version 2: claims in base64, signed by the issuer.
fn jwt(issuer: &KeyPair, subject: &KeyPair, expires_at: Option<u64>, nats: Value) -> String {
    let encode = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let header = encode(json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let subject = subject.public_key();
    let claims = encode(json!({
        "jti": subject, "iat": 1, "iss": issuer.public_key(), "sub": subject, "name": subject, "nats": nats,
        // 0 is never.
        "exp": expires_at.unwrap_or(0),
    }));
    let signed = format!("{header}.{claims}");
    let signature = issuer.sign(signed.as_bytes()).expect("a private key");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
