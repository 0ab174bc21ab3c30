//! The temporary folder of one server, and the watchdog that outlives us.
//!
//! In: the pid of the server that runs in the folder, as it changes. Out: nothing is left behind: dropping the
//! [`Folder`] removes it, and when this process dies without dropping (SIGKILL, abort) its end of the watchdog's
//! pipe closes, upon which the watchdog ends the server and removes the folder.
//!
//! The watchdog is ten lines of `sh`, since the system calls that tie a child's life to its parent's are unsafe,
//! and Linux' alone.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use super::LocalError;

/// Reads what runs from its standard input; at the end of it, ends what runs, and removes the folder `$1`.
///
/// The pid is ours only while the process' arguments still name the folder. SIGQUIT makes Postgres take its
/// children and its shared memory along, and ends nats-server at once; CONT, since a paused server hears nothing.
const WATCHDOG: &str = r#"
pid=
while read -r word number; do
  case $word in run) pid=$number ;; idle) pid= ;; quit) exit 0 ;; esac
done
if [ -n "$pid" ]; then
  if [ -r "/proc/$pid/cmdline" ]; then arguments=$(tr '\0' ' ' <"/proc/$pid/cmdline"); else arguments=$(ps -ww -o args= -p "$pid"); fi
  case $arguments in *"$1"*)
    kill -QUIT "$pid"; kill -CONT "$pid"
    tries=0
    while kill -0 "$pid" && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
    kill -KILL "$pid" ;;
  esac
fi
rm -rf "$1"
"#;

/// The longest base folder below which a Unix socket's path is still legal (103 bytes on a Mac).
const BASE_BYTES_MAX: usize = 60;

/// A folder that goes away with its owner, whatever becomes of that.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    watchdog: Child,
    /// `None` only after the last word to the watchdog.
    pipe: Option<ChildStdin>,
}

impl Folder {
    /// Makes a folder named `walrelay-<kind>-<random>`, for this user only.
    pub(super) fn new(kind: &str) -> Result<Folder, LocalError> {
        let path = fresh(&base(), kind, 0o700)?;
        let watchdog = Command::new("/bin/sh")
            .args(["-c", WATCHDOG, "walrelay-watchdog"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of the terminal's process group: Ctrl-C is for us to act on.
            .process_group(0)
            .spawn();
        let mut watchdog = match watchdog {
            Ok(watchdog) => watchdog,
            Err(source) => {
                let _ = fs::remove_dir_all(&path);
                return Err(LocalError::io("start the watchdog /bin/sh")(source));
            }
        };
        let pipe = watchdog.stdin.take();
        Ok(Folder {
            path,
            watchdog,
            pipe,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the watchdog which process lives in the folder now.
    pub(super) fn runs(&mut self, pid: Option<u32>) -> Result<(), LocalError> {
        let line = pid.map_or("idle\n".to_owned(), |pid| format!("run {pid}\n"));
        let pipe = self.pipe.as_mut().expect("the pipe lasts until the drop");
        pipe.write_all(line.as_bytes())
            .map_err(LocalError::io("reach the watchdog of a local server"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        // Only where the folder is gone does the watchdog go without its own attempt.
        if let Some(mut pipe) = self.pipe.take()
            && !self.path.exists()
        {
            let _ = pipe.write_all(b"quit\n");
        }
        let _ = self.watchdog.wait();
    }
}

/// Where temporary folders go: TMPDIR where it is set and fit, else /var/tmp, which is on a disk (/tmp often is
/// memory, and there an fsync costs and proves nothing), else /tmp.
pub(super) fn base() -> PathBuf {
    let root = rustix::process::geteuid().is_root();
    let fit = |path: &PathBuf| {
        let length = path.as_os_str().len();
        length <= BASE_BYTES_MAX
            && path.is_absolute()
            && path.is_dir()
            && (!root || open_to_all(path))
    };
    let candidates = env::var_os("TMPDIR")
        .map(PathBuf::from)
        .into_iter()
        .chain([PathBuf::from("/var/tmp")]);
    candidates
        .into_iter()
        .find(fit)
        .unwrap_or_else(|| PathBuf::from("/tmp"))
}

/// Whether every user can get to what is in `folder`: root's servers run as another one.
fn open_to_all(folder: &Path) -> bool {
    folder
        .ancestors()
        .all(|ancestor| fs::metadata(ancestor).is_ok_and(|metadata| metadata.mode() & 0o001 != 0))
}

/// Makes a new folder `walrelay-<kind>-<random>` below `base`.
pub(super) fn fresh(base: &Path, kind: &str, mode: u32) -> Result<PathBuf, LocalError> {
    loop {
        let path = base.join(format!("walrelay-{kind}-{:08x}", rand::random::<u32>()));
        match fs::DirBuilder::new().mode(mode).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(LocalError::io(format!(
                    "make the folder {}",
                    path.display()
                ))(error));
            }
        }
    }
}

/// The folder of what is kept between runs, ours alone to write.
///
/// # Errors
/// [`LocalError::Io`] where somebody else made a folder of that name: what is in it cannot be trusted.
pub(super) fn cache() -> Result<PathBuf, LocalError> {
    let uid = rustix::process::geteuid().as_raw();
    let path = base().join(format!("walrelay-cache-{uid}"));
    let action = || format!("use the folder {}", path.display());
    match fs::DirBuilder::new().mode(0o711).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(LocalError::io(action())(error));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(&path).map_err(LocalError::io(action()))?;
    if !metadata.is_dir() || metadata.uid() != uid || metadata.mode() & 0o022 != 0 {
        let source = io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it belongs to another user, or others may write to it",
        );
        return Err(LocalError::io(action())(source));
    }
    Ok(path)
}
