//! The table: server × what the client has × `sslmode`, for plain SQL, replication and psql.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use walrelay::local::LocalPostgres;

use crate::certificates::{Authority, Pair, SERVER, Subject};
use crate::support::{Outcome, conninfo, conninfo_text, home, psql, replication, server, sql};

const ANYHOW: &str = "host all all 127.0.0.1/32 trust";
const MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];
const ROOT: &str = "sslrootcert={home}/root.crt";

/// Names and contents.
type Files<'a> = &'a [(&'a str, &'a str)];

/// Expected per mode: `-` plain, `T` TLS, `x` refused. Beside it, words of what plain SQL says in the last mode that
/// is refused.
async fn check(
    name: &str,
    server: &LocalPostgres,
    files: Files<'_>,
    parameters: &str,
    expected: &str,
    said: &str,
) {
    let home = home(files);
    let mut last = String::new();
    for (mode, expected) in MODES.into_iter().zip(expected.chars()) {
        let expected = match expected {
            '-' => Outcome::Plain,
            'T' => Outcome::Tls,
            _ => Outcome::Refused,
        };
        let text = conninfo_text(server, home.path(), &format!("sslmode={mode} {parameters}"));
        let (by_psql, psql_said) = psql(&text, home.path()).await;
        assert_eq!(by_psql, expected, "{name}, {mode}: psql: {psql_said}");
        let conninfo = match conninfo(&text, home.path()) {
            Ok(conninfo) => conninfo,
            Err(error) => {
                assert_eq!(Outcome::Refused, expected, "{name}, {mode}: {error}");
                last = error.to_string();
                continue;
            }
        };
        let by_sql = sql(&conninfo).await;
        let by_replication = replication(&conninfo).await;
        let outcome = |outcome: &Outcome| *outcome;
        assert_eq!(
            by_sql.as_ref().map_or(Outcome::Refused, outcome),
            expected,
            "{name}, {mode}: sql: {by_sql:?}"
        );
        assert_eq!(
            by_replication.as_ref().map_or(Outcome::Refused, outcome),
            expected,
            "{name}, {mode}: replication: {by_replication:?}"
        );
        if let (Err(sql), Err(replication)) = (&by_sql, &by_replication) {
            assert!(!sql.is_transient(), "{name}, {mode}: {sql}");
            assert!(!replication.is_transient(), "{name}, {mode}: {replication}");
            last = sql.to_string();
        }
    }
    assert!(last.contains(said), "{name}: {last}");
}

struct Authorities {
    ours: Authority,
    other: Authority,
}

fn authorities() -> Authorities {
    Authorities {
        ours: Authority::new("Ours", KeyPair::generate().unwrap()),
        other: Authority::new("Another", KeyPair::generate().unwrap()),
    }
}

fn signed(authority: &Authority, subject: Subject) -> Pair {
    authority.sign(subject, &PKCS_ECDSA_P256_SHA256)
}

#[tokio::test]
async fn a_server_with_the_right_certificate() {
    let Authorities { ours, other } = authorities();
    let server = server(Some(&signed(&ours, SERVER)), ANYHOW, &[], None).await;
    let root: Files<'_> = &[("root.crt", &ours.certificate)];
    check("right", &server, root, ROOT, "--TTTT", "").await;
    check("no root file", &server, &[], "", "--TTxx", "sslrootcert").await;
    let by_default: Files<'_> = &[(".postgresql/root.crt", &ours.certificate)];
    check(
        "libpq's own root file",
        &server,
        by_default,
        "",
        "--TTTT",
        "",
    )
    .await;
    let wrong: Files<'_> = &[("root.crt", &other.certificate)];
    let said = "authority that is not trusted here";
    check("wrong CA", &server, wrong, ROOT, "---xxx", said).await;
    let both = format!("{}{}", other.certificate, ours.certificate);
    let bundle: Files<'_> = &[("root.crt", both.as_str())];
    check("a bundle", &server, bundle, ROOT, "--TTTT", "").await;
    let direct = format!("{ROOT} sslnegotiation=direct");
    check("direct", &server, root, &direct, "xxxTTT", "").await;
    let address = format!("{ROOT} host=127.0.0.1");
    check("its address", &server, root, &address, "--TTTT", "").await;
    let no_sni = format!("{ROOT} sslsni=0");
    check("no SNI", &server, root, &no_sni, "--TTTT", "").await;
    let other_address = format!("{ROOT} host=127.0.0.2");
    let said = "names localhost, 127.0.0.1, not 127.0.0.2";
    check(
        "another address",
        &server,
        root,
        &other_address,
        "--TTTx",
        said,
    )
    .await;
    let old = format!("{ROOT} ssl_min_protocol_version=TLSv1.2 ssl_max_protocol_version=TLSv1.2");
    check("TLS 1.2 of the client", &server, root, &old, "--TTTT", "").await;
}

