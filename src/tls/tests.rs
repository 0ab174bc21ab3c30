//! Files of certificates and keys as people have them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::UnixTime;

use super::*;

const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys");

/// A folder with a certificate for the key `<name>.key` of the tests, which is also its own root.
fn folder(key: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let pair = KeyPair::from_pem(&fs::read_to_string(format!("{KEYS}/{key}.key")).unwrap());
    let certificate = CertificateParams::new(["localhost".to_owned()])
        .unwrap()
        .self_signed(&pair.unwrap())
        .unwrap();
    fs::write(folder.path().join("own.crt"), certificate.pem()).unwrap();
    folder
}

/// The client of that certificate with the key in the form `<form>.key`.
fn client(folder: &TempDir, form: &str, password: Option<&str>) -> Result<(), TlsError> {
    let key = folder.path().join("own.key");
    fs::copy(format!("{KEYS}/{form}.key"), &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let certificate = folder.path().join("own.crt");
    let identity = Identity {
        certificate: certificate.clone(),
        key,
        key_password: password.map(Secret::from),
    };
    client_config(&Roots::File(certificate), Some(&identity)).map(drop)
}

#[test]
fn keys_are_taken_in_every_form() {
    let (rsa, ec) = (folder("rsa"), folder("ec"));
    client(&rsa, "rsa", None).unwrap();
    client(&rsa, "rsa-pkcs1", None).unwrap();
    client(&rsa, "rsa-encrypted", Some("opensesame")).unwrap();
    client(&ec, "ec", None).unwrap();
    client(&ec, "ec-sec1", None).unwrap();
}

#[test]
fn keys_that_do_not_fit_are_refused_with_what_mends_it() {
    let rsa = folder("rsa");
    let refused = |form, password| client(&rsa, form, password).unwrap_err();
    assert!(matches!(refused("ec", None), TlsError::KeyMismatch { .. }));
    for (form, password, said) in [
        ("rsa-encrypted", None, "no password for it is given"),
        ("rsa-encrypted", Some("guess"), "its password does not fit"),
        ("rsa-pkcs1-encrypted", None, "openssl pkcs8 -topk8"),
    ] {
        let error = refused(form, password);
        assert!(matches!(error, TlsError::Content { .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let folder = folder("ec");
    client(&folder, "ec", None).unwrap();
    let identity = Identity {
        certificate: folder.path().join("own.crt"),
        key: folder.path().join("own.key"),
        key_password: None,
    };
    let own = fs::metadata(&identity.key).unwrap();
    let by_root = std::os::unix::fs::MetadataExt::uid(&own) == 0;
    for (mode, taken) in [
        (0o600, true),
        (0o400, true),
        (0o640, by_root),
        (0o644, false),
        (0o604, false),
        (0o660, false),
    ] {
        fs::set_permissions(&identity.key, fs::Permissions::from_mode(mode)).unwrap();
        match identity.private_key() {
            Ok(_) => assert!(taken, "{mode:o}"),
            Err(error) => assert!(
                !taken && matches!(error, TlsError::KeyMode { .. }),
                "{mode:o}: {error}"
            ),
        }
    }
}

#[test]
fn roots_that_cannot_be_read_are_told_by_their_file() {
    let folder = folder("ec");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("empty.crt"), "no certificate\n").unwrap();
    fs::write(
        path("broken.crt"),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    fs::write(path("latin1.crt"), {
        let pem = fs::read(path("own.crt")).unwrap();
        [b"Stra\xdfe\n".as_slice(), &pem].concat()
    })
    .unwrap();
    let load = |name: &str| Roots::File(path(name)).load();
    assert_eq!(load("own.crt").unwrap().1.len(), 1);
    assert_eq!(load("latin1.crt").unwrap().1.len(), 1);
    assert!(matches!(load("empty.crt"), Err(TlsError::Content { .. })));
    assert!(matches!(load("broken.crt"), Err(TlsError::Content { .. })));
    assert!(matches!(load("missing.crt"), Err(TlsError::File { .. })));
    assert!(matches!(load("."), Err(TlsError::File { .. })));
}

#[test]
fn a_certificate_with_any_byte_changed_never_panics() {
    let folder = folder("rsa");
    let (certificates, _) = Roots::File(folder.path().join("own.crt")).load().unwrap();
    let good = certificates[0].to_vec();
    let read = |der: &[u8]| {
        let certificate = Certificate::read(der)?;
        certificate.public_key();
        certificate.expired(UnixTime::now());
        certificate.is_authority();
        certificate.end_point_hash(der);
        Some(certificate.names().to_string())
    };
    assert_eq!(read(&good).as_deref(), Some("localhost"));
    for at in 0..good.len() {
        assert_eq!(read(&good[..at]), None, "cut at {at}");
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            read(&bad);
        }
    }
}

#[test]
fn the_names_of_a_certificate_count_as_in_libpq() {
    let names = |dns: &[&str], ip: &[&str], common: &str| certificate::Names {
        dns: dns.iter().map(|name| (*name).to_owned()).collect(),
        ip: ip.iter().map(|ip| ip.parse().unwrap()).collect(),
        common: Some(common.to_owned()),
    };
    for (names, host, also) in [
        (names(&[], &[], "db.example"), "DB.example", true),
        (names(&[], &[], "*.example"), "db.example", true),
        (names(&[], &[], "*.example"), "a.db.example", false),
        (names(&[], &[], "*.example"), "example", false),
        (names(&["other"], &[], "db.example"), "db.example", false),
        (names(&[], &["10.0.0.1"], "db.example"), "db.example", true),
        (names(&[], &[], "10.0.0.1"), "10.0.0.1", true),
        (names(&["10.0.0.1"], &[], "x"), "10.0.0.1", true),
        (names(&[], &["10.0.0.2"], "10.0.0.1"), "10.0.0.1", false),
    ] {
        assert_eq!(names.also_name(host), also, "{names:?} {host}");
    }
}
