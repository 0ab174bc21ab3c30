//! Files with a secret that every user of the machine may read.
//!
//! In: the files. Out: those, and the command that keeps others out. Guarantee: what is in them is not read.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A file with a secret that others may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exposed(PathBuf);

impl Exposed {
    /// What it is.
    #[must_use]
    pub(super) fn what(&self) -> String {
        format!(
            "{} has a secret, and every user of this machine may read it",
            self.0.display()
        )
    }

    /// What mends it.
    #[must_use]
    pub(super) fn mend(&self) -> String {
        let path = self.0.display().to_string().replace('\'', r"'\''");
        format!("chmod o-rwx '{path}'")
    }
}

/// Those of the files that others may read; each once.
#[must_use]
pub(super) fn exposed(files: &[PathBuf]) -> Vec<Exposed> {
    let mut found: Vec<Exposed> = Vec::new();
    for path in files.iter().filter(|path| others_may_read(path)) {
        let exposed = Exposed(path.clone());
        if !found.contains(&exposed) {
            found.push(exposed);
        }
    }
    found
}

/// On a file system that is mounted to be read only, as containers get their secrets, nobody else is, and nothing can be changed.
fn others_may_read(path: &Path) -> bool {
    let is_open = path
        .metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o004 != 0);
    let is_read_only = || {
        let system = rustix::fs::statvfs(path);
        system.is_ok_and(|system| {
            system
                .f_flag
                .contains(rustix::fs::StatVfsMountFlags::RDONLY)
        })
    };
    is_open && !is_read_only()
}
