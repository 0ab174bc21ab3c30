//! Where the password comes from, at each connect anew.
//!
//! In: a value, a file, or a command. Out: the password for a host. Guarantee: what a file or a command says now is used,
//! so that a password that has been changed needs no restart; the output of a command is never shown.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use std::{fmt, io};

use tokio::io::AsyncReadExt as _;
use tokio::process::Child;
use zeroize::Zeroizing;

use super::passfile::{self, Wanted};
use super::{DEFAULT_SOCKET_DIR, Host, HostPort};
use crate::secret::{self, Secret};

/// For a command: the cloud's own take some seconds on a busy machine.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// For what a command that has ended has printed.
const REST_LIMIT: Duration = Duration::from_millis(100);
/// Longest password, in bytes; a token of a cloud has about 1,500.
const PASSWORD_BYTES_MAX: usize = 64 * 1024;

/// Where the password comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordSource {
    /// It was configured.
    Given(Secret),
    /// A file that holds nothing else.
    File(PathBuf),
    /// libpq's password file, with a line for each server.
    PasswordFile(PathBuf),
    /// What a command prints.
    Command(PasswordCommand),
    /// Nowhere.
    None,
}

/// A command that prints the password.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordCommand {
    program: String,
    arguments: Vec<String>,
}

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The command cannot be started.
    #[error(
        "cannot run postgres.password_command `{program}`: {source}; give a program that walrelay may run, by its full path"
    )]
    Start {
        /// The command's first word.
        program: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The command has failed.
    #[error(
        "postgres.password_command `{program}` {problem}; run it by hand as the user of walrelay to see why"
    )]
    Command {
        /// The command's first word.
        program: String,
        /// What went wrong.
        problem: String,
    },
    /// The file cannot be read.
    #[error("cannot read the password from {}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl PasswordError {
    /// Whether a later try may succeed: a service for tokens may be away for a while.
    pub fn is_transient(&self) -> bool {
        matches!(self, PasswordError::Command { .. })
    }
}

impl PasswordCommand {
    /// `None` for no words at all.
    pub fn new(words: Vec<String>) -> Option<PasswordCommand> {
        let mut words = words.into_iter();
        let program = words.next().filter(|program| !program.is_empty())?;
        Some(PasswordCommand {
            program,
            arguments: words.collect(),
        })
    }

    async fn run(&self) -> Result<Secret, PasswordError> {
        let failed = |problem: String| PasswordError::Command {
            program: self.program.clone(),
            problem,
        };
        let mut command = tokio::process::Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|source| PasswordError::Start {
            program: self.program.clone(),
            source,
        })?;
        let output = tokio::time::timeout(COMMAND_LIMIT, output_of(&mut child))
            .await
            .map_err(|_| failed(format!("has not ended within {COMMAND_LIMIT:?}")))?;
        let (status, bytes) = output.map_err(|error| failed(format!("cannot be read: {error}")))?;
        match status {
            None => {
                return Err(failed(format!(
                    "prints more than {PASSWORD_BYTES_MAX} bytes"
                )));
            }
            Some(status) if !status.success() => {
                return Err(failed(format!("has failed ({status})")));
            }
            Some(_) => {}
        }
        let text =
            str::from_utf8(&bytes).map_err(|_| failed("prints what is no text".to_owned()))?;
        password_of(text).map_err(failed)
    }
}

/// What a command has printed when it ended; no status for one that prints more than a password.
async fn output_of(child: &mut Child) -> io::Result<(Option<ExitStatus>, Zeroizing<Vec<u8>>)> {
    let stdout = child.stdout.take().expect("it is piped");
    let mut stdout = stdout.take(PASSWORD_BYTES_MAX as u64 + 1);
    let mut bytes = Zeroizing::new(Vec::new());
    let mut read = Box::pin(stdout.read_to_end(&mut bytes));
    let ended = tokio::select! {
        biased;
        read = &mut read => read.map(|_| None)?,
        status = child.wait() => Some(status?),
    };
    if ended.is_some() {
        // What it has printed is there; what it has started may keep the pipe open.
        if let Ok(read) = tokio::time::timeout(REST_LIMIT, &mut read).await {
            read?;
        }
    }
    drop(read);
    let status = match ended {
        None if bytes.len() <= PASSWORD_BYTES_MAX => Some(child.wait().await?),
        ended => ended,
    };
    Ok((status, bytes))
}

/// Arguments may hold secrets.
impl fmt::Debug for PasswordCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PasswordCommand({} …)", self.program)
    }
}

/// Passwords by host.
#[derive(Debug)]
pub(crate) enum Passwords {
    /// The same for all.
    One(Option<Secret>),
    /// Lines of a password file.
    Lines(Secret),
}

impl PasswordSource {
    /// Reads the file or runs the command.
    pub(crate) async fn read(&self) -> Result<Passwords, PasswordError> {
        Ok(match self {
            PasswordSource::None => Passwords::One(None),
            PasswordSource::Given(password) => Passwords::One(Some(password.clone())),
            PasswordSource::Command(command) => Passwords::One(Some(command.run().await?)),
            PasswordSource::File(path) => Passwords::One(Some(read_file(path)?)),
            PasswordSource::PasswordFile(path) => {
                // What is wrong with it was told when the configuration was read.
                match passfile::read(path, &mut Vec::new()) {
                    Some(text) => Passwords::Lines(text.into()),
                    None => Passwords::One(None),
                }
            }
        })
    }
}

impl PasswordSource {
    /// The same with what the command prints in the command's place, for a connection that has less time.
    pub(crate) async fn settled(&self) -> Result<PasswordSource, PasswordError> {
        match self {
            PasswordSource::Command(command) => Ok(command.run().await?.into()),
            other => Ok(other.clone()),
        }
    }
}

impl Passwords {
    pub(crate) fn of(&self, server: &HostPort, dbname: &str, user: &str) -> Option<Secret> {
        let text = match self {
            Passwords::One(password) => return password.clone(),
            Passwords::Lines(text) => text,
        };
        let name = match &server.host {
            Host::Tcp(name) => name.clone(),
            // As libpq: the default directory is called localhost in the file.
            Host::Unix(dir) if dir == Path::new(DEFAULT_SOCKET_DIR) || dir == Path::new("/tmp") => {
                "localhost".to_owned()
            }
            Host::Unix(dir) => dir.display().to_string(),
        };
        let wanted = Wanted {
            host: &name,
            port: server.port,
            dbname,
            user,
        };
        passfile::find(text.expose(), wanted)
    }
}

fn read_file(path: &Path) -> Result<Secret, PasswordError> {
    let failed = |problem: String| PasswordError::File {
        path: path.to_owned(),
        problem,
    };
    let text = secret::read_file(path, PASSWORD_BYTES_MAX as u64)
        .map_err(|error| failed(error.to_string()))?;
    password_of(&text).map_err(|problem| failed(format!("it {problem}")))
}

/// The text without the line end that programs and editors add.
fn password_of(text: &str) -> Result<Secret, String> {
    let text = text.trim_end_matches(['\r', '\n']);
    match text.len() {
        0 => Err("holds no password".to_owned()),
        length if length > PASSWORD_BYTES_MAX => {
            Err(format!("holds more than {PASSWORD_BYTES_MAX} bytes"))
        }
        _ => Ok(Secret::from(text)),
    }
}

impl From<Secret> for PasswordSource {
    fn from(password: Secret) -> PasswordSource {
        PasswordSource::Given(password)
    }
}
