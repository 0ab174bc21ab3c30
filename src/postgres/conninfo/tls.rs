//! The parameters about TLS and proof of identity (manual, 32.1.2, 32.19).
//!
//! In: `sslmode` and its kin. Out: [`TlsSettings`], [`AuthenticationRules`]. Guarantees: a file that was named is used or
//! is an error, one of libpq's default files is used where it is there; what contradicts itself is refused, as libpq does.

use std::fmt;
use std::path::{Path, PathBuf};

use super::ConninfoError;
use super::resolve::{Parameters, invalid};
use crate::secret::Secret;
use crate::tls;

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Plain text.
    Disable,
    /// Plain text, TLS where the server insists.
    Allow,
    /// TLS where the server offers it, else plain text.
    Prefer,
    /// TLS, whoever the server is.
    Require,
    /// TLS with a certificate of a known authority.
    VerifyCa,
    /// As `VerifyCa`, and the certificate names the host.
    VerifyFull,
}

/// How TLS is to be, where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Whether there must be TLS, and what is checked.
    pub mode: SslMode,
    /// Begin with TLS, without asking in plain text first (`sslnegotiation=direct`; Postgres 17 and later).
    pub direct: bool,
    /// Whom to trust.
    pub roots: RootChoice,
    /// Certificates that are not trusted any more.
    pub(crate) revocations: FileChoice,
    /// Our own certificate.
    pub certificate: FileChoice,
    /// Its key.
    pub key: FileChoice,
    /// The key's password.
    pub key_password: Option<Secret>,
    /// TLS 1.2 may be spoken.
    pub(crate) tls12: bool,
    /// TLS 1.3 may be spoken.
    pub(crate) tls13: bool,
    /// The host's name is sent in the clear (SNI).
    pub(crate) sni: bool,
}

/// `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootChoice {
    /// Those of the operating system.
    System,
    /// Those of a file.
    File(FileChoice),
}

/// A file, and whether it must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileChoice {
    /// It was named.
    Named(PathBuf),
    /// Where libpq looks too.
    Default(PathBuf),
    /// None.
    None,
}

/// What the server must ask of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthenticationRules {
    /// `channel_binding`.
    pub channel_binding: ChannelBinding,
    /// `require_auth`: a bit for each [`Method`].
    methods: u8,
}

/// libpq's `channel_binding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where it can be.
    Prefer,
    /// Else no connection.
    Require,
}

/// A way in which a server may ask who we are, by the names of `require_auth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named by Method::NAMES")]
pub enum Method {
    None,
    Password,
    Md5,
    Gss,
    Sspi,
    ScramSha256,
    Oauth,
}

impl Method {
    const NAMES: [(Method, &'static str); 7] = [
        (Method::None, "none"),
        (Method::Password, "password"),
        (Method::Md5, "md5"),
        (Method::Gss, "gss"),
        (Method::Sspi, "sspi"),
        (Method::ScramSha256, "scram-sha-256"),
        (Method::Oauth, "oauth"),
    ];

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, name) = Method::NAMES[*self as usize];
        f.write_str(name)
    }
}

impl AuthenticationRules {
    /// Whether the server may ask in this way.
    pub fn allow(&self, method: Method) -> bool {
        self.methods & method.bit() != 0
    }
}

impl TlsSettings {
    /// Reads the files that were named, where there may be TLS: what cannot be read then ends each attempt to connect to a server
    /// that has it.
    pub(crate) fn check_files(&self) -> Result<(), ConninfoError> {
        if self.mode == SslMode::Disable {
            return Ok(());
        }
        let roots = match &self.roots {
            RootChoice::File(file) => Some(file),
            RootChoice::System => None,
        };
        for (parameter, file) in [
            ("sslrootcert", roots),
            ("sslcrl", Some(&self.revocations)),
            ("sslcert", Some(&self.certificate)),
            ("sslkey", Some(&self.key)),
        ] {
            if let Some(FileChoice::Named(path)) = file {
                tls::read("the file", path).map_err(|error| ConninfoError::File {
                    parameter,
                    problem: error.to_string(),
                })?;
            }
        }
        Ok(())
    }
}

impl FileChoice {
    /// The file, if it was named or is there.
    pub fn path(&self) -> Option<&Path> {
        match self {
            FileChoice::Named(path) => Some(path),
            FileChoice::Default(path) => path.exists().then_some(path),
            FileChoice::None => None,
        }
    }

    /// The file, whether it is there or not.
    pub fn wanted(&self) -> Option<&Path> {
        match self {
            FileChoice::Named(path) | FileChoice::Default(path) => Some(path),
            FileChoice::None => None,
        }
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        })
    }
}

