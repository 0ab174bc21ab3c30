//! SCRAM bound to the channel, and what the server may ask.

use std::fs;

use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm,
};
use walrelay::postgres::error::AuthenticationError;
use walrelay::postgres::error::ReplicationError;
use walrelay::postgres::session::SqlError;

use crate::certificates::{Authority, Pair, SERVER};
use crate::support::{Outcome, conninfo, conninfo_text, home, psql, replication, server, sql};

fn rsa_authority() -> Authority {
    let key = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys/rsa.key");
    let key = KeyPair::from_pem(&fs::read_to_string(key).unwrap()).unwrap();
    Authority::new("RSA", key)
}

fn authority(algorithm: &'static SignatureAlgorithm) -> Authority {
    Authority::new("CA", KeyPair::generate_for(algorithm).unwrap())
}

/// A server that asks for a password by SCRAM, and a superuser who has one.
async fn scram_server(pair: Option<&Pair>, method: &str) -> walrelay::local::LocalPostgres {
    let hba = format!("host all all 127.0.0.1/32 {method}");
    let server = server(pair, &hba, &[], None).await;
    let text = format!(
        "host={} port={} user=postgres dbname=postgres",
        server.socket_dir().display(),
        server.port()
    );
    let home = home(&[]);
    let client = walrelay::postgres::client::connect(&conninfo(&text, home.path()).unwrap()).await;
    let encryption = if method == "md5" {
        "md5"
    } else {
        "scram-sha-256"
    };
    client
        .unwrap()
        .batch_execute(&format!(
            "SET password_encryption = '{encryption}'; ALTER ROLE postgres PASSWORD 'opensesame'"
        ))
        .await
        .unwrap();
    server
}

/// What the three clients make of these parameters; they must agree.
async fn outcome(
    server: &walrelay::local::LocalPostgres,
    parameters: &str,
) -> Result<Outcome, (SqlError, ReplicationError)> {
    let home = home(&[]);
    let text = conninfo_text(
        server,
        home.path(),
        &format!("password=opensesame {parameters}"),
    );
    let (by_psql, said) = psql(&text, home.path()).await;
    let conninfo = conninfo(&text, home.path()).unwrap();
    let both = (sql(&conninfo).await, replication(&conninfo).await);
    match both {
        (Ok(sql), Ok(replication)) => {
            assert_eq!(
                (sql, replication),
                (by_psql, by_psql),
                "{parameters}: psql: {said}"
            );
            Ok(sql)
        }
        (Err(sql), Err(replication)) => {
            assert_eq!(by_psql, Outcome::Refused, "{parameters}: {sql}");
            Err((sql, replication))
        }
        both => panic!("{parameters}: the clients do not agree: {both:?}"),
    }
}

#[tokio::test]
async fn scram_is_bound_to_the_channel_by_the_hash_of_each_kind_of_certificate() {
    for authority in [
        rsa_authority(),
        authority(&PKCS_ECDSA_P256_SHA256),
        authority(&PKCS_ECDSA_P384_SHA384),
    ] {
        let pair = authority.sign(SERVER, &PKCS_ECDSA_P256_SHA256);
        let server = scram_server(Some(&pair), "scram-sha-256").await;
        for binding in ["disable", "prefer", "require"] {
            let parameters = format!("sslmode=require channel_binding={binding}");
            assert_eq!(
                outcome(&server, &parameters).await.unwrap(),
                Outcome::Tls,
                "{binding}"
            );
        }
        let plain = outcome(&server, "sslmode=disable channel_binding=require").await;
        assert!(matches!(
            plain,
            Err((
                SqlError::Authentication(AuthenticationError::CannotBind),
                ReplicationError::Authentication(AuthenticationError::CannotBind)
            ))
        ));
    }
}

#[tokio::test]
async fn a_certificate_without_a_hash_cannot_be_bound_to() {
    let pair = authority(&PKCS_ED25519).sign(SERVER, &PKCS_ECDSA_P256_SHA256);
    let server = scram_server(Some(&pair), "scram-sha-256").await;
    let parameters = "sslmode=require channel_binding=disable";
    assert_eq!(outcome(&server, parameters).await.unwrap(), Outcome::Tls);
    // Here alone we go further than libpq, which gives up.
    let home = home(&[]);
    let parameters = "password=opensesame sslmode=require channel_binding=prefer";
    let text = conninfo_text(&server, home.path(), parameters);
    let (by_psql, said) = psql(&text, home.path()).await;
    assert!(by_psql == Outcome::Refused && said.contains("could not find digest"));
    let conninfo = conninfo(&text, home.path()).unwrap();
    assert_eq!(sql(&conninfo).await.unwrap(), Outcome::Tls);
    assert_eq!(replication(&conninfo).await.unwrap(), Outcome::Tls);
    let required = outcome(&server, "sslmode=require channel_binding=require").await;
    assert!(matches!(
        required,
        Err((SqlError::Authentication(AuthenticationError::CannotBind), _))
    ));
}

#[tokio::test]
async fn the_server_may_ask_only_what_require_auth_allows() {
    let pair = authority(&PKCS_ECDSA_P256_SHA256).sign(SERVER, &PKCS_ECDSA_P256_SHA256);
    for (method, allowed, forbidden) in [
        ("scram-sha-256", "scram-sha-256", "md5,password"),
        ("password", "password,none", "!password"),
        ("md5", "md5", "scram-sha-256"),
        ("trust", "none", "!none"),
    ] {
        let server = scram_server(Some(&pair), method).await;
        let ask = async |list: &str| {
            outcome(&server, &format!("sslmode=require require_auth={list}")).await
        };
        assert_eq!(ask(allowed).await.unwrap(), Outcome::Tls, "{method}");
        let refused = ask(forbidden).await;
        assert!(
            matches!(
                &refused,
                Err((
                    SqlError::Authentication(AuthenticationError::NotAllowed { .. }),
                    ReplicationError::Authentication(AuthenticationError::NotAllowed { .. })
                ))
            ),
            "{method}: {refused:?}"
        );
        let bound = outcome(&server, "sslmode=require channel_binding=require").await;
        match (method, &bound) {
            ("scram-sha-256", Ok(Outcome::Tls)) => {}
            (_, Err((SqlError::Authentication(AuthenticationError::NotBound { .. }), _))) => {}
            _ => panic!("{method}: {bound:?}"),
        }
    }
}
