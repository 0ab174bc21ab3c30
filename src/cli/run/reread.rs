//! SIGHUP: the configuration read again while the relay runs.
//!
//! In: the configuration it was started with, and what it says now. Out: another log level, and a line that names every key
//! that takes a restart. Guarantee: a configuration that cannot be used changes nothing.

use crate::cli::exit::message;
use crate::cli::given::Given;
use crate::config::{Key, Loaded};
use crate::ops::logs;

pub(super) fn reread(given: &Given, started: &Loaded) {
    if let Some(file) = started.file.as_ref().filter(|file| !file.exists()) {
        tracing::error!(
            "SIGHUP: the configuration file {} is gone, and nothing is changed: put it back, or without it a restart has the defaults",
            file.display()
        );
        return;
    }
    let now = given.load().and_then(|now| {
        let filter = given.filter(&now)?;
        Ok((now, filter))
    });
    let (now, filter) = match now {
        Ok(now) => now,
        Err(error) => {
            tracing::error!(
                "SIGHUP: the configuration cannot be used, and nothing is changed: {}",
                message(&error)
            );
            return;
        }
    };
    let level = now.shown(Key::LogLevel).expect("the key has a default");
    let say = || {
        tracing::info!(
            "SIGHUP: log.level is {} ({}); passwords, tokens, credentials and certificates in files are read at each connect",
            level.text,
            level.source
        );
    };
    // By the old filter, unless only the new one lets it through.
    let is_logged = tracing::enabled!(tracing::Level::INFO);
    if is_logged {
        say();
    }
    logs::set_filter(&filter);
    if !is_logged {
        say();
    }
    let changed: Vec<String> = started.changed(&now).map(Key::path).collect();
    if !changed.is_empty() {
        tracing::warn!(
            "SIGHUP: changed, and taken up by a restart only: {}",
            changed.join(", ")
        );
    }
}