#[tokio::test]
async fn a_server_with_a_certificate_that_is_not_right() {
    let Authorities { ours, .. } = authorities();
    let root: Files<'_> = &[("root.crt", &ours.certificate)];
    let expired = Subject {
        valid: (2019, 2020),
        ..SERVER
    };
    let future = Subject {
        valid: (2080, 2090),
        ..SERVER
    };
    let elsewhere = Subject {
        names: &["db.example", "*.db.example"],
        ..SERVER
    };
    for (name, subject, with_root, without, said) in [
        ("expired", expired, "---xxx", "--TTxx", "has expired"),
        ("not yet valid", future, "---xxx", "--TTxx", "not valid yet"),
        (
            "wrong host",
            elsewhere,
            "--TTTx",
            "--TTxx",
            "names db.example, *.db.example, not localhost",
        ),
    ] {
        let server = server(Some(&signed(&ours, subject)), ANYHOW, &[], None).await;
        check(name, &server, root, ROOT, with_root, said).await;
        check(name, &server, &[], "", without, "sslrootcert").await;
        if name == "wrong host" {
            let of_wildcard = format!("{ROOT} host=a.db.example");
            check("wildcard", &server, root, &of_wildcard, "--TTTT", "").await;
            let deeper = format!("{ROOT} host=a.b.db.example");
            check(
                "two labels",
                &server,
                root,
                &deeper,
                "--TTTx",
                "not a.b.db.example",
            )
            .await;
        }
    }
    let common_name = Subject {
        common_name: "localhost",
        names: &[],
        ..SERVER
    };
    let by_common_name = server(Some(&signed(&ours, common_name)), ANYHOW, &[], None).await;
    check("common name", &by_common_name, root, ROOT, "--TTTT", "").await;
    let address = format!("{ROOT} host=127.0.0.1");
    check(
        "not its address",
        &by_common_name,
        root,
        &address,
        "--TTTx",
        "names localhost",
    )
    .await;
}

#[tokio::test]
async fn a_server_that_has_signed_itself() {
    let Authorities { ours, .. } = authorities();
    for is_authority in [false, true] {
        let own = Subject {
            is_authority,
            ..SERVER
        };
        let pair = own.self_signed();
        let server = server(Some(&pair), ANYHOW, &[], None).await;
        let root: Files<'_> = &[("root.crt", &ours.certificate)];
        check(
            "self-signed",
            &server,
            root,
            ROOT,
            "---xxx",
            "not trusted here",
        )
        .await;
        let itself: Files<'_> = &[("root.crt", &pair.certificate)];
        check("trusted itself", &server, itself, ROOT, "--TTTT", "").await;
    }
    let expired = Subject {
        valid: (2019, 2020),
        ..SERVER
    };
    let pair = expired.self_signed();
    let server = server(Some(&pair), ANYHOW, &[], None).await;
    let itself: Files<'_> = &[("root.crt", &pair.certificate)];
    check(
        "trusted itself, expired",
        &server,
        itself,
        ROOT,
        "---xxx",
        "expired",
    )
    .await;
}

#[tokio::test]
async fn a_certificate_that_was_revoked() {
    let Authorities { ours, other } = authorities();
    let server = server(Some(&signed(&ours, SERVER)), ANYHOW, &[], None).await;
    let parameters = format!("{ROOT} sslcrl={{home}}/root.crl");
    for (name, list, expected, said) in [
        ("revoked", ours.revoke(&[1]), "---xxx", "has been revoked"),
        ("others revoked", ours.revoke(&[2]), "--TTTT", ""),
        (
            "another's list",
            other.revoke(&[1]),
            "---xxx",
            "no revocation list is from",
        ),
    ] {
        let files: Files<'_> = &[("root.crt", &*ours.certificate), ("root.crl", &*list)];
        check(name, &server, files, &parameters, expected, said).await;
    }
    let list = ours.revoke(&[1]);
    let files: Files<'_> = &[
        (".postgresql/root.crt", &*ours.certificate),
        (".postgresql/root.crl", &*list),
    ];
    check("libpq's own list", &server, files, "", "---xxx", "revoked").await;
}

