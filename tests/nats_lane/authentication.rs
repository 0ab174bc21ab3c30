//! Every kind of credentials, right and wrong, for the lane and for administration.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use walrelay::nats::address::NatsAuth;
use walrelay::nats::admin::{Admin, AdminError};
use walrelay::nats::connection::ConnectError;
use walrelay::nats::login::LoginError;
use walrelay::nats::settings::ConnectionSettings;
use walrelay::secret::Secret;

use crate::server::Server;

pub(crate) fn settings(server: &Server, auth: &NatsAuth) -> ConnectionSettings {
    ConnectionSettings::new(vec![server.address()], auth.clone())
}

/// Both ways in are open.
async fn enters(server: &Server, auth: &NatsAuth) {
    let mut lane = server.open(auth).await.expect("the lane gets in");
    lane.queue_ping();
    lane.exchange().await.expect("an open connection");
    let client = Admin::connect(&settings(server, auth))
        .await
        .expect("the administrator gets in");
    client.client().flush().await.expect("an open connection");
}

/// Both ways in are closed, for good.
async fn is_refused(server: &Server, auth: &NatsAuth) {
    let error = server.open(auth).await.expect_err("refused");
    assert!(
        matches!(error, ConnectError::Auth { .. }) && !error.is_transient(),
        "{error:?}"
    );
    assert!(!format!("{error} {error:?}").contains("wrong"), "{error:?}");
    let error = Admin::connect(&settings(server, auth))
        .await
        .expect_err("refused");
    assert!(matches!(error, AdminError::Auth { .. }), "{error:?}");
}

fn user_password(user: &str, password: &str) -> NatsAuth {
    NatsAuth::UserPassword {
        user: user.into(),
        password: Secret::new(password),
    }
}

fn seed(pair: &KeyPair) -> Secret {
    Secret::new(pair.seed().expect("a private key"))
}

#[tokio::test]
async fn user_and_password() {
    let server = Server::start(r#"authorization { user: "alice", password: "s3cr3t" }"#).await;
    enters(&server, &user_password("alice", "s3cr3t")).await;
    is_refused(&server, &user_password("alice", "wrong")).await;
    is_refused(&server, &NatsAuth::None).await;
}

#[tokio::test]
async fn token() {
    let server = Server::start(r#"authorization { token: "t0k3n" }"#).await;
    enters(&server, &NatsAuth::Token(Secret::new("t0k3n"))).await;
    is_refused(&server, &NatsAuth::Token(Secret::new("wrong"))).await;
}

#[tokio::test]
async fn nkey() {
    let pair = KeyPair::new_user();
    let public_key = pair.public_key();
    let server = Server::start(&format!(
        "authorization {{ users: [{{ nkey: {public_key} }}] }}"
    ))
    .await;
    enters(&server, &NatsAuth::NKey { seed: seed(&pair) }).await;
    is_refused(
        &server,
        &NatsAuth::NKey {
            seed: seed(&KeyPair::new_user()),
        },
    )
    .await;
    let auth = NatsAuth::NKey {
        seed: Secret::new("SUwrong"),
    };
    assert!(matches!(
        server.open(&auth).await,
        Err(ConnectError::Login(LoginError::Seed))
    ));
    assert!(matches!(
        Admin::connect(&settings(&server, &auth)).await,
        Err(AdminError::Login(LoginError::Seed))
    ));
}

/// A NATS JWT of version 2: claims in base64, signed by the issuer.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: Value) -> String {
    let encode = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let header = encode(json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let claims = encode(json!({
        "jti": name, "iat": 1, "iss": issuer.public_key(), "sub": subject.public_key(), "name": name, "nats": nats,
    }));
    let signed = format!("{header}.{claims}");
    let signature = issuer.sign(signed.as_bytes()).expect("a private key");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn jwt_and_seed() {
    let (operator, account, user) = (
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_user(),
    );
    let operator_jwt = jwt(
        &operator,
        &operator,
        "o",
        json!({ "type": "operator", "version": 2 }),
    );
    let limits = json!({ "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
        "conn": -1, "leaf": -1 });
    let account_claims = json!({ "type": "account", "version": 2, "limits": limits });
    let account_jwt = jwt(&operator, &account, "a", account_claims);
    let user_claims =
        json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let user_jwt = jwt(&account, &user, "u", user_claims);
    let account_key = account.public_key();
    let server = Server::start(&format!(
        "operator: {operator_jwt}\nsystem_account: {account_key}\nresolver: MEMORY\n\
         resolver_preload: {{ {account_key}: {account_jwt} }}"
    ))
    .await;
    let auth = |seed| NatsAuth::Jwt {
        jwt: Secret::new(user_jwt.as_str()),
        seed,
    };
    enters(&server, &auth(seed(&user))).await;
    is_refused(&server, &auth(seed(&KeyPair::new_user()))).await;
}

#[tokio::test]
async fn a_user_without_an_inbox_is_told_so() {
    let server = Server::start(
        r#"authorization { users: [{ user: a, password: b, permissions: { subscribe: ["x"] } }] }"#,
    )
    .await;
    let error = server
        .open(&user_password("a", "b"))
        .await
        .expect_err("refused");
    assert!(
        matches!(error, ConnectError::Inbox { .. }) && !error.is_transient(),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_full_server_may_have_room_later() {
    let server = Server::start("max_connections: 1").await;
    let _first = server.connect().await;
    let error = server.open(&NatsAuth::None).await.expect_err("refused");
    assert!(
        matches!(error, ConnectError::Refused { .. }) && error.is_transient(),
        "{error:?}"
    );
}
