//! TLS to NATS, case by case, over both connections.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, version};
use walrelay::local::{LocalNats, NatsOptions};
use walrelay::nats::address::NatsAuth;
use walrelay::nats::admin::Admin;
use walrelay::nats::connection::{ConnectError, LaneConnection};
use walrelay::nats::settings::{ConnectionSettings, NatsTls};
use walrelay::tls::{Identity, Roots};

use crate::certificates::{Authority, Pair, SERVER, Subject};
use crate::support::binaries;

/// Certificates as files, of one authority unless the name says otherwise.
pub(crate) struct Files {
    folder: TempDir,
    authority: Authority,
    other: Authority,
}

impl Files {
    pub(crate) fn new() -> Files {
        let authority = |name| Authority::new(name, rcgen::KeyPair::generate().unwrap());
        let files = Files {
            folder: tempfile::tempdir().unwrap(),
            authority: authority("authority"),
            other: authority("other authority"),
        };
        fs::write(files.path("ca.crt"), &files.authority.certificate).unwrap();
        fs::write(files.path("other-ca.crt"), &files.other.certificate).unwrap();
        let client = Subject {
            common_name: "client",
            ..SERVER
        };
        files.write("server", &files.sign(SERVER));
        files.write("client", &files.sign(client));
        files.write("stranger", &files.other.sign(client, ALGORITHM));
        files.write("self-signed", &SERVER.self_signed());
        for (name, subject) in [
            (
                "expired",
                Subject {
                    valid: (2020, 2021),
                    ..SERVER
                },
            ),
            (
                "early",
                Subject {
                    valid: (2080, 2090),
                    ..SERVER
                },
            ),
            (
                "elsewhere",
                Subject {
                    names: &["other.example"],
                    ..SERVER
                },
            ),
        ] {
            files.write(name, &files.sign(subject));
        }
        files
    }

    fn sign(&self, subject: Subject) -> Pair {
        self.authority.sign(subject, ALGORITHM)
    }

