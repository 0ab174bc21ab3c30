//! The authorities of the operating system, which `SSL_CERT_FILE` names for OpenSSL and for walrelay.

use std::process::Command;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};

use crate::certificates::{Authority, SERVER};
use crate::support::{Outcome, binaries, conninfo, conninfo_text, home, server, sql};

const URL: &str = "CONNINFO_OF_THE_PARENT";

/// Not a test of its own: what the other one runs as a process with another environment.
#[tokio::test]
#[ignore = "started by the_systems_authorities_are_trusted"]
async fn connects_from_a_process_of_its_own() {
    let home = home(&[]);
    let conninfo = conninfo(&std::env::var(URL).unwrap(), home.path()).unwrap();
    assert_eq!(sql(&conninfo).await.unwrap(), Outcome::Tls);
}

#[tokio::test]
async fn the_systems_authorities_are_trusted() {
    let authority = |name| Authority::new(name, KeyPair::generate().unwrap());
    let (ours, other) = (authority("Ours"), authority("Another"));
    let pair = ours.sign(SERVER, &PKCS_ECDSA_P256_SHA256);
    let server = server(Some(&pair), "host all all 127.0.0.1/32 trust", &[], None).await;
    let home = home(&[("ours", &ours.certificate), ("other", &other.certificate)]);
    let text = conninfo_text(&server, home.path(), "sslrootcert=system");
    for (file, trusted) in [("ours", true), ("other", false)] {
        let path = home.path().join(file);
        let mut psql = Command::new(binaries().postgres("psql"));
        psql.args(["-w", "-c", "SELECT 1", &text]);
        let mut walrelay = Command::new(std::env::current_exe().unwrap());
        let name = "system::connects_from_a_process_of_its_own";
        walrelay
            .args(["--exact", name, "--ignored"])
            .env(URL, &text);
        for mut command in [psql, walrelay] {
            command
                .env("SSL_CERT_FILE", &path)
                .env_remove("SSL_CERT_DIR");
            command.env("HOME", home.path());
            let output = tokio::process::Command::from(command)
                .output()
                .await
                .unwrap();
            assert_eq!(output.status.success(), trusted, "{file}: {output:?}");
        }
    }
}
