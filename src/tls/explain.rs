//! Why TLS failed, in words that say what mends it.

use std::io;

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

use super::verifier::{OfAuthority, OldVersion, WrongName};

/// What the settings are called where a person sets them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// The file of root certificates.
    pub(crate) roots: &'static str,
    /// The files of our own certificate and its key.
    pub(crate) identity: &'static str,
    /// Whether the server begins with TLS, where it may do either.
    pub(crate) first: Option<&'static str>,
}

/// The same error with its reason in words, where it is one of TLS.
pub(crate) fn explained(error: io::Error, host: &str, terms: Terms) -> io::Error {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    match tls.map(|error| explain(error, host, terms)) {
        Some(text) => io::Error::new(error.kind(), text),
        None => error,
    }
}

fn explain(error: &Error, host: &str, terms: Terms) -> String {
    match error {
        Error::InvalidCertificate(error) => explain_certificate(error, host, terms),
        Error::AlertReceived(alert) => explain_alert(*alert, terms),
        Error::PeerIncompatible(why) => {
            format!("the server has no TLS version or cipher that walrelay may use ({why:?}): allow TLS 1.2 or 1.3 on it")
        }
        Error::InvalidMessage(_) => match terms.first {
            Some(first) => format!("what answers there does not begin with TLS: check host and port, and {first}"),
            None => "what answers there does not speak TLS: check host and port".to_owned(),
        },
        Error::NoApplicationProtocol => {
            "the server does not know this way of beginning with TLS: is it the server that was meant?".to_owned()
        }
        error => error.to_string(),
    }
}

fn explain_certificate(error: &CertificateError, host: &str, terms: Terms) -> String {
    let Terms { roots, .. } = terms;
    match error {
        CertificateError::UnknownIssuer => format!(
            "the server's certificate is signed by an authority that is not trusted here: name the file of that authority's certificate with {roots}"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate, or one of its authorities', has expired: renew it on the server".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: compare the clocks of both machines".to_owned()
        }
        CertificateError::Revoked => {
            "the server's certificate has been revoked: give the server a new one".to_owned()
        }
        CertificateError::UnknownRevocationStatus => {
            "no revocation list is from the authority of the server's certificate: add its list to the file, or name none".to_owned()
        }
        CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => {
            "the revocation list is out of date: fetch a new one from the authority".to_owned()
        }
        CertificateError::Other(other) => {
            if let Some(WrongName(names)) = other.0.downcast_ref() {
                return format!(
                    "the server's certificate names {names}, not {host}: connect by a name that it has, or make it anew with this one as subjectAltName"
                );
            }
            if other.0.is::<OfAuthority>() {
                return format!(
                    "the server's certificate is an authority's (CA:TRUE) and not trusted here: name its own file with {roots}, or give the server one without CA:TRUE"
                );
            }
            if let Some(OldVersion(version)) = other.0.downcast_ref() {
                return format!(
                    "the server's certificate is X.509 version {version}, which has no names: make it anew with a subjectAltName"
                );
            }
            format!("the server's certificate cannot be used ({other})")
        }
        error => format!("the server's certificate cannot be used ({error})"),
    }
}

fn explain_alert(alert: AlertDescription, terms: Terms) -> String {
    let Terms { identity, .. } = terms;
    match alert {
        AlertDescription::CertificateRequired => {
            format!("the server asks for a certificate of ours: name its files with {identity}")
        }
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::DecryptError => format!(
            "the server does not take our certificate ({alert:?}): give one that an authority of the server has signed with {identity}"
        ),
        AlertDescription::ProtocolVersion => {
            "the server has no TLS version that walrelay may use: allow TLS 1.2 or 1.3 on it"
                .to_owned()
        }
        alert => format!("the server ended it ({alert:?}): its log says why"),
    }
}
