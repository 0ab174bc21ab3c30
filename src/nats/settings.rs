//! Which servers, and how to authenticate there.

use std::time::Duration;

use super::address::{NatsAddress, NatsAuth};

/// How to reach one server of a cluster.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// At least one server of one cluster.
    pub servers: Vec<NatsAddress>,
    /// How to authenticate at any of them.
    pub auth: NatsAuth,
    /// Limit of one attempt to connect, the handshake included.
    pub connect_timeout: Duration,
}
