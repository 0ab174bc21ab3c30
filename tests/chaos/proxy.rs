//! A TCP proxy between the relay and one server, that spoils connections on command.
//!
//! In: the server's port, a [`Link`] state that may change at any time. Out: a port of its own, always listening.
//! Guarantee: what it lets through is what was sent, in order, up to where it cuts.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// At most so much is on its way inside the proxy.
const CHUNK_BYTES: usize = 8 * 1024;

/// What happens to the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Nothing moves, and nothing is closed.
    Freeze,
    /// What the relay sends goes nowhere; the other direction is open.
    HalfOpenUp,
    /// What the server sends goes nowhere; the other direction is open.
    HalfOpenDown,
    /// Each chunk is late.
    Delay(Duration),
    /// So many bytes a second, in each direction.
    Throttle(u32),
    /// The next chunk is cut after so many bytes, and the connection with it.
    Truncate(usize),
    /// Connections are accepted and closed at once.
    Refuse,
    /// Each connection is forgotten once the server has sent so many bytes over it: what comes later from either side
    /// goes nowhere, for ever, and neither side is told of the other's end.
    #[allow(dead_code)] // The fault tests use it.
    Forget(u64),
    /// As `Pass`, but for the first client that sends these bytes. From then on all that the server sends to it goes nowhere.
    #[allow(dead_code)] // The fault tests use it.
    MuteAt(&'static str),
    /// As `Pass`, but for the first client that sends these bytes. They and all that it sends behind them go nowhere.
    #[allow(dead_code)] // The fault tests use it.
    SwallowAt(&'static str),
    /// As `Pass`, but for the first client that sends these bytes. They and all that it sends behind them wait for another mode, also
    /// once it has ended.
    #[allow(dead_code)] // Not all programs use it.
    HoldAt(&'static str),
}

/// What is caught of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caught {
    Answers,
    Messages,
    /// Its messages wait while the mode is `HoldAt`.
    Held,
}

/// The link's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    mode: Mode,
    /// Connections of an earlier number are closed.
    generation: u64,
}

/// A proxy on loopback; its connections end with it.
pub struct Proxy {
    port: u16,
    link: watch::Sender<Link>,
    /// So many bytes the client has sent that is caught, from those on by which it is.
    caught_bytes: watch::Sender<u64>,
    /// So many clients have connected.
    accepted: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens, and forwards to `server_port`.
    pub async fn start(server_port: u16) -> io::Result<Proxy> {
        Proxy::start_at(Ipv4Addr::LOCALHOST, server_port).await
    }