#[tokio::test]
async fn a_server_that_asks_for_our_certificate() {
    let Authorities { ours, other } = authorities();
    let hba = "hostssl all all 127.0.0.1/32 cert";
    let authority = Some(ours.certificate.as_str());
    let server = server(Some(&signed(&ours, SERVER)), hba, &[], authority).await;
    let named = |common_name| Subject {
        common_name,
        names: &[],
        serial: 7,
        ..SERVER
    };
    let files = |pair: &Pair| {
        [
            ("root.crt".to_owned(), ours.certificate.clone()),
            ("own.crt".to_owned(), pair.certificate.clone()),
            ("own.key".to_owned(), pair.key.clone()),
        ]
    };
    let own = format!("{ROOT} sslcert={{home}}/own.crt sslkey={{home}}/own.key");
    let mapped = signed(&ours, named("postgres"));
    let unmapped = signed(&ours, named("somebody"));
    let foreign = signed(&other, named("postgres"));
    for (name, pair, parameters, expected, said) in [
        ("right", &mapped, own.as_str(), "xTTTTT", ""),
        (
            "missing",
            &mapped,
            ROOT,
            "xxxxxx",
            "has signed, and its key: sslcert and sslkey",
        ),
        (
            "unmapped",
            &unmapped,
            &own,
            "xxxxxx",
            "map its CN to postgres in pg_ident.conf",
        ),
        (
            "of another CA",
            &foreign,
            &own,
            "xxxxxx",
            "does not take our certificate",
        ),
        (
            "not shown",
            &mapped,
            &format!("{own} sslcertmode=disable"),
            "xxxxxx",
            "has signed, and its key: sslcert and sslkey",
        ),
    ] {
        let files = files(pair);
        let files: Vec<_> = files
            .iter()
            .map(|(name, text)| (&**name, &**text))
            .collect();
        check(name, &server, &files, parameters, expected, said).await;
    }
    let by_default: Files<'_> = &[
        (".postgresql/root.crt", &*ours.certificate),
        (".postgresql/postgresql.crt", &*mapped.certificate),
        (".postgresql/postgresql.key", &*mapped.key),
    ];
    check("libpq's own", &server, by_default, "", "xTTTTT", "").await;
}

#[tokio::test]
async fn a_server_that_takes_one_of_both_only() {
    let Authorities { ours, .. } = authorities();
    let root: Files<'_> = &[("root.crt", &ours.certificate)];
    let pair = signed(&ours, SERVER);
    let plain = server(None, ANYHOW, &[], None).await;
    check("no TLS", &plain, root, ROOT, "---xxx", "offers no TLS").await;
    let hba = "hostssl all all 127.0.0.1/32 trust";
    let tls = server(Some(&pair), hba, &[], None).await;
    check("TLS alone", &tls, root, ROOT, "xTTTTT", "").await;
    let hba = "hostnossl all all 127.0.0.1/32 trust";
    let not_tls = server(Some(&pair), hba, &[], None).await;
    check("plain alone", &not_tls, root, ROOT, "---xxx", "pg_hba.conf").await;
    let old = [("ssl_max_protocol_version", "TLSv1.2")];
    let old = server(Some(&pair), ANYHOW, &old, None).await;
    check("TLS 1.2", &old, root, ROOT, "--TTTT", "").await;
    let new = format!("{ROOT} ssl_min_protocol_version=TLSv1.3");
    check(
        "TLS 1.2 for 1.3",
        &old,
        root,
        &new,
        "---xxx",
        "no TLS version",
    )
    .await;
}

#[tokio::test]
async fn a_certificate_of_version_1() {
    let pair = Pair {
        certificate: include_str!("../keys/version1.crt").to_owned(),
        key: include_str!("../keys/rsa.key").to_owned(),
    };
    for settings in [&[][..], &[("ssl_max_protocol_version", "TLSv1.2")]] {
        let server = server(Some(&pair), ANYHOW, settings, None).await;
        check("not checked", &server, &[], "", "--TTxx", "sslrootcert").await;
        let itself: Files<'_> = &[("root.crt", &pair.certificate)];
        check("trusted itself", &server, itself, ROOT, "--TTTT", "").await;
    }
}
