//! What a certificate says, as far as rustls does not tell.
//!
//! In: DER. Out: names, dates, the public key, the hash for channel binding. Guarantee: a certificate that cannot be read
//! has no names and no hash, and is never an error of its own.

use std::net::IpAddr;

use der::asn1::ObjectIdentifier;
use der::{Decode, Encode};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use tokio_rustls::rustls::pki_types::UnixTime;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, SubjectAltName};
use x509_cert::spki::AlgorithmIdentifierOwned;

/// id-at-commonName.
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

/// A certificate that has been read.
pub(crate) struct Certificate(x509_cert::Certificate);

/// Whom a certificate names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// Subject alternative names of the kind dNSName.
    pub(crate) dns: Vec<String>,
    /// Those of the kind iPAddress.
    pub(crate) ip: Vec<IpAddr>,
    /// The subject's common name.
    pub(crate) common: Option<String>,
}

impl Certificate {
    pub(crate) fn read(der: &[u8]) -> Option<Certificate> {
        x509_cert::Certificate::from_der(der).ok().map(Certificate)
    }

    pub(crate) fn names(&self) -> Names {
        let tbs = &self.0.tbs_certificate;
        let mut names = Names::default();
        if let Ok(Some((_, SubjectAltName(alternatives)))) = tbs.get::<SubjectAltName>() {
            for name in alternatives {
                match name {
                    GeneralName::DnsName(name) => names.dns.push(name.to_string()),
                    GeneralName::IpAddress(octets) => names.ip.extend(ip(octets.as_bytes())),
                    _ => {}
                }
            }
        }
        let attributes = tbs.subject.0.iter().flat_map(|name| name.0.iter());
        names.common = attributes
            .filter(|attribute| attribute.oid == COMMON_NAME)
            .find_map(|attribute| String::from_utf8(attribute.value.value().to_vec()).ok());
        names
    }

    /// `None` where `now` is within its dates, else whether it has expired (or is not valid yet).
    pub(crate) fn expired(&self, now: UnixTime) -> Option<bool> {
        let validity = &self.0.tbs_certificate.validity;
        let now = now.as_secs();
        if now > validity.not_after.to_unix_duration().as_secs() {
            return Some(true);
        }
        (now < validity.not_before.to_unix_duration().as_secs()).then_some(false)
    }

    /// Whether it calls itself an authority's.
    pub(crate) fn is_authority(&self) -> bool {
        let constraints = self.0.tbs_certificate.get::<BasicConstraints>();
        constraints.is_ok_and(|found| found.is_some_and(|(_, constraints)| constraints.ca))
    }

    /// X.509 version 1 to 3.
    pub(crate) fn version(&self) -> u8 {
        self.0.tbs_certificate.version as u8 + 1
    }

    /// Algorithm of the public key (the content of its AlgorithmIdentifier in DER), and the key.
    pub(crate) fn public_key(&self) -> Option<(Vec<u8>, &[u8])> {
        let info = &self.0.tbs_certificate.subject_public_key_info;
        let mut algorithm = info.algorithm.oid.to_der().ok()?;
        if let Some(parameters) = &info.algorithm.parameters {
            algorithm.extend(parameters.to_der().ok()?);
        }
        Some((algorithm, info.subject_public_key.as_bytes()?))
    }

    /// The hash function of the certificate's signature, as `tls-server-end-point` wants it (RFC 5929, 4.1); `None` where
    /// the signature has none of its own, as with Ed25519.
    pub(crate) fn end_point_hash(&self, der: &[u8]) -> Option<Vec<u8>> {
        let signature = &self.0.signature_algorithm;
        let hash = match signature.oid == RSASSA_PSS {
            true => pss_hash(signature)?,
            false => signature.oid.to_string(),
        };
        Some(match hash.as_str() {
            // MD5 and SHA-1, with RSA, DSA and ECDSA, count as SHA-256.
            "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10040.4.3"
            | "1.2.840.10045.4.1" | "1.3.14.3.2.26"
            // SHA-256.
            | "1.2.840.113549.1.1.11" | "2.16.840.1.101.3.4.3.2" | "1.2.840.10045.4.3.2"
            | "2.16.840.1.101.3.4.2.1" => Sha256::digest(der).to_vec(),
            "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => {
                Sha384::digest(der).to_vec()
            }
            "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => {
                Sha512::digest(der).to_vec()
            }
            "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" | "2.16.840.1.101.3.4.2.4" => {
                Sha224::digest(der).to_vec()
            }
            _ => return None,
        })
    }
}

/// The hash function in the parameters of RSASSA-PSS (RFC 4055, 3.1): SHA-1 where none is named.
fn pss_hash(signature: &AlgorithmIdentifierOwned) -> Option<String> {
    let parameters = signature.parameters.as_ref()?;
    let named = parameters.sequence(|reader| {
        let hash = der::asn1::ContextSpecific::<AlgorithmIdentifierOwned>::decode_explicit(
            reader,
            der::TagNumber::N0,
        )?;
        // The mask and the salt's length do not matter here.
        while !der::Reader::is_finished(reader) {
            der::asn1::AnyRef::decode(reader)?;
        }
        Ok(hash)
    });
    Some(match named.ok()? {
        Some(hash) => hash.value.oid.to_string(),
        None => "1.3.14.3.2.26".to_owned(),
    })
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

impl Names {
    /// Whether they name this host by libpq's rules, beyond what rustls takes: the common name where there is no
    /// dNSName, and for an address a dNSName that spells it (manual, 32.19.1).
    pub(crate) fn also_name(&self, host: &str) -> bool {
        let common = || self.common.as_deref().is_some_and(|name| names(name, host));
        match host.parse::<IpAddr>() {
            Ok(address) if self.ip.is_empty() => {
                self.dns.iter().any(|name| *name == address.to_string())
                    || self.common.as_deref() == Some(host)
            }
            Ok(_) => false,
            Err(_) => self.dns.is_empty() && common(),
        }
    }
}

/// Whether `pattern` is `host`, or `*.` before all of it but its first label.
fn names(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(rest) => host
            .split_once('.')
            .is_some_and(|(_, tail)| tail.eq_ignore_ascii_case(rest)),
        None => pattern.eq_ignore_ascii_case(host),
    }
}

impl std::fmt::Display for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let alternatives = self
            .dns
            .iter()
            .cloned()
            .chain(self.ip.iter().map(IpAddr::to_string));
        let mut all: Vec<String> = alternatives.collect();
        if all.is_empty() {
            all.extend(self.common.clone());
        }
        match all.is_empty() {
            true => f.write_str("nobody"),
            // From the network: as a person may print it.
            false => write!(f, "{}", all.join(", ").escape_debug()),
        }
    }
}