    fn write(&self, name: &str, pair: &Pair) {
        fs::write(self.path(&format!("{name}.crt")), &pair.certificate).unwrap();
        let key = self.path(&format!("{name}.key"));
        fs::write(&key, &pair.key).unwrap();
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The `tls` block of a server with this certificate.
    pub(crate) fn server(&self, name: &str, more: &str) -> String {
        let path = |name: String| self.path(&name).display().to_string();
        format!(
            "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\"\n{more} }}",
            path(format!("{name}.crt")),
            path(format!("{name}.key")),
            path("ca.crt".into())
        )
    }

    fn identity(&self, name: &str) -> Identity {
        Identity {
            certificate: self.path(&format!("{name}.crt")),
            key: self.path(&format!("{name}.key")),
            key_password: None,
        }
    }
}

const ALGORITHM: &rcgen::SignatureAlgorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
const CLIENTS: &str = "verify: true";
const FIRST: &str = "handshake_first: true";

/// What is to come of it.
enum Outcome {
    Encrypted,
    Plain,
    /// Both connections say this.
    Refused(&'static str),
}
use Outcome::{Encrypted, Plain, Refused};

/// One server and one client.
struct Case {
    name: &'static str,
    /// The server's certificate and more of its `tls` block; none without TLS.
    server: Option<(&'static str, &'static str)>,
    url: &'static str,
    ca: Option<&'static str>,
    client: Option<&'static str>,
    first: bool,
    outcome: Outcome,
}

const BASE: Case = Case {
    name: "right",
    server: Some(("server", "")),
    url: "tls://localhost",
    ca: Some("ca.crt"),
    client: None,
    first: false,
    outcome: Encrypted,
};

fn cases() -> Vec<Case> {
    let refused = |name, server, said| Case {
        name,
        server: Some((server, "")),
        outcome: Refused(said),
        ..BASE
    };
    vec![
        BASE,
        Case {
            name: "by address",
            url: "tls://127.0.0.1",
            ..BASE
        },
        Case {
            name: "the server asks for it",
            url: "nats://localhost",
            ..BASE
        },
        refused("expired", "expired", "has expired"),
        refused("not yet valid", "early", "is not valid yet"),
        refused(
            "wrong host",
            "elsewhere",
            "names other.example, not localhost",
        ),
        refused(
            "self-signed",
            "self-signed",
            "authority that is not trusted",
        ),
        Case {
            name: "self-signed and named",
            server: Some(("self-signed", "")),
            ca: Some("self-signed.crt"),
            ..BASE
        },
        Case {
            name: "wrong authority",
            ca: Some("other-ca.crt"),
            outcome: Refused("with nats.tls_ca"),
            ..BASE
        },
        Case {
            name: "an authority that the system lacks",
            ca: None,
            outcome: Refused("authority that is not trusted"),
            ..BASE
        },
        Case {
            name: "the same by nats://",
            url: "nats://localhost",
            ca: None,
            outcome: Refused("authority that is not trusted"),
            ..BASE
        },
        Case {
            name: "client's certificate",
            server: Some(("server", CLIENTS)),
            client: Some("client"),
            ..BASE
        },
        Case {
            name: "client's certificate missing",
            server: Some(("server", CLIENTS)),
            outcome: Refused("name its files with nats.tls_cert and nats.tls_key"),
            ..BASE
        },
        Case {
            name: "a stranger's certificate",
            server: Some(("server", CLIENTS)),
            client: Some("stranger"),
            outcome: Refused("does not take our certificate"),
            ..BASE
        },
        Case {
            name: "no such file",
            ca: Some("missing.crt"),
            outcome: Refused("missing.crt"),
            ..BASE
        },
        Case {
            name: "TLS first",
            server: Some(("server", FIRST)),
            first: true,
            ..BASE
        },
        Case {
            name: "TLS first by nats://",
            server: Some(("server", FIRST)),
            url: "nats://localhost",
            first: true,
            ..BASE
        },
        Case {
            name: "plain",
            server: None,
            url: "nats://localhost",
            ca: None,
            outcome: Plain,
            ..BASE
        },
        Case {
            name: "plain server, tls://",
            server: None,
            ca: None,
            outcome: Refused("has no TLS, and tls:// in nats.url asks for it"),
            ..BASE
        },
        Case {
            name: "plain server, roots named",
            server: None,
            url: "nats://localhost",
            outcome: Refused("has no TLS, and nats.tls_ca asks for it"),
            ..BASE
        },
        Case {
            name: "plain server, TLS first",
            server: None,
            first: true,
            outcome: Refused("does not begin with TLS"),
            ..BASE
        },
    ]
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

impl Case {
    fn settings(&self, files: &Files, port: u16) -> ConnectionSettings {
        let url = format!("{}:{port}", self.url).parse().unwrap();
        let mut settings = ConnectionSettings::new(vec![url], NatsAuth::None);
        settings.tls = NatsTls {
            required: self.url.starts_with("tls://")
                || self.ca.is_some()
                || self.client.is_some()
                || self.first,
            first: self.first,
            roots: self
                .ca
                .map_or(Roots::System, |name| Roots::File(files.path(name))),
            identity: self.client.map(|name| files.identity(name)),
        };
        settings
    }

    async fn check(&self, files: &Files, port: u16) {
        let settings = self.settings(files, port);
        let lane = LaneConnection::open(&settings, "tls", &[]).await;
        let admin = Admin::connect(&settings).await;
        match (&self.outcome, lane, admin) {
            (Encrypted, Ok(lane), Ok(admin)) => {
                assert!(lane.is_encrypted(), "{}", self.name);
                admin.client().flush().await.unwrap();
            }
            (Plain, Ok(lane), Ok(_)) => assert!(!lane.is_encrypted(), "{}", self.name),
            (Refused(said), Err(lane), Err(admin)) => {
                assert!(!lane.is_transient(), "{}: {lane:?}", self.name);
                for error in [with_causes(&lane), with_causes(&admin)] {
                    assert!(error.contains(said), "{}: {error}", self.name);
                }
            }
            (_, lane, admin) => panic!(
                "{}: lane {:?}, administration {:?}",
                self.name,
                lane.map_err(|error| with_causes(&error)),
                admin.map(|_| ()).map_err(|error| with_causes(&error))
            ),
        }
    }
}

#[tokio::test]
async fn each_case_has_its_outcome() {
    let files = Files::new();
    let mut cases = cases();
    // One server for all cases of the same configuration.
    cases.sort_by_key(|case| case.server);
    let mut running: Option<(Option<(&str, &str)>, LocalNats)> = None;
    for case in &cases {
        if running.as_ref().is_none_or(|(of, _)| *of != case.server) {
            let config_extra = case
                .server
                .map_or_else(String::new, |(name, more)| files.server(name, more));
            let options = NatsOptions {
                config_extra,
                ..NatsOptions::default()
            };
            let server = LocalNats::start(&binaries(), options).await.unwrap();
            running = Some((case.server, server));
        }
        let (_, server) = running.as_ref().unwrap();
        case.check(&files, server.port()).await;
    }
}

#[tokio::test]
async fn a_key_that_others_may_read_is_refused_with_what_mends_it() {
    let files = Files::new();
    let options = NatsOptions {
        config_extra: files.server("server", CLIENTS),
        ..NatsOptions::default()
    };
    let server = LocalNats::start(&binaries(), options).await.unwrap();
    let key = files.path("client.key");
    let case = |outcome| Case {
        name: "a key that others may read",
        client: Some("client"),
        outcome,
        ..BASE
    };
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    case(Refused("chmod 0600"))
        .check(&files, server.port())
        .await;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    case(Encrypted).check(&files, server.port()).await;
}

/// INFO of a server with TLS.
const INFO: &str = "INFO {\"version\":\"2.15.1\",\"headers\":true,\"tls_required\":true,\"max_payload\":1048576} \r\n";

#[tokio::test]
async fn a_server_of_tls_1_2_alone_is_spoken_to() {
    let files = Files::new();
    let read = |name: &str| fs::read(files.path(name)).unwrap();
    let certificate = CertificateDer::from_pem_slice(&read("server.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&read("server.key")).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(INFO.as_bytes()).await.unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut tls = acceptor.accept(tcp).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"PING\r\n") {
            tls.read_buf(&mut heard).await.unwrap();
        }
        tls.write_all(b"PONG\r\n").await.unwrap();
        (tls, String::from_utf8(heard).unwrap())
    };
    let settings = BASE.settings(&files, port);
    let open = LaneConnection::open(&settings, "tls", &[]);
    let (opened, (_tls, heard)) = tokio::join!(open, serve);
    assert!(opened.unwrap().is_encrypted());
    assert!(heard.contains("\"tls_required\":true"), "{heard}");
}

#[tokio::test]
async fn bytes_before_tls_are_not_believed() {
    let files = Files::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let bytes = format!("{INFO}PONG\r\n");
        tcp.write_all(bytes.as_bytes()).await.unwrap();
        tcp
    };
    let settings = BASE.settings(&files, port);
    let open = LaneConnection::open(&settings, "tls", &[]);
    let (opened, _tcp) = tokio::join!(open, serve);
    assert!(matches!(opened, Err(ConnectError::BeforeTls { .. })));
}

#[tokio::test]
async fn a_server_that_begins_with_tls_is_told_of_where_it_keeps_silent() {
    let files = Files::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut settings = BASE.settings(&files, port);
    settings.connect_timeout = Duration::from_millis(100);
    let error = LaneConnection::open(&settings, "tls", &[])
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }));
    assert!(error.to_string().contains("nats.tls_first"), "{error}");
}
