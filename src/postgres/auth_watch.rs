//! How the server asks who we are, watched from below.
//!
//! In: the bytes that the server sends from the start-up on. Out: an error before they reach whoever would answer.
//! Guarantee: a server that asks in a way that `require_auth` or `channel_binding` rules out gets no password, and one
//! that asks for an endless SCRAM proof no proof, from either client. It is one watch below both because tokio-postgres
//! has no such rules.
//!
//! Manual: 54.2.1 "Start-up", 32.1.2 `require_auth`.

use crate::postgres::backend::tag;
use crate::postgres::conninfo::{AuthenticationRules, ChannelBinding, Method};
use crate::postgres::error::AuthenticationError;

/// Longest message before AuthenticationOk, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Iterations of SCRAM that are computed: half a second. Servers ask for 4096, unless `scram_iterations` says otherwise; the
/// protocol lets them ask for four billion.
const ITERATIONS_MAX: u64 = 1_000_000;

/// A watch of one start-up.
#[derive(Debug)]
pub(crate) struct AuthWatch {
    rules: AuthenticationRules,
    /// The connection has what a channel binding takes.
    can_bind: bool,
    asked: Option<Method>,
    /// The beginning of a message that has not wholly arrived.
    partial: Vec<u8>,
}

impl AuthWatch {
    /// `can_bind`: the connection has what a channel binding takes.
    pub(crate) fn new(rules: AuthenticationRules, can_bind: bool) -> AuthWatch {
        AuthWatch {
            rules,
            can_bind,
            asked: None,
            partial: Vec::new(),
        }
    }

