//! rotel, a collector of OpenTelemetry that others wrote, as `scripts/servers.sh --otlp` fetches it.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Its program, of a folder as `scripts/servers.sh` makes it.
fn program() -> PathBuf {
    let servers = std::env::var_os("WALRELAY_SERVERS");
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".servers");
    servers
        .map_or_else(own, PathBuf::from)
        .join("otlp/rotel-agent")
}

/// Takes OTLP over HTTP there, and hands it on to a URL by the same, or to nobody.
///
/// # Panics
/// Where the program is missing.
pub fn command(listen: SocketAddr, onward: Option<&str>) -> Command {
    let program = program();
    assert!(program.exists(), "scripts/servers.sh --otlp fetches it");
    let mut command = Command::new(program);
    command
        .env_clear()
        .arg("start")
        .args(["--otlp-http-endpoint", &listen.to_string()])
        // Nobody asks for this one.
        .args(["--otlp-grpc-endpoint", "127.0.0.1:0"]);
    match onward {
        // It compresses what it sends, by 0.0.1a15 also where it is told not to.
        Some(url) => command
            .args(["--exporter", "otlp", "--otlp-exporter-endpoint", url])
            .args(["--otlp-exporter-protocol", "http"]),
        None => command.args(["--exporter", "blackhole"]),
    };
    command
}

/// Whether it has begun to listen.
pub fn listens(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}
