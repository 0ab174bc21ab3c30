//! A command on a network of its own, which is so slow that a test can look at the command while it is at work.

use crate::proxy::{Mode, Proxy};
use crate::support::{Fixture, Relay};

/// A message has some 350 bytes, so that no command of ten thousand is done before the test has given up looking at it.
const SLOW: Mode = Mode::Throttle(40_000);

/// Starts it; with the proxy's mode its network is another one.
pub(crate) async fn start(fixture: &Fixture, arguments: &[&str]) -> (Relay, Proxy) {
    let proxy = Proxy::start(fixture.nats.server_info().port).await.unwrap();
    proxy.set(SLOW);
    let mut command = fixture.command(arguments);
    let url = format!("nats://127.0.0.1:{}", proxy.port());
    command.env("WALRELAY_NATS_URL", url);
    // A full window takes its time.
    command.env("WALRELAY_RELAY_ACK_TIMEOUT", "5min");
    (fixture.start_command(command), proxy)
}
