//! How a client checks a server's certificate.
//!
//! In: the certificates that the server shows, and its name. Out: taken or refused. Guarantees: the handshake's
//! signature is always checked, even where the certificate is not, so that a channel binding means the holder of its key;
//! a certificate that is itself among the roots is trusted, as OpenSSL does, also where it calls itself an authority.

use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, ServerName, UnixTime,
};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

use super::certificate::Certificate;
use super::provider;

/// What is checked of a server's certificate, beside its signature of the handshake.
#[derive(Debug)]
pub(crate) struct Verifier {
    trust: Option<Trust>,
}

/// Checks the chain up to a root, and what [`Trust::name`] says.
#[derive(Debug)]
struct Trust {
    roots: Vec<CertificateDer<'static>>,
    chain: Arc<WebPkiServerVerifier>,
    has_revocations: bool,
    name: bool,
}

/// Why a certificate of a form that webpki does not read is refused.
#[derive(Debug, thiserror::Error)]
#[error("it is X.509 version {0}")]
pub(crate) struct OldVersion(pub(crate) u8);

/// A server that shows an authority's certificate, which is none of the roots. OpenSSL takes one that another authority
/// has signed, webpki does not.
#[derive(Debug, thiserror::Error)]
#[error("it is an authority's")]
pub(crate) struct OfAuthority;

/// A certificate that names others, in words.
#[derive(Debug, thiserror::Error)]
#[error("it names {0}")]
pub(crate) struct WrongName(pub(crate) String);

impl Verifier {
    /// Takes any certificate.
    pub(crate) fn none() -> Verifier {
        Verifier { trust: None }
    }

    /// Takes a certificate that leads to one of the roots and is on none of the lists; `name`: and that names the host.
    ///
    /// # Errors
    /// A list that cannot be read, in words.
    pub(crate) fn of_roots(
        roots: Vec<CertificateDer<'static>>,
        store: RootCertStore,
        revocations: Vec<CertificateRevocationListDer<'static>>,
        name: bool,
    ) -> Result<Verifier, String> {
        let has_revocations = !revocations.is_empty();
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider())
            .with_crls(revocations)
            .enforce_revocation_expiration()
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Verifier {
            trust: Some(Trust {
                roots,
                chain,
                has_revocations,
                name,
            }),
        })
    }

    /// With the key of a certificate that webpki cannot read, such as one of version 1.
    fn verify_by_key(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let certificate = Certificate::read(certificate)
            .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let (algorithm, key) = certificate
            .public_key()
            .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let provider = provider();
        let mapping = provider.signature_verification_algorithms.mapping;
        let candidates = mapping
            .iter()
            .filter(|(scheme, _)| *scheme == signed.scheme)
            .flat_map(|(_, algorithms)| algorithms.iter())
            .filter(|candidate| candidate.public_key_alg_id().as_ref() == algorithm);
        for candidate in candidates {
            if candidate
                .verify_signature(key, message, signed.signature())
                .is_ok()
            {
                return Ok(HandshakeSignatureValid::assertion());
            }
        }
        Err(CertificateError::BadSignature.into())
    }
}

impl Trust {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let read = Certificate::read(end_entity);
        let is_root = !self.has_revocations && self.roots.iter().any(|root| root == end_entity);
        match &read {
            Some(certificate) if is_root => match certificate.expired(now) {
                Some(true) => return Err(CertificateError::Expired.into()),
                Some(false) => return Err(CertificateError::NotValidYet.into()),
                None => {}
            },
            Some(certificate) if certificate.version() < 3 => {
                return Err(other(OldVersion(certificate.version())));
            }
            Some(certificate) if certificate.is_authority() => return Err(other(OfAuthority)),
            // The name comes last: an error about it says that the chain is good.
            _ => match self.chain.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                &[],
                now,
            ) {
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                )) => {}
                verified => return verified.map(drop),
            },
        }
        match self.name {
            true => check_name(end_entity, read.as_ref(), server_name),
            false => Ok(()),
        }
    }
}

fn check_name(
    end_entity: &CertificateDer<'_>,
    read: Option<&Certificate>,
    server_name: &ServerName<'_>,
) -> Result<(), Error> {
    let by_alternatives = ParsedCertificate::try_from(end_entity)
        .and_then(|certificate| verify_server_name(&certificate, server_name));
    if by_alternatives.is_ok() {
        return Ok(());
    }
    let names = read.map(Certificate::names).unwrap_or_default();
    match names.also_name(&server_name.to_str()) {
        true => Ok(()),
        false => Err(other(WrongName(names.to_string()))),
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trust) = &self.trust {
            trust.verify(end_entity, intermediates, server_name, now)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if ParsedCertificate::try_from(certificate).is_err() {
            return self.verify_by_key(message, certificate, signed);
        }
        let supported = provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, &supported)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if ParsedCertificate::try_from(certificate).is_err() {
            return self.verify_by_key(message, certificate, signed);
        }
        let supported = provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, &supported)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
