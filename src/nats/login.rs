//! Where the credentials come from, and the answer to the server's nonce.
//!
//! In: a [`Login`]. Out: [`NatsAuth`], read at each connect, so that what was rotated counts from the next connection on.
//! Guarantee: an error names the file, and never shows what is in it.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, SecondsFormat, Utc};
use nkeys::KeyPair;
use zeroize::Zeroizing;

use super::address::NatsAuth;
use crate::secret::{self, Secret};

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// How to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// By what is given here.
    Given(NatsAuth),
    /// By a credentials file as `nsc` writes it: a user JWT and its seed.
    Credentials(PathBuf),
    /// By a file that holds a user's seed.
    NkeySeed(PathBuf),
    /// By a file that holds a user JWT, and one that holds its seed.
    JwtAndSeed {
        /// The file of the JWT.
        jwt: PathBuf,
        /// The file of the seed.
        seed: PathBuf,
    },
    /// By a file that holds a token.
    TokenFile(PathBuf),
    /// By a name, and a file that holds its password.
    PasswordFile {
        /// The account's user.
        user: String,
        /// The file.
        path: PathBuf,
    },
}

/// Why there are no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The file cannot be used.
    #[error("{} {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A seed that is no user seed.
    #[error("the nkey seed cannot be read: a user's seed begins with SU and has 58 characters")]
    Seed,
}

impl From<NatsAuth> for Login {
    fn from(auth: NatsAuth) -> Self {
        Login::Given(auth)
    }
}

impl Login {
    /// Reads what is in a file.
    ///
    /// # Errors
    /// [`LoginError`].
    pub fn read(&self) -> Result<NatsAuth, LoginError> {
        match self {
            Login::Given(auth) => Ok(auth.clone()),
            Login::Credentials(path) => credentials(path),
            Login::NkeySeed(path) => nkey_seed(path),
            Login::JwtAndSeed { jwt, seed } => jwt_and_seed(jwt, seed),
            Login::TokenFile(path) => Ok(NatsAuth::Token(secret(path)?)),
            Login::PasswordFile { user, path } => Ok(NatsAuth::UserPassword {
                user: user.clone(),
                password: secret(path)?,
            }),
        }
    }
}

impl Login {
    /// What to look at where a server has refused it.
    pub(crate) fn what_to_check(&self, now: DateTime<Utc>) -> String {
        let auth = self.read();
        if auth == Ok(NatsAuth::None) {
            return "it asks for some, and none are configured: set nats.credentials, nats.user with nats.password, nats.token or \
                    nats.nkey_seed"
                .to_owned();
        }
        let nkey = auth.as_ref().ok().and_then(nkey_of);
        if let Some(nkey) = nkey {
            return format!(
                "it knows no user of nkey {nkey}: put {{ nkey: {nkey} }} into authorization.users, or the account's users, of \
                 nats-server's configuration and reload it; or give the seed of a user that it knows"
            );
        }
        let expired_at = match auth {
            Ok(NatsAuth::Jwt { jwt, .. }) => expires_at(&jwt).filter(|at| *at <= now),
            _ => None,
        };
        let Some(expired_at) = expired_at else {
            return "check user, password, token or credentials file".to_owned();
        };
        let jwt = match self {
            Login::Credentials(path) | Login::JwtAndSeed { jwt: path, .. } => {
                format!("the JWT in {}", path.display())
            }
            _ => "the JWT".to_owned(),
        };
        format!(
            "{jwt} expired at {}: put one there that is valid, which the next attempt reads",
            expired_at.to_rfc3339_opts(SecondsFormat::Secs, true)
        )
    }
}

/// The public key of a login that is nothing but a key.
fn nkey_of(auth: &NatsAuth) -> Option<String> {
    let signed = Signed::new(auth, None).ok()?;
    signed.public_key
}

/// `exp` of a JWT; none where it has no end, or cannot be read.
fn expires_at(jwt: &Secret) -> Option<DateTime<Utc>> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: i64,
    }
    let claims = jwt.expose().split('.').nth(1)?;
    let claims = Zeroizing::new(URL_SAFE_NO_PAD.decode(claims).ok()?);
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    DateTime::from_timestamp(claims.exp, 0).filter(|_| claims.exp > 0)
}

fn credentials(path: &Path) -> Result<NatsAuth, LoginError> {
    let text = read(path)?;
    match (
        between_marks(&text, "NATS USER JWT"),
        between_marks(&text, "USER NKEY SEED"),
    ) {
        (Some(jwt), Some(seed)) if is_user_seed(seed) => Ok(NatsAuth::Jwt {
            jwt: Secret::new(jwt),
            seed: Secret::new(seed),
        }),
        _ => Err(problem(
            path,
            "is no credentials file: it has no NATS USER JWT or no valid USER NKEY SEED",
        )),
    }
}

fn nkey_seed(path: &Path) -> Result<NatsAuth, LoginError> {
    Ok(NatsAuth::NKey { seed: seed(path)? })
}

