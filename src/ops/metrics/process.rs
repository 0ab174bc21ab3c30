//! What the process itself uses, under the names that every Prometheus client has for it.
//!
//! In: /proc. Out: gauges and a counter; nothing where there is no /proc.

use std::fs;

use super::families::{Families, Kind};

/// Adds what is known.
pub(super) fn write(out: &mut Families) {
    let Some(usage) = Usage::read() else {
        return;
    };
    out.one(
        "process_cpu_seconds_total",
        Kind::Counter,
        "Total user and system CPU time spent in seconds",
        usage.cpu_seconds,
    );
    out.one(
        "process_resident_memory_bytes",
        Kind::Gauge,
        "Resident memory size in bytes",
        usage.resident_bytes,
    );
    out.one(
        "process_virtual_memory_bytes",
        Kind::Gauge,
        "Virtual memory size in bytes",
        usage.virtual_bytes,
    );
    out.known(
        "process_open_fds",
        "Number of open file descriptors",
        fs::read_dir("/proc/self/fd").map(Iterator::count).ok(),
    );
    out.known(
        "process_max_fds",
        "Maximum number of open file descriptors",
        fs::read_to_string("/proc/self/limits")
            .ok()
            .and_then(|limits| max_fds(&limits)),
    );
    out.one(
        "process_threads",
        Kind::Gauge,
        "Number of threads",
        usage.threads,
    );
    out.known(
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds",
        usage.start_seconds(),
    );
}

/// Of /proc/self/stat (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    threads: u64,
    started_ticks: u64,
    virtual_bytes: u64,
    resident_bytes: u64,
}

impl Usage {
    fn read() -> Option<Self> {
        Usage::of(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    #[allow(clippy::cast_precision_loss)]
    fn of(stat: &str) -> Option<Self> {
        // The command's name is in brackets and may hold anything.
        let (_, stat) = stat.rsplit_once(')')?;
        let fields: Vec<u64> = (stat.split_whitespace().skip(1))
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        // The first of these is field 4.
        let field = |number: usize| fields.get(number - 4).copied();
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        Some(Usage {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks as f64,
            threads: field(20)?,
            started_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * rustix::param::page_size() as u64,
        })
    }

    #[allow(clippy::cast_precision_loss)]
    fn start_seconds(self) -> Option<f64> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let boot: u64 = (stat.lines())
            .find_map(|line| line.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        Some(boot as f64 + self.started_ticks as f64 / ticks as f64)
    }
}

fn max_fds(limits: &str) -> Option<u64> {
    let line = (limits.lines()).find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let numbers: Vec<String> = (4..=52).map(|number| (number * 10).to_string()).collect();
        let stat = format!("7 (a) b) S {}", numbers.join(" "));
        let usage = Usage::of(&stat).expect("whole");
        assert_eq!(
            (usage.threads, usage.started_ticks, usage.virtual_bytes),
            (200, 220, 230)
        );
        assert_eq!(Usage::of("7 (a) S 1 2"), None);
        assert_eq!(Usage::of(""), None);
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024     4096   files\n";
        assert_eq!(max_fds(limits), Some(1024));
    }
}
