//! Where a NATS server is, and how to authenticate there.
//!
//! In: a URL as people and servers write it (`nats://user:password@host:4222`, `host`). Out:
//! [`NatsAddress`] without credentials, and [`NatsAuth`] with them. Guarantee: an address never
//! holds a secret, so it may be printed anywhere.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use crate::secret::{MASK, Secret};

/// NATS' registered client port.
pub(crate) const DEFAULT_PORT: u16 = 4222;

/// One server: what to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NatsAddress {
    /// A name or an IP address, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whether the URL asked for TLS (`tls://`).
    pub tls: bool,
}

/// How to authenticate at a server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NatsAuth {
    /// The server asks for nothing, or maps us by `no_auth_user`.
    #[default]
    None,
    /// `auth_token`.
    Token(Secret),
    /// `user` and `pass`.
    UserPassword {
        /// The account's user.
        user: String,
        /// Its password.
        password: Secret,
    },
    /// The nonce signed by a user's seed.
    NKey {
        /// `SU…`
        seed: Secret,
    },
    /// A user JWT and the nonce signed by its seed, as a credentials file holds both.
    Jwt {
        /// The token; it names its bearer, so it is kept as a secret.
        jwt: Secret,
        /// `SU…`
        seed: Secret,
    },
}

/// Why an address could not be read. Never holds the text itself, which may carry a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither `nats://` nor `tls://`.
    #[error("`{0}://` is not a NATS scheme: use nats:// or tls://")]
    Scheme(String),
    /// `ws://` or `wss://`.
    #[error(
        "walrelay does not speak NATS over WebSocket: give the port for clients of the same server by nats:// or tls:// (4222 by default)"
    )]
    WebSocket,
    /// Nothing to connect to.
    #[error("the host is missing")]
    Host,
    /// Not 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// A path, query or fragment.
    #[error(
        "a NATS URL ends after the port: remove what follows it; a login stands before the host, as user:password@ or token@"
    )]
    Trailing,
    /// Credentials where an address alone is wanted.
    #[error("credentials are not expected in this address")]
    Credentials,
    /// Percent-encoding that is not UTF-8.
    #[error("the user, password or token is not valid percent-encoded UTF-8")]
    Encoding,
    /// No server in the list.
    #[error("no server is given")]
    Empty,
    /// Two servers in the list carry different credentials.
    #[error("the servers carry different credentials: give them once, they are used for all")]
    Conflict,
}

impl NatsAddress {
    /// Reads one URL together with the `user:password@` or `token@` in it.
    ///
    /// # Errors
    /// [`AddressError`] where the URL is not one of NATS.
    pub(crate) fn parse_url(url: &str) -> Result<(NatsAddress, NatsAuth), AddressError> {
        let url = url.trim();
        let (tls, rest) = match url.split_once("://") {
            Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
                "nats" => (false, rest),
                "tls" => (true, rest),
                "ws" | "wss" => return Err(AddressError::WebSocket),
                _ => return Err(AddressError::Scheme(scheme_text(scheme))),
            },
            None => (false, url),
        };
        let (auth, rest) = match rest.rsplit_once('@') {
            Some((user_info, rest)) => (parse_user_info(user_info)?, rest),
            None => (NatsAuth::None, rest),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(AddressError::Trailing);
        }
        let (host, port) = split_host_port(rest)?;
        Ok((NatsAddress { host, port, tls }, auth))
    }

    /// Reads a comma-separated list of URLs; credentials in any of them serve for all.
    ///
    /// # Errors
    /// [`AddressError`] of the first URL that is wrong, an empty list, or credentials that differ.
    pub fn parse_urls(urls: &str) -> Result<(Vec<NatsAddress>, NatsAuth), AddressError> {
        let mut servers = Vec::new();
        let mut auth = NatsAuth::None;
        for url in urls.split(',').filter(|url| !url.trim().is_empty()) {
            let (server, server_auth) = NatsAddress::parse_url(url)?;
            if server_auth != NatsAuth::None {
                if auth != NatsAuth::None && auth != server_auth {
                    return Err(AddressError::Conflict);
                }
                auth = server_auth;
            }
            servers.push(server);
        }
        if servers.is_empty() {
            return Err(AddressError::Empty);
        }
        Ok((servers, auth))
    }
}