    /// The same, on this address.
    pub async fn start_at(address: Ipv4Addr, server_port: u16) -> io::Result<Proxy> {
        let listener = TcpListener::bind((address, 0)).await?;
        let port = listener.local_addr()?.port();
        let (link, state) = watch::channel(Link {
            mode: Mode::Pass,
            generation: 0,
        });
        let caught_bytes = watch::Sender::new(0);
        let count = caught_bytes.clone();
        let accepted = watch::Sender::new(0);
        let clients = accepted.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    tokio::task::yield_now().await;
                    continue;
                };
                clients.send_modify(|count| *count += 1);
                tokio::spawn(connection(
                    client,
                    server_port,
                    state.clone(),
                    count.clone(),
                ));
            }
        });
        Ok(Proxy {
            port,
            link,
            caught_bytes,
            accepted,
            task,
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sets how bytes are treated from now on.
    pub fn set(&self, mode: Mode) {
        self.link.send_modify(|link| link.mode = mode);
    }

    /// Waits until a client is caught and has sent so many bytes since.
    #[allow(dead_code)] // Not all programs use it.
    pub async fn catches(&self, bytes: u64) {
        let mut count = self.caught_bytes.subscribe();
        let caught = count.wait_for(|count| *count >= bytes);
        caught.await.expect("the proxy is here");
    }

    /// Waits until so many clients have connected.
    #[allow(dead_code)] // The fault tests use it.
    pub async fn accepts(&self, clients: u64) {
        let mut count = self.accepted.subscribe();
        let accepted = count.wait_for(|count| *count >= clients);
        accepted.await.expect("the proxy is here");
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.link.send_modify(|link| link.generation += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn connection(
    client: TcpStream,
    server_port: u16,
    state: watch::Receiver<Link>,
    caught_bytes: watch::Sender<u64>,
) {
    let link = *state.borrow();
    if link.mode == Mode::Refuse {
        return;
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let answered = Arc::new(AtomicU64::new(0));
    let forgotten = Arc::new(AtomicBool::new(false));
    let caught = Arc::new(OnceLock::new());
    let up = Pump {
        state: state.clone(),
        generation: link.generation,
        up: true,
        answered: answered.clone(),
        forgotten: forgotten.clone(),
        caught: caught.clone(),
        caught_bytes: caught_bytes.clone(),
        seen: Vec::new(),
    };
    let down = Pump {
        state,
        generation: link.generation,
        up: false,
        answered,
        forgotten,
        caught,
        caught_bytes,
        seen: Vec::new(),
    };
    let held = up.caught.clone();
    let up = up.run(from_client, to_server);
    tokio::pin!(up);
    // Whichever ends first closes both, but for what is held of a client that has gone.
    tokio::select! {
        _ = &mut up => {}
        _ = down.run(from_server, to_client) => {
            if held.get() == Some(&Caught::Held) {
                let _ = up.await;
            }
        }
    }
}

/// One direction of a connection.
struct Pump {
    state: watch::Receiver<Link>,
    generation: u64,
    up: bool,
    /// What the server's answers have brought to the client, in bytes.
    answered: Arc<AtomicU64>,
    forgotten: Arc<AtomicBool>,
    caught: Arc<OnceLock<Caught>>,
    caught_bytes: watch::Sender<u64>,
    /// The end of what the client has sent, in which the bytes may begin by which it is caught.
    seen: Vec<u8>,
}

impl Pump {
    async fn run(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let got = tokio::select! {
                got = from.read(&mut buffer) => got?,
                () = self.wait_for_cut() => return Ok(()),
            };
            if got == 0 {
                if self.forgotten.load(Ordering::Relaxed) {
                    self.wait_for_cut().await;
                }
                return Ok(());
            }
            if !self.forward(&buffer[..got], &mut to).await? {
                return Ok(());
            }
        }
    }

    /// Returns false when the connection is to end.
    async fn forward(&mut self, chunk: &[u8], to: &mut OwnedWriteHalf) -> io::Result<bool> {
        loop {
            let link = *self.state.borrow_and_update();
            if link.generation != self.generation {
                return Ok(false);
            }
            if self.forgotten.load(Ordering::Relaxed) {
                return Ok(true);
            }
            match link.mode {
                Mode::MuteAt(bytes) => self.look_for(bytes, chunk, Caught::Answers),
                Mode::SwallowAt(bytes) => self.look_for(bytes, chunk, Caught::Messages),
                Mode::HoldAt(bytes) => self.look_for(bytes, chunk, Caught::Held),
                _ => {}
            }
            let caught = self.caught.get().copied();
            if self.up && caught.is_some() {
                let length = chunk.len() as u64;
                self.caught_bytes.send_modify(|count| *count += length);
            }
            match (caught, self.up) {
                (Some(Caught::Answers), false) | (Some(Caught::Messages), true) => return Ok(true),
                _ => {}
            }
            match link.mode {
                Mode::HoldAt(_) if self.up && caught == Some(Caught::Held) => {
                    if self.state.changed().await.is_err() {
                        return Ok(false);
                    }
                }
                Mode::Forget(limit) => {
                    let left = limit.saturating_sub(self.answered.load(Ordering::Relaxed));
                    let length = chunk.len() as u64;
                    if left > 0 && (self.up || left > length) {
                        break;
                    }
                    self.forgotten.store(true, Ordering::Relaxed);
                    if !self.up {
                        to.write_all(&chunk[..left as usize]).await?;
                    }
                    return Ok(true);
                }
                Mode::Pass | Mode::MuteAt(_) | Mode::SwallowAt(_) | Mode::HoldAt(_) => break,
                Mode::Refuse => return Ok(false),
                Mode::Truncate(bytes) => {
                    to.write_all(&chunk[..bytes.min(chunk.len())]).await?;
                    return Ok(false);
                }
                Mode::Delay(time) => {
                    tokio::time::sleep(time).await;
                    break;
                }
                Mode::Throttle(bytes_per_second) => {
                    let seconds = chunk.len() as f64 / f64::from(bytes_per_second);
                    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
                    break;
                }
                Mode::HalfOpenUp if !self.up => break,
                Mode::HalfOpenDown if self.up => break,
                Mode::Freeze | Mode::HalfOpenUp | Mode::HalfOpenDown => {
                    if self.state.changed().await.is_err() {
                        return Ok(false);
                    }
                }
            }
        }
        if !self.up {
            let length = chunk.len() as u64;
            self.answered.fetch_add(length, Ordering::Relaxed);
        }
        tokio::select! {
            written = to.write_all(chunk) => written.map(|()| true),
            () = self.wait_for_cut() => Ok(false),
        }
    }

    /// Catches the client where it has sent these bytes, and is the first to do so.
    fn look_for(&mut self, bytes: &str, chunk: &[u8], what: Caught) {
        if !self.up || *self.caught_bytes.borrow() > 0 {
            return;
        }
        self.seen.extend_from_slice(chunk);
        if memchr::memmem::find(&self.seen, bytes.as_bytes()).is_some() {
            let _ = self.caught.set(what);
        }
        let end = self.seen.len().saturating_sub(bytes.len() - 1);
        self.seen.drain(..end);
    }

    async fn wait_for_cut(&self) {
        let generation = self.generation;
        let mut state = self.state.clone();
        // An error means that the proxy is gone.
        let _ = state.wait_for(|link| link.generation != generation).await;
    }
}
