//! Where the servers' executables are.
//!
//! In: the environment, the current folder, PATH. Out: [`ServerBinaries`], whose executables exist. What it finds
//! on PATH is new enough; what `scripts/servers.sh` or `WALRELAY_SERVERS` name is taken as it is.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::LocalError;

/// The oldest Postgres that is taken from PATH: what the demo and the tests are written for.
const POSTGRES_MAJOR_MIN: u32 = 18;
/// The oldest nats-server that is taken from PATH: the first with fast ingest (2.14).
const NATS_VERSION_MIN: (u32, u32) = (2, 14);

/// The executables of Postgres and of nats-server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerBinaries {
    postgres_home: PathBuf,
    nats_server: PathBuf,
    /// The folder that `scripts/servers.sh` fills, when they come from there.
    servers: Option<PathBuf>,
}

impl ServerBinaries {
    /// Looks in the folder that `WALRELAY_SERVERS` names; else in `.servers` of the current folder, of the crate
    /// under test, of the running executable's folder, and of everything above these; else on PATH.
    ///
    /// # Errors
    /// [`LocalError::Missing`] where one of the two servers is not found, or is too old.
    pub fn find() -> Result<ServerBinaries, LocalError> {
        if let Some(folder) = env::var_os("WALRELAY_SERVERS").filter(|folder| !folder.is_empty()) {
            return ServerBinaries::in_folder(Path::new(&folder));
        }
        let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let starts = [env::current_dir().ok(), manifest, env::current_exe().ok()];
        for start in starts.iter().flatten() {
            for folder in start.ancestors() {
                if let Ok(found) = ServerBinaries::in_folder(&folder.join(".servers")) {
                    return Ok(found);
                }
            }
        }
        ServerBinaries::on_path()
    }

    /// The servers in a folder laid out as `scripts/servers.sh` does: `postgres/bin/…` and `nats/nats-server`.
    ///
    /// # Errors
    /// [`LocalError::Missing`] where one of the executables is not there.
    pub(crate) fn in_folder(folder: &Path) -> Result<ServerBinaries, LocalError> {
        let found = ServerBinaries {
            postgres_home: folder.join("postgres"),
            nats_server: folder.join("nats").join("nats-server"),
            servers: Some(folder.to_owned()),
        };
        found.check(&folder.display().to_string())
    }

    /// The same nats-server with Postgres of another major version, as `scripts/servers.sh --all-postgres` fetches.
    ///
    /// # Errors
    /// [`LocalError::Missing`] where that version is not there.
    pub fn with_postgres_major(&self, major: u32) -> Result<ServerBinaries, LocalError> {
        let missing = || LocalError::Missing {
            server: format!("Postgres {major}"),
            looked_in: "`.servers` (scripts/servers.sh --all-postgres fetches it)".to_owned(),
        };
        let servers = self.servers.as_ref().ok_or_else(missing)?;
        let own = servers.join(format!("postgres-{major}"));
        let postgres_home = if own.join("bin").join("initdb").is_file() {
            own
        } else if version_of(&self.postgres("postgres")).is_some_and(|version| version.0 == major) {
            self.postgres_home.clone()
        } else {
            return Err(missing());
        };
        Ok(ServerBinaries {
            postgres_home,
            ..self.clone()
        })
    }

    /// The same Postgres with nats-server 2.`minor`, as `scripts/servers.sh --all-nats` fetches.
    ///
    /// # Errors
    /// [`LocalError::Missing`] where that version is not there.
    pub fn with_nats_minor(&self, minor: u32) -> Result<ServerBinaries, LocalError> {
        let servers = self.servers.as_ref();
        let server = servers.map(|servers| servers.join(format!("nats-2.{minor}/nats-server")));
        match server.filter(|server| server.is_file()) {
            Some(nats_server) => Ok(ServerBinaries {
                nats_server,
                ..self.clone()
            }),
            None => Err(LocalError::Missing {
                server: format!("nats-server 2.{minor}"),
                looked_in: "`.servers` (scripts/servers.sh --all-nats fetches it)".to_owned(),
            }),
        }
    }