/// The same list of URLs with passwords and tokens as `***`; rather too much is hidden than too little.
pub(crate) fn mask_urls(urls: &str) -> String {
    // A comma may be one of a password: only behind one with a scheme does the next URL begin.
    let mut lists: Vec<String> = Vec::new();
    for part in urls.split(',') {
        match lists.last_mut() {
            Some(list) if !part.contains("://") => {
                list.push(',');
                list.push_str(part);
            }
            _ => lists.push(part.to_owned()),
        }
    }
    let masked: Vec<String> = lists.iter().map(|list| mask_list(list)).collect();
    masked.join(",")
}

/// Servers without a scheme but the first one's.
fn mask_list(list: &str) -> String {
    let (scheme, rest) = match list.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), list),
    };
    let (user_info, place) = match rest.rsplit_once('@') {
        Some((user_info, place)) => match user_info.split_once(':') {
            Some((user, _)) => (format!("{user}:{MASK}@"), place),
            None => (format!("{MASK}@"), place),
        },
        None => (String::new(), rest),
    };
    // Nothing belongs there, so that it may be anything.
    match place.find(['?', '#']) {
        Some(end) => format!("{scheme}{user_info}{}{MASK}", &place[..=end]),
        None => format!("{scheme}{user_info}{place}"),
    }
}

impl FromStr for NatsAddress {
    type Err = AddressError;

    /// Reads `nats://host:port`, `tls://host:port`, `host:port`, `host` or `[::1]:port`, as the
    /// server's `connect_urls` have them too.
    fn from_str(url: &str) -> Result<Self, AddressError> {
        match NatsAddress::parse_url(url)? {
            (address, NatsAuth::None) => Ok(address),
            _ => Err(AddressError::Credentials),
        }
    }
}