    /// Takes what has arrived. `true` once the server has let us in, and there is nothing to watch any more.
    pub(crate) fn observe(&mut self, bytes: &[u8]) -> Result<bool, AuthenticationError> {
        self.partial.extend_from_slice(bytes);
        let mut rest = self.partial.as_slice();
        let mut bodies = Vec::new();
        while let Some((&[message_tag, a, b, c, d], behind)) = rest.split_first_chunk::<5>() {
            let length = u32::from_be_bytes([a, b, c, d]).saturating_sub(4) as usize;
            if length > MESSAGE_BYTES_MAX {
                return Err(AuthenticationError::NotPostgres);
            }
            let Some((body, behind)) = behind.split_at_checked(length) else {
                break;
            };
            if message_tag == tag::AUTHENTICATION {
                bodies.push(body.to_vec());
            }
            rest = behind;
        }
        let rest = rest.len();
        self.partial.drain(..self.partial.len() - rest);
        for body in bodies {
            if self.request(&body)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn request(&mut self, body: &[u8]) -> Result<bool, AuthenticationError> {
        let Some((kind, rest)) = body.split_first_chunk::<4>() else {
            return Ok(false);
        };
        let method = match i32::from_be_bytes(*kind) {
            0 => {
                let method = self.asked.unwrap_or(Method::None);
                self.check(method, false)?;
                return Ok(true);
            }
            3 => Method::Password,
            5 => Method::Md5,
            7 => Method::Gss,
            9 => Method::Sspi,
            10 => {
                let binds = rest
                    .split(|byte| *byte == 0)
                    .any(|name| name == b"SCRAM-SHA-256-PLUS");
                let scram = rest
                    .split(|byte| *byte == 0)
                    .any(|name| name.starts_with(b"SCRAM-SHA-256"));
                let method = if scram {
                    Method::ScramSha256
                } else {
                    Method::Oauth
                };
                self.check(method, binds)?;
                self.asked = Some(method);
                return Ok(false);
            }
            11 => return challenge(rest).map(|()| false),
            // The further steps of a method that was let pass.
            _ => return Ok(false),
        };
        self.check(method, false)?;
        self.asked = Some(method);
        Ok(false)
    }

    /// `binds`: the server offers SCRAM-SHA-256-PLUS.
    fn check(&self, method: Method, binds: bool) -> Result<(), AuthenticationError> {
        if !self.rules.allow(method) {
            return Err(AuthenticationError::NotAllowed { method });
        }
        let done = self.asked == Some(Method::ScramSha256);
        if self.rules.channel_binding == ChannelBinding::Require && !done {
            if !self.can_bind {
                return Err(AuthenticationError::CannotBind);
            }
            if !binds {
                return Err(AuthenticationError::NotBound { method });
            }
        }
        Ok(())
    }
}

/// Of a SCRAM challenge, `r=…,s=…,i=4096`.
fn challenge(text: &[u8]) -> Result<(), AuthenticationError> {
    let iterations = text
        .split(|byte| *byte == b',')
        .find_map(|attribute| attribute.strip_prefix(b"i="));
    let asked = iterations.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    match asked {
        Some(asked) if asked > ITERATIONS_MAX => Err(AuthenticationError::Iterations {
            asked,
            limit: ITERATIONS_MAX,
        }),
        // What is no number is for the client to refuse.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Environment;
    use crate::postgres::conninfo::Conninfo;

    fn watch(parameters: &str, can_bind: bool) -> AuthWatch {
        let text = format!("host=h user=u {parameters}");
        let conninfo = Conninfo::resolve(Some(&text), None, &Environment::default());
        AuthWatch::new(conninfo.unwrap().0.authentication, can_bind)
    }

    fn message(kind: i32, rest: &[u8]) -> Vec<u8> {
        let mut message = vec![b'R'];
        message.extend((8 + rest.len() as i32).to_be_bytes());
        message.extend(kind.to_be_bytes());
        message.extend(rest);
        message
    }

    /// All messages, in pieces of every size.
    fn outcome(
        parameters: &str,
        can_bind: bool,
        messages: &[Vec<u8>],
    ) -> Result<bool, AuthenticationError> {
        let bytes = messages.concat();
        let outcomes = (1..=bytes.len()).map(|size| {
            let mut watch = watch(parameters, can_bind);
            let mut done = Ok(false);
            for piece in bytes.chunks(size) {
                if done == Ok(false) {
                    done = watch.observe(piece);
                }
            }
            done
        });
        let mut outcomes: Vec<_> = outcomes.collect();
        outcomes.dedup();
        assert_eq!(outcomes.len(), 1, "the size of the pieces does not matter");
        outcomes.remove(0)
    }

    #[test]
    fn an_endless_proof_is_refused_before_it_is_begun() {
        let scram = message(10, b"SCRAM-SHA-256\0\0");
        for (iterations, expected) in [
            ("4096", Ok(false)),
            ("1000000", Ok(false)),
            (
                "4294967295",
                Err(AuthenticationError::Iterations {
                    asked: u64::from(u32::MAX),
                    limit: ITERATIONS_MAX,
                }),
            ),
        ] {
            let step = message(
                11,
                format!("r=x,s=QSXCR+Q6sek8bf92,i={iterations}").as_bytes(),
            );
            assert_eq!(outcome("", false, &[scram.clone(), step]), expected);
        }
    }

    #[test]
    fn only_what_is_allowed_passes() {
        use AuthenticationError as E;
        let (ok, cleartext, md5) = (message(0, b""), message(3, b""), message(5, b"salt"));
        let scram = message(10, b"SCRAM-SHA-256\0\0");
        let plus = message(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        let oauth = message(10, b"OAUTHBEARER\0\0");
        let step = message(11, b"r=x");
        let not_allowed = |method| Err(E::NotAllowed { method });
        for (parameters, can_bind, messages, expected) in [
            (
                "require_auth=scram-sha-256",
                false,
                vec![&scram, &step, &ok],
                Ok(true),
            ),
            (
                "require_auth=scram-sha-256",
                false,
                vec![&ok],
                not_allowed(Method::None),
            ),
            (
                "require_auth=scram-sha-256",
                false,
                vec![&cleartext],
                not_allowed(Method::Password),
            ),
            ("require_auth=md5,none", false, vec![&ok], Ok(true)),
            ("require_auth=md5,none", false, vec![&md5, &ok], Ok(true)),
            ("require_auth=!password", false, vec![&md5, &ok], Ok(true)),
            (
                "require_auth=!password,!none",
                false,
                vec![&cleartext],
                not_allowed(Method::Password),
            ),
            (
                "require_auth=!oauth",
                false,
                vec![&oauth],
                not_allowed(Method::Oauth),
            ),
            (
                "channel_binding=require",
                true,
                vec![&plus, &step, &ok],
                Ok(true),
            ),
            (
                "channel_binding=require",
                true,
                vec![&scram],
                Err(E::NotBound {
                    method: Method::ScramSha256,
                }),
            ),
            (
                "channel_binding=require",
                true,
                vec![&ok],
                Err(E::NotBound {
                    method: Method::None,
                }),
            ),
            (
                "channel_binding=require",
                false,
                vec![&plus],
                Err(E::CannotBind),
            ),
        ] {
            let messages: Vec<Vec<u8>> = messages.into_iter().cloned().collect();
            assert_eq!(
                outcome(parameters, can_bind, &messages),
                expected,
                "{parameters}"
            );
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_refused() {
        let mut watch = watch("require_auth=md5", true);
        assert!(watch.observe(b"R\xff\xff\xff\xff").is_err());
    }
}
