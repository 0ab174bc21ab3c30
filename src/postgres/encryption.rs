//! TLS between the socket and the protocol.
//!
//! In: a TCP connection to a server, [`TlsSettings`]. Out: the connection encrypted, or that the server offers no TLS.
//! Guarantees: nothing that arrives before TLS is believed beyond the one byte of the answer; files are read at each
//! connect.
//!
//! Manual: 54.2.11 "SSL Session Encryption", 32.19 "SSL Support".

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, version};

use crate::postgres::conninfo::{Host, HostPort, RootChoice, SslMode, TlsSettings};
use crate::postgres::error::NOT_POSTGRES;
use crate::tls::{self, Identity, Roots, Terms, TlsError, Verifier};

/// What is read of the socket at once: rustls itself would ask for 4 kB, and the walsender sends a record a row.
const READ_BYTES_MAX: usize = 64 * 1024;

/// What the settings are called in the URL.
pub(crate) const TERMS: Terms = Terms {
    roots: "sslrootcert",
    identity: "sslcert and sslkey",
    first: None,
};

/// An encrypted TCP connection.
pub(crate) type Encrypted = TlsStream<BufReader<TcpStream>>;

/// What came of asking for TLS.
pub(crate) enum Negotiated {
    /// It is there.
    Encrypted(Box<Encrypted>),
    /// The server offers none; the connection is as it was.
    Refused(TcpStream),
}

/// Why there is no TLS.
pub(crate) enum EncryptionError {
    /// The settings or their files cannot be used.
    Settings(TlsError),
    /// The server, or what is in its place.
    Handshake(io::Error),
}

impl From<io::Error> for EncryptionError {
    fn from(error: io::Error) -> EncryptionError {
        EncryptionError::Handshake(error)
    }
}

/// Asks for TLS, and makes it where the server agrees.
pub(crate) async fn encrypt(
    mut tcp: TcpStream,
    server: &HostPort,
    settings: &TlsSettings,
) -> Result<Negotiated, EncryptionError> {
    if !settings.direct && !is_offered(&mut tcp).await? {
        return Ok(Negotiated::Refused(tcp));
    }
    let config = client_config(settings).map_err(EncryptionError::Settings)?;
    let name = server_name(server, &tcp)?;
    let tcp = BufReader::with_capacity(READ_BYTES_MAX, tcp);
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .map_err(|error| tls::explained(error, &host_text(server), TERMS))?;
    if settings.direct && stream.get_ref().1.alpn_protocol().is_none() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "what answers has TLS but is no Postgres of version 17 or later: leave sslnegotiation=direct out",
        )
        .into());
    }
    Ok(Negotiated::Encrypted(Box::new(stream)))
}

/// The SSLRequest and its answer, one byte. More than that comes from somebody between, who wants it taken for what the
/// server says under TLS.
async fn is_offered(tcp: &mut TcpStream) -> io::Result<bool> {
    let mut request = bytes::BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    tcp.write_all(&request).await?;
    let mut answer = [0; 2];
    let refuse = |text| Err(io::Error::new(io::ErrorKind::InvalidData, text));
    match (tcp.read(&mut answer).await?, answer[0]) {
        (0, _) => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the server closed the connection when it was asked for TLS",
        )),
        (1, b'S') => Ok(true),
        (1, b'N') => Ok(false),
        (2, b'S' | b'N') => refuse(
            "data came in plain text behind the server's answer: somebody between may be tampering with the connection",
        ),
        // Its text is not shown: nobody has proved to be the server yet.
        (_, b'E') => Err(io::Error::other(
            "the server answered the request for TLS with an error: its log says which",
        )),
        _ => refuse(NOT_POSTGRES),
    }
}

fn client_config(settings: &TlsSettings) -> Result<ClientConfig, TlsError> {
    let mut versions = Vec::new();
    versions.extend(settings.tls13.then_some(&version::TLS13));
    versions.extend(settings.tls12.then_some(&version::TLS12));
    let identity = settings.certificate.path().map(|certificate| Identity {
        certificate: certificate.to_owned(),
        // As libpq, which says so where it is missing.
        key: settings.key.wanted().unwrap_or(certificate).to_owned(),
        key_password: settings.key_password.clone(),
    });
    let mut config = tls::client_config_with(verifier(settings)?, &versions, identity.as_ref())?;
    config.enable_sni = settings.sni;
    // So that a server of another protocol on the same port cannot be taken for Postgres.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

fn verifier(settings: &TlsSettings) -> Result<Verifier, TlsError> {
    let roots = match &settings.roots {
        RootChoice::System => Roots::System,
        RootChoice::File(file) => match (file.path(), settings.mode) {
            (Some(path), _) => Roots::File(path.to_owned()),
            (None, SslMode::VerifyCa | SslMode::VerifyFull) => return Err(TlsError::NoRoots),
            (None, _) => return Ok(Verifier::none()),
        },
    };
    let name = settings.mode == SslMode::VerifyFull;
    tls::verifier(&roots, settings.revocations.path(), name)
}

fn host_text(server: &HostPort) -> String {
    match &server.host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(dir) => dir.display().to_string(),
    }
}

/// The name to check and to send. Where it is none that a certificate can have, the address stands in: it is only for a
/// mode that checks no name that it will do.
fn server_name(server: &HostPort, tcp: &TcpStream) -> io::Result<ServerName<'static>> {
    match ServerName::try_from(host_text(server)) {
        Ok(name) => Ok(name),
        Err(_) => Ok(ServerName::from(tcp.peer_addr()?.ip())),
    }
}