impl fmt::Display for NatsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "tls" } else { "nats" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// A scheme fit to print: what precedes `://` may be part of a password.
fn scheme_text(scheme: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    if scheme.len() <= 16 && scheme.chars().all(legal) {
        scheme.to_owned()
    } else {
        "…".to_owned()
    }
}

fn parse_user_info(user_info: &str) -> Result<NatsAuth, AddressError> {
    let decode = |text: &str| {
        let decoded = percent_decode_str(text)
            .decode_utf8()
            .map_err(|_| AddressError::Encoding)?;
        Ok(decoded.into_owned())
    };
    match user_info.split_once(':') {
        Some((user, password)) => Ok(NatsAuth::UserPassword {
            user: decode(user)?,
            password: Secret::new(decode(password)?),
        }),
        None if user_info.is_empty() => Ok(NatsAuth::None),
        None => Ok(NatsAuth::Token(Secret::new(decode(user_info)?))),
    }
}

fn split_host_port(text: &str) -> Result<(String, u16), AddressError> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or(AddressError::Host)?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err(AddressError::Port),
        }
    } else {
        match text.split_once(':') {
            // More than one colon and no brackets: a bare IPv6 address.
            Some((_, port)) if port.contains(':') => (text, None),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    // A zone (`fe80::1%eth0`) is the resolver's affair.
    let is_ipv6 = |host: &str| {
        host.split('%')
            .next()
            .is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok())
    };
    let is_name = |host: &str| {
        !host.contains(|c: char| c.is_whitespace() || c.is_control() || ":[],".contains(c))
    };
    if host.is_empty() || !is_name(host) && !is_ipv6(host) {
        return Err(AddressError::Host);
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => match port.parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => return Err(AddressError::Port),
        },
    };
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16, tls: bool) -> NatsAddress {
        NatsAddress {
            host: host.to_owned(),
            port,
            tls,
        }
    }

    #[test]
    fn reads_the_forms_people_and_servers_write() {
        for (text, expected) in [
            ("nats://localhost:4222", address("localhost", 4222, false)),
            ("nats://localhost", address("localhost", 4222, false)),
            ("nats://localhost/", address("localhost", 4222, false)),
            (
                "tls://broker.example:443",
                address("broker.example", 443, true),
            ),
            ("broker:4333", address("broker", 4333, false)),
            ("broker", address("broker", 4222, false)),
            ("[::1]:4333", address("::1", 4333, false)),
            ("nats://[fe80::1]", address("fe80::1", 4222, false)),
            ("::1", address("::1", 4222, false)),
            ("NATS://h", address("h", 4222, false)),
        ] {
            assert_eq!(text.parse::<NatsAddress>(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_nats_url() {
        for (text, expected) in [
            ("http://h", AddressError::Scheme("http".to_owned())),
            ("nats://", AddressError::Host),
            ("", AddressError::Host),
            ("nats://h:0", AddressError::Port),
            ("nats://h:65536", AddressError::Port),
            ("nats://h:4222x", AddressError::Port),
            ("[::1]4222", AddressError::Port),
            ("[::1", AddressError::Host),
            (":]:", AddressError::Host),
            ("a:b:c", AddressError::Host),
            ("nats://h:4222/path", AddressError::Trailing),
            ("nats://h?x=1", AddressError::Trailing),
            ("nats://u:p@h", AddressError::Credentials),
        ] {
            assert_eq!(text.parse::<NatsAddress>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn credentials_end_up_in_the_auth() {
        let (server, auth) = NatsAddress::parse_url("nats://al%40ice:p%2Fw@h:1").unwrap();
        assert_eq!(server, address("h", 1, false));
        assert_eq!(
            auth,
            NatsAuth::UserPassword {
                user: "al@ice".to_owned(),
                password: "p/w".into()
            }
        );
        let (_, auth) = NatsAddress::parse_url("nats://s3cr3t@h").unwrap();
        assert_eq!(auth, NatsAuth::Token("s3cr3t".into()));
        assert!(!format!("{auth:?}").contains("s3cr3t"));
    }

    #[test]
    fn a_list_has_one_set_of_credentials() {
        let (servers, auth) = NatsAddress::parse_urls("nats://t@a:1, b:2,tls://c").unwrap();
        assert_eq!(
            servers,
            [
                address("a", 1, false),
                address("b", 2, false),
                address("c", 4222, true)
            ]
        );
        assert_eq!(auth, NatsAuth::Token("t".into()));
        assert_eq!(
            NatsAddress::parse_urls("t@a,u@b"),
            Err(AddressError::Conflict)
        );
        assert_eq!(NatsAddress::parse_urls(" , "), Err(AddressError::Empty));
    }

    #[test]
    fn masks_passwords_and_tokens() {
        for (text, expected) in [
            ("nats://h:4222", "nats://h:4222"),
            ("nats://u:p@h", "nats://u:***@h"),
            (
                "nats://t0ken@h,tls://u:p:w@d@i",
                "nats://***@h,tls://u:***@i",
            ),
            ("t0ken@h", "***@h"),
            ("h:4222,i:4222", "h:4222,i:4222"),
            ("nats://h?token=t0ken", "nats://h?***"),
            ("nats://h?token=t0,ken", "nats://h?***"),
            ("nats://h/#p@ss,tls://i", "nats://***@ss,tls://i"),
            ("nats://u:pa,ss@h,tls://i", "nats://u:***@h,tls://i"),
        ] {
            assert_eq!(mask_urls(text), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "(nats|tls)?(\\PC|[@:/,\\[\\]]){0,30}") {
            let _ = mask_urls(&text);
            if let Ok((address, _)) = NatsAddress::parse_url(&text) {
                proptest::prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
