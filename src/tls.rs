//! TLS as a client, for Postgres and NATS alike.
//!
//! In: where root certificates are, and the files of a client's certificate. Out: a [`ClientConfig`] of rustls. Guarantees:
//! files are read at each call, so that a renewed certificate counts from the next connection on; a private key that
//! others may read is refused, as libpq does; an error names the file and what mends it, and never shows a key.

mod certificate;
mod explain;
mod records;
#[cfg(all(test, unix))]
mod tests;
mod verifier;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use tokio_rustls::rustls::{
    ALL_VERSIONS, ClientConfig, Error, RootCertStore, SupportedProtocolVersion,
};

use crate::secret::Secret;
pub(crate) use certificate::Certificate;
pub(crate) use explain::{Terms, explained};
pub(crate) use records::poll_read_records;
pub(crate) use verifier::Verifier;

/// Largest file of certificates or keys that is read, in bytes: the whole store of a system has a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The authorities of the operating system.
    System,
    /// Those of a PEM file.
    File(PathBuf),
}

/// The files of a client's own certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// PEM: the certificate, then those of the authorities between.
    pub certificate: PathBuf,
    /// PEM: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// For an encrypted PKCS#8 key.
    pub key_password: Option<Secret>,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {what} {}: {problem}; name a file that walrelay may read", path.display())]
    File {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file does not hold what it should.
    #[error("{} holds no {what} that can be used: {problem}", path.display())]
    Content {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, and what mends it.
        problem: String,
    },
    /// Others may read the private key.
    #[error("others may read the private key {0}: run chmod 0600 {0} (0640 will do where root owns it)", path.display())]
    KeyMode {
        /// The file.
        path: PathBuf,
    },
    /// The key belongs to another certificate.
    #[error("the private key {} does not belong to the certificate {}: give the pair that was made together", key.display(), certificate.display())]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// No root certificates are named, and the server is to be checked against some.
    #[error(
        "there are no root certificates to check the server against: name their file with sslrootcert, or use sslrootcert=system"
    )]
    NoRoots,
    /// The operating system trusts nobody.
    #[error(
        "the operating system has no trusted root certificates: install them (on Debian: apt-get install ca-certificates), set SSL_CERT_FILE, or name a file"
    )]
    NoSystemRoots,
}

/// The cryptography that every connection uses.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A client that checks the server's certificate against `roots` and its name, and shows `identity` to a server that
/// asks for one.
///
/// # Errors
/// [`TlsError`], of the first file that cannot be used.
pub(crate) fn client_config(
    roots: &Roots,
    identity: Option<&Identity>,
) -> Result<ClientConfig, TlsError> {
    client_config_with(verifier(roots, None, true)?, ALL_VERSIONS, identity)
}

/// Reads the files that are named, as a connection will.
///
/// # Errors
/// [`TlsError`], of the first that cannot be used.
pub(crate) fn check_files(roots: &Roots, identity: Option<&Identity>) -> Result<(), TlsError> {
    if let Roots::File(path) = roots {
        certificates("root certificate", path)?;
    }
    if let Some(identity) = identity {
        certificates("certificate", &identity.certificate)?;
        identity.private_key()?;
    }
    Ok(())
}