fn jwt_and_seed(jwt: &Path, seed_path: &Path) -> Result<NatsAuth, LoginError> {
    let text = read(jwt)?;
    let token = between_marks(&text, "NATS USER JWT").unwrap_or(text.trim());
    // Header, claims and signature, each in base64.
    if !token.starts_with("eyJ") || token.split('.').count() != 3 {
        return Err(problem(jwt, "holds no JWT of a user (eyJ…)"));
    }
    Ok(NatsAuth::Jwt {
        jwt: Secret::new(token),
        seed: seed(seed_path)?,
    })
}

fn seed(path: &Path) -> Result<Secret, LoginError> {
    let text = read(path)?;
    let seed = between_marks(&text, "USER NKEY SEED").unwrap_or(text.trim());
    match is_user_seed(seed) {
        true => Ok(Secret::new(seed)),
        false => Err(problem(path, "holds no seed of a user (SU…)")),
    }
}

/// All of a file, without the line end that editors add.
fn secret(path: &Path) -> Result<Secret, LoginError> {
    let text = read(path)?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(problem(path, "is empty")),
        text => Ok(Secret::new(text)),
    }
}

/// Whether this is the seed of a user.
#[must_use]
pub(crate) fn is_user_seed(text: &str) -> bool {
    text.starts_with("SU") && KeyPair::from_seed(text).is_ok()
}

/// Whether this is a secret itself, where the path of its file was asked for.
#[must_use]
pub(crate) fn is_secret(text: &str) -> bool {
    let text = text.trim();
    text.contains('\n')
        || text.starts_with("-----BEGIN")
        || is_user_seed(text)
        || text.starts_with("eyJ")
}

/// The line between `-----BEGIN <what>-----` and `------END <what>------`.
fn between_marks<'a>(text: &'a str, what: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.starts_with("---") && line.contains(&format!("BEGIN {what}")))?;
    lines
        .find(|line| !line.is_empty())
        .filter(|line| !line.starts_with("---"))
}

fn read(path: &Path) -> Result<Zeroizing<String>, LoginError> {
    secret::read_file(path, FILE_BYTES_MAX)
        .map_err(|error| problem(path, &format!("cannot be read: {error}")))
}

fn problem(path: &Path, problem: &str) -> LoginError {
    LoginError::File {
        path: path.to_owned(),
        problem: problem.to_owned(),
    }
}

/// The answer to the server's nonce; empty where the login needs none.
#[derive(Debug, Default)]
pub(super) struct Signed {
    /// Of the key that signs, where it alone says who we are.
    pub(super) public_key: Option<String>,
    pub(super) signature: Option<Vec<u8>>,
}

impl Signed {
    /// Signs. A server that knows no nkeys offers no nonce; what it makes of the key alone is its affair.
    pub(super) fn new(auth: &NatsAuth, nonce: Option<&[u8]>) -> Result<Self, LoginError> {
        let (NatsAuth::NKey { seed } | NatsAuth::Jwt { seed, .. }) = auth else {
            return Ok(Self::default());
        };
        // The library's error could hold part of the seed and is dropped.
        let pair = KeyPair::from_seed(seed.expose().trim()).map_err(|_| LoginError::Seed)?;
        let signature = nonce
            .map(|nonce| pair.sign(nonce))
            .transpose()
            .map_err(|_| LoginError::Seed)?;
        Ok(Self {
            public_key: matches!(auth, NatsAuth::NKey { .. }).then(|| pair.public_key()),
            signature,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_the_nonce() {
        let pair = KeyPair::new_user();
        let seed = Secret::new(pair.seed().expect("a private key"));
        let signed = Signed::new(&NatsAuth::NKey { seed: seed.clone() }, Some(b"abc"));
        let signed = signed.expect("a legal seed");
        pair.verify(b"abc", &signed.signature.expect("signed"))
            .expect("a true signature");
        assert_eq!(signed.public_key, Some(pair.public_key()));
        let jwt = Secret::new("a.b.c");
        let signed = Signed::new(&NatsAuth::Jwt { jwt, seed }, Some(b"abc"));
        let signed = signed.expect("a legal seed");
        assert!(signed.public_key.is_none() && signed.signature.is_some());
    }

    #[test]
    fn who_gives_no_credentials_is_told_how_to() {
        let what_to_check = |auth: NatsAuth| Login::from(auth).what_to_check(Utc::now());
        assert!(
            what_to_check(NatsAuth::None).contains("none are configured: set nats.credentials")
        );
        let token = NatsAuth::Token(Secret::new("t"));
        assert!(!what_to_check(token).contains("none are configured"));
    }

    #[test]
    fn a_bad_seed_is_not_repeated() {
        let seed = Secret::new("SUNOSEED");
        let error = Signed::new(&NatsAuth::NKey { seed }, None).expect_err("refused");
        assert_eq!(error, LoginError::Seed);
        assert!(!format!("{error} {error:?}").contains("SUNOSEED"));
    }

    #[test]
    fn a_file_is_read_anew_each_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("user.nk");
        let login = Login::NkeySeed(path.clone());
        assert!(matches!(login.read(), Err(LoginError::File { .. })));
        for _ in 0..2 {
            let seed = KeyPair::new_user().seed().expect("a private key");
            std::fs::write(&path, &seed).expect("writable");
            let seed = Secret::new(seed);
            assert_eq!(login.read(), Ok(NatsAuth::NKey { seed }));
        }
    }
}
