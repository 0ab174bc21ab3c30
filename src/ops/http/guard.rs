//! What a browser is told and refused, so that no page of another reads this one or is shown in its place.
//!
//! In: requests. Out: the same, with headers on their answers. Guarantee: a listener on loopback answers nobody who calls it by
//! a name that anybody's DNS may point to it.

use std::net::IpAddr;

use axum::extract::{Request, State as Shared};
use axum::http::{HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Only what this listener has: no script or style in the page itself, no other host, no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Refuses a foreign name where the listener is on loopback, and says what the answer may be used for.
pub(super) async fn guard(
    Shared(on_loopback): Shared<bool>,
    request: Request,
    next: Next,
) -> Response {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    let host = request.headers().get(header::HOST);
    // Who speaks HTTP/1.0 may have none, and is no browser (RFC 9112, 3.2).
    let is_whole = hosts == 1 || (hosts == 0 && request.version() != Version::HTTP_11);
    let is_own = host.is_none_or(|host| host.to_str().is_ok_and(is_own_name));
    let mut response = match is_own || !on_loopback {
        _ if !is_whole => (
            StatusCode::BAD_REQUEST,
            "A request of HTTP/1.1 has one Host header.\n",
        )
            .into_response(),
        true => next.run(request).await,
        false => (
            StatusCode::MISDIRECTED_REQUEST,
            "walrelay answers here to an IP address or to localhost, not to other names. For others, set http.listen to an \
             address that is not loopback.\n",
        )
            .into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether a value of `Host` is an address, or a name that is this machine's for everybody (RFC 6761).
fn is_own_name(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_localhost_are_our_own() {
        for own in [
            "127.0.0.1:7187",
            "127.0.0.1",
            "[::1]:7187",
            "192.0.2.7:80",
            "LocalHost:7187",
            "localhost.",
            "orders.localhost:7187",
        ] {
            assert!(is_own_name(own), "{own}");
        }
        for foreign in [
            "example.org:7187",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "notlocalhost",
            "",
            ":7187",
            "[example.org]",
        ] {
            assert!(!is_own_name(foreign), "{foreign}");
        }
    }
}