impl Parameters<'_> {
    pub(super) fn tls(&self) -> Result<TlsSettings, ConninfoError> {
        let system = self.get("sslrootcert") == Some("system");
        let mode = match self.given("sslmode") {
            None if system => SslMode::VerifyFull,
            None => SslMode::Prefer,
            Some((value, origin)) => ssl_mode(value, origin)?,
        };
        if system && mode != SslMode::VerifyFull {
            return Err(ConninfoError::WeakSslMode {
                mode,
                with: "sslrootcert=system",
                needed: "verify-full",
            });
        }
        let direct = self.choice("sslnegotiation", &[("postgres", false), ("direct", true)])?;
        let direct = direct.unwrap_or(false);
        if direct && matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer) {
            return Err(ConninfoError::WeakSslMode {
                mode,
                with: "sslnegotiation=direct",
                needed: "require, verify-ca or verify-full",
            });
        }
        let own = self.choice("sslcertmode", &[("disable", false), ("allow", true)])?;
        let own = |choice: FileChoice| match own {
            Some(false) => FileChoice::None,
            _ => choice,
        };
        let (tls12, tls13) = self.tls_versions()?;
        Ok(TlsSettings {
            mode,
            direct,
            roots: match system {
                true => RootChoice::System,
                false => RootChoice::File(self.file("sslrootcert", "root.crt")?),
            },
            revocations: self.file("sslcrl", "root.crl")?,
            certificate: own(self.file("sslcert", "postgresql.crt")?),
            key: own(self.file("sslkey", "postgresql.key")?),
            key_password: self.get("sslpassword").map(Secret::from),
            tls12,
            tls13,
            sni: self
                .choice("sslsni", &[("1", true), ("0", false)])?
                .unwrap_or(true),
        })
    }

    /// Whether TLS 1.2 and 1.3 are within the limits.
    fn tls_versions(&self) -> Result<(bool, bool), ConninfoError> {
        const VERSIONS: [(&str, u8); 4] =
            [("TLSv1", 0), ("TLSv1.1", 1), ("TLSv1.2", 2), ("TLSv1.3", 3)];
        let min = self.choice("ssl_min_protocol_version", &VERSIONS)?;
        let max = self.choice("ssl_max_protocol_version", &VERSIONS)?;
        let within = |version| min.unwrap_or(2) <= version && version <= max.unwrap_or(3);
        match (within(2), within(3)) {
            (false, false) => Err(invalid(
                "ssl_max_protocol_version",
                "TLSv1.2 or TLSv1.3, and not below ssl_min_protocol_version",
            )),
            versions => Ok(versions),
        }
    }

    pub(super) fn authentication(&self) -> Result<AuthenticationRules, ConninfoError> {
        let channel_binding = self.choice(
            "channel_binding",
            &[
                ("disable", ChannelBinding::Disable),
                ("prefer", ChannelBinding::Prefer),
                ("require", ChannelBinding::Require),
            ],
        )?;
        Ok(AuthenticationRules {
            channel_binding: channel_binding.unwrap_or(ChannelBinding::Prefer),
            methods: match self.given("require_auth") {
                Some((value, origin)) => methods(value).ok_or_else(|| {
                    invalid(
                        origin,
                        "a list of none, password, md5, gss, sspi, scram-sha-256 and oauth, or of those that are not wanted, each with a `!` before it",
                    )
                })?,
                None => u8::MAX,
            },
        })
    }

    /// The file that a parameter names, else the one of this name in `~/.postgresql`.
    fn file(&self, name: &'static str, default: &str) -> Result<FileChoice, ConninfoError> {
        Ok(match (self.get_with_origin(name), self.home()) {
            // A key that is told is a key that is lost.
            (Some((path, origin)), _) if path.contains("-----BEGIN") => {
                return Err(invalid(origin, "the path of a file, not what is in it"));
            }
            (Some((path, _)), _) => FileChoice::Named(PathBuf::from(path)),
            (None, Some(home)) => FileChoice::Default(home.join(".postgresql").join(default)),
            (None, None) => FileChoice::None,
        })
    }
}

fn ssl_mode(value: &str, origin: &'static str) -> Result<SslMode, ConninfoError> {
    Ok(match value {
        "disable" => SslMode::Disable,
        "allow" => SslMode::Allow,
        "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        _ => {
            return Err(invalid(
                origin,
                "disable, allow, prefer, require, verify-ca or verify-full",
            ));
        }
    })
}

/// The bits of a `require_auth` list; `None` for what is none.
fn methods(list: &str) -> Option<u8> {
    let bit = |name: &str| {
        let (method, _) = Method::NAMES.iter().find(|(_, known)| *known == name)?;
        Some(method.bit())
    };
    let mut parts = list.split(',').map(str::trim);
    let negative = list.trim_start().starts_with('!');
    let named = parts.try_fold(0, |bits, part| match part.strip_prefix('!') {
        Some(name) if negative => Some(bits | bit(name)?),
        None if !negative => Some(bits | bit(part)?),
        _ => None,
    })?;
    Some(if negative { !named } else { named })
}