    /// The same nats-server with a Postgres that has TLS, as `scripts/servers.sh --tls` fetches.
    ///
    /// # Errors
    /// [`LocalError::Missing`] where it is not there.
    pub fn with_postgres_tls(&self) -> Result<ServerBinaries, LocalError> {
        let own = self
            .servers
            .as_ref()
            .map(|folder| folder.join("postgres-tls"));
        let postgres_home = own
            .filter(|home| home.join("bin").join("initdb").is_file())
            .ok_or_else(|| LocalError::Missing {
                server: "Postgres with TLS".to_owned(),
                looked_in: "`.servers` (scripts/servers.sh --tls fetches it)".to_owned(),
            })?;
        Ok(ServerBinaries {
            postgres_home,
            ..self.clone()
        })
    }

    /// The path of one of Postgres' programs, such as `psql`; whether it is there is the caller's to see.
    pub fn postgres(&self, program: &str) -> PathBuf {
        self.postgres_home.join("bin").join(program)
    }

    /// The path of nats-server.
    pub(crate) fn nats_server(&self) -> &Path {
        &self.nats_server
    }

    /// The folder above Postgres' `bin`.
    pub(super) fn postgres_home(&self) -> &Path {
        &self.postgres_home
    }

    fn on_path() -> Result<ServerBinaries, LocalError> {
        let looked_in = "`.servers` and on PATH";
        let postgres = on_path("initdb", |initdb| {
            version_of(initdb).is_some_and(|(major, _)| major >= POSTGRES_MAJOR_MIN)
        });
        let nats_server = on_path("nats-server", |server| {
            version_of(server).is_some_and(|version| version >= NATS_VERSION_MIN)
        });
        let home = postgres
            .as_deref()
            .and_then(Path::parent)
            .and_then(Path::parent);
        let found = ServerBinaries {
            postgres_home: home.unwrap_or(Path::new("")).to_owned(),
            nats_server: nats_server.unwrap_or_default(),
            servers: None,
        };
        found.check(looked_in)
    }

    fn check(self, looked_in: &str) -> Result<ServerBinaries, LocalError> {
        let missing = |server: String| LocalError::Missing {
            server,
            looked_in: looked_in.to_owned(),
        };
        if !["postgres", "initdb"]
            .iter()
            .all(|program| self.postgres(program).is_file())
        {
            return Err(missing(format!("Postgres {POSTGRES_MAJOR_MIN} or later")));
        }
        if !self.nats_server.is_file() {
            let (major, minor) = NATS_VERSION_MIN;
            return Err(missing(format!("nats-server {major}.{minor} or later")));
        }
        Ok(self)
    }
}

/// The first `program` on PATH that `fits`.
fn on_path(program: &str, fits: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file() && fits(file))
}

/// Major and minor version that `program --version` prints.
fn version_of(program: &Path) -> Option<(u32, u32)> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// The first word that looks like a version: `initdb (PostgreSQL) 18.6 (Debian …)`, `nats-server: v2.15.0`, `19beta1`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let word = text
        .split_whitespace()
        .map(|word| word.strip_prefix('v').unwrap_or(word))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut numbers = word
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let major = numbers.next()?.ok()?;
    let minor = numbers.next().and_then(Result::ok).unwrap_or(0);
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_the_programs_print_them() {
        for (text, version) in [
            ("initdb (PostgreSQL) 18.6", Some((18, 6))),
            (
                "initdb (PostgreSQL) 18.6 (Debian 18.6-1.pgdg120+1)",
                Some((18, 6)),
            ),
            ("initdb (PostgreSQL) 19beta1", Some((19, 0))),
            ("nats-server: v2.15.0\n", Some((2, 15))),
            ("nats-server: v2.14.0-RC.1", Some((2, 14))),
            ("no version", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), version, "{text:?}");
        }
    }

    #[test]
    fn an_empty_folder_says_that_the_servers_are_missing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(matches!(
            ServerBinaries::in_folder(folder.path()),
            Err(LocalError::Missing { .. })
        ));
    }
}
