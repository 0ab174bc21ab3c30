//! What happened when: for the person who has to find out why a run failed.
//!
//! In: sentences. Out: lines with the time since the start, on standard output and in `history.log` of the run's
//! folder; counts of faults by kind.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The run's diary.
pub struct History {
    begin: Instant,
    folder: PathBuf,
    file: Mutex<File>,
    faults: Mutex<BTreeMap<&'static str, u64>>,
}

impl History {
    /// Begins in `folder`, which is there.
    pub fn new(folder: &Path) -> std::io::Result<History> {
        Ok(History {
            begin: Instant::now(),
            folder: folder.to_owned(),
            file: Mutex::new(File::create(folder.join("history.log"))?),
            faults: Mutex::default(),
        })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    pub fn note(&self, text: impl AsRef<str>) {
        let at = chrono::Utc::now().format("%H:%M:%S%.3f");
        let line = format!(
            "[{:8.3}s {at}] {}",
            self.elapsed().as_secs_f64(),
            text.as_ref()
        );
        println!("{line}");
        let _ = writeln!(self.file.lock().expect("no holder panics"), "{line}");
    }

    /// Notes a fault and counts it.
    pub fn fault(&self, kind: &'static str, text: impl AsRef<str>) {
        *self
            .faults
            .lock()
            .expect("no holder panics")
            .entry(kind)
            .or_default() += 1;
        self.note(format!("{kind}: {}", text.as_ref()));
    }

    /// Faults by kind.
    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.faults.lock().expect("no holder panics").clone()
    }
}