/// A client that trusts nobody, for connections without TLS.
#[cfg(feature = "otlp")]
pub(crate) fn client_without_roots() -> ClientConfig {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(ALL_VERSIONS)
        .expect("the provider has cipher suites for each of the versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

/// What checks a server's certificate against `roots` and the lists in the file `revocations`, and whether it has the
/// server's name if `name`.
pub(crate) fn verifier(
    roots: &Roots,
    revocations: Option<&Path>,
    name: bool,
) -> Result<Verifier, TlsError> {
    let (certificates, store) = roots.load()?;
    let Some(path) = revocations else {
        return Ok(Verifier::of_roots(certificates, store, Vec::new(), name)
            .expect("a store that has been loaded is not empty, and there is no list"));
    };
    let what = "revocation list";
    let content = |problem: String| TlsError::Content {
        what,
        path: path.to_owned(),
        problem,
    };
    let text = read(what, path)?;
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| content(error.to_string()))?;
    if lists.is_empty() {
        return Err(content("it must be PEM, with BEGIN X509 CRL".to_owned()));
    }
    Verifier::of_roots(certificates, store, lists, name).map_err(content)
}

/// As [`client_config`], with what checks the server, and the protocol versions that may be spoken.
pub(crate) fn client_config_with(
    verifier: Verifier,
    versions: &[&'static SupportedProtocolVersion],
    identity: Option<&Identity>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .expect("the provider has cipher suites for each of the versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let Some(identity) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let certificates = certificates("certificate", &identity.certificate)?;
    let key = identity.private_key()?;
    builder
        .with_client_auth_cert(certificates, key)
        .map_err(|error| identity.refused(&error))
}

impl Roots {
    /// The certificates of the file, and all of them as rustls wants them; there is at least one.
    fn load(&self) -> Result<(Vec<CertificateDer<'static>>, RootCertStore), TlsError> {
        let mut store = RootCertStore::empty();
        let mut of_file = Vec::new();
        match self {
            Roots::System => {
                // One bad certificate among a hundred is no reason to trust none.
                store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if store.is_empty() {
                    return Err(TlsError::NoSystemRoots);
                }
            }
            Roots::File(path) => {
                of_file = certificates("root certificate", path)?;
                for certificate in &of_file {
                    store
                        .add(certificate.clone())
                        .map_err(|error| TlsError::Content {
                            what: "root certificate",
                            path: path.clone(),
                            problem: error.to_string(),
                        })?;
                }
            }
        }
        Ok((of_file, store))
    }
}

impl Identity {
    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let path = &self.key;
        let text = Secret::from(read("the private key", path)?);
        if others_may_use(path) {
            return Err(TlsError::KeyMode { path: path.clone() });
        }
        let text = text.expose();
        if let Some(begin) = text.find(ENCRYPTED_KEY) {
            return decrypt(&text[begin..], self.key_password.as_ref())
                .map_err(|problem| self.unusable_key(problem));
        }
        if text.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(self.unusable_key(
                "it is encrypted in a form of before PKCS#8: convert it with openssl pkcs8 -topk8",
            ));
        }
        PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| self.unusable_key("it must be PEM, of the kind PKCS#8, PKCS#1 or SEC1"))
    }

    fn unusable_key(&self, problem: &str) -> TlsError {
        TlsError::Content {
            what: "private key",
            path: self.key.clone(),
            problem: problem.to_owned(),
        }
    }

    /// Why rustls does not take the pair.
    fn refused(&self, error: &Error) -> TlsError {
        match error {
            Error::InconsistentKeys(_) => TlsError::KeyMismatch {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
            },
            // What it says of a key is a word on its form, never its content.
            error => self.unusable_key(&error.to_string()),
        }
    }
}

const ENCRYPTED_KEY: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";

/// The key of a PEM text that begins with [`ENCRYPTED_KEY`].
fn decrypt(pem: &str, password: Option<&Secret>) -> Result<PrivateKeyDer<'static>, &'static str> {
    let password = password.ok_or("it is encrypted, and no password for it is given")?;
    let (_, document) =
        pkcs8::SecretDocument::from_pem(pem).map_err(|_| "its PEM form is broken")?;
    let encrypted = pkcs8::EncryptedPrivateKeyInfo::try_from(document.as_bytes())
        .map_err(|_| "its PKCS#8 form is broken")?;
    let key = encrypted.decrypt(password.expose()).map_err(
        |_| "its password does not fit, or it is encrypted in another way than PBES2 with AES",
    )?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}

/// The certificates of a PEM file; there is at least one.
pub(crate) fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(what, path)?;
    let content = |problem: String| TlsError::Content {
        what,
        path: path.to_owned(),
        problem,
    };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| content(error.to_string()))?;
    match certificates.is_empty() {
        true => Err(content("it must be PEM, with BEGIN CERTIFICATE".to_owned())),
        false => Ok(certificates),
    }
}

pub(crate) fn read(what: &'static str, path: &Path) -> Result<String, TlsError> {
    let failed = |problem: String| TlsError::File {
        what,
        path: path.to_owned(),
        problem,
    };
    let metadata = fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if !metadata.is_file() {
        return Err(failed("it is not a plain file".to_owned()));
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(failed(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    let bytes = fs::read(path).map_err(|error| failed(error.to_string()))?;
    // PEM is ASCII; what people write around it need not be UTF-8.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// libpq's rule: `u=rw` for our own key; a key of root may also be read by its group.
#[cfg(unix)]
fn others_may_use(key: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let forbidden = |metadata: fs::Metadata| match metadata.uid() {
        0 => metadata.mode() & 0o037 != 0,
        _ => metadata.mode() & 0o077 != 0,
    };
    fs::metadata(key).is_ok_and(forbidden)
}

#[cfg(not(unix))]
fn others_may_use(_: &Path) -> bool {
    false
}
