//! Values of flags that cannot be: refused before any server is asked, with the form that is expected. Needs no server.

use std::process::{Command, Output};

use tempfile::TempDir;

/// Nobody listens on port 1, so whoever asks a server ends otherwise.
fn walrelay(arguments: &[&str]) -> Output {
    let folder = TempDir::new().expect("a temporary folder");
    Command::new(env!("CARGO_BIN_EXE_walrelay"))
        .args(arguments)
        .current_dir(folder.path())
        .env_clear()
        .env("WALRELAY_POSTGRES_URL", "postgres://relay@127.0.0.1:1/app")
        .env("WALRELAY_NATS_URL", "nats://127.0.0.1:1")
        .output()
        .expect("it starts and ends")
}

fn refused(arguments: &[&str], expected: &str) {
    let ended = walrelay(arguments);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {said}");
    assert!(said.contains(expected), "{arguments:?}: {said}");
}

const ID: &str = "00000000-0000-0000-0000-0000000000aa";

#[test]
fn a_duration_that_is_none_names_the_form() {
    for flags in [
        &["verify", "--wait"][..],
        &["prune", "--older-than", "7d", "--wait"],
        &["erase", "--aggregate-id", ID, "--wait"],
        &["setup", "--wait"],
        &["bench", "--duration"],
        &["reshard", "--shares", "2", "--wait"],
        &["reshard", "--shares", "2", "--lock-wait"],
    ] {
        for bad in ["soon", "5", "", "5 parsecs"] {
            refused(&[flags, &[bad]].concat(), "such as 30s or 5min");
        }
    }
    refused(&["status", "--watch=soon"], "such as 30s or 5min");
    refused(&["tail", "--since", "soon"], "a duration such as `10m`");
    refused(&["prune", "--older-than", "soon"], "such as 7d");
}

#[test]
fn a_count_that_is_none_names_its_bounds() {
    for (flags, bounds) in [
        (&["tail", "--count"][..], "a whole number from 1 on"),
        (&["setup", "--replicas"], "a whole number from 1 to 5"),
        (
            &["prune", "--older-than", "7d", "--batch"],
            "a whole number from 1 to 100000",
        ),
        (&["bench", "--rate"], "a whole number from 1 to 1000000"),
        (&["bench", "--rows"], "a whole number from 1 to 100000"),
        (&["bench", "--sessions"], "a whole number from 1 to 500"),
        (&["bench", "--backlog"], "a whole number from 1 on"),
        (&["bench", "--existing", "--relay-pid"], "a whole number"),
        (&["reshard", "--shares"], "a power of two from 1 to"),
    ] {
        for bad in ["x", "0", "1.5", "", "99999999999999999999"] {
            refused(&[flags, &[bad]].concat(), bounds);
        }
    }
    refused(&["tail", "--since", "seq:x"], "such as seq:17");
}

#[test]
fn subjects_filters_and_ids_are_looked_at_before_a_server_is_asked() {
    for bad in ["a..b", "", ".a", "a b", "a.>.b", "a*"] {
        refused(
            &["tail", "--subject", bad],
            "give a subject such as outbox.",
        );
    }
    for command in [&["tail"][..], &["replay", "--from", "0/1"]] {
        for bad in ["", " a", "a\n"] {
            let of_type = [command, &["--event-type", bad]].concat();
            refused(&of_type, "such as lesson.published.v1");
            let of_aggregate = [command, &["--aggregate-id", bad]].concat();
            refused(&of_aggregate, "such as 019a8f3e-");
        }
    }
    for command in [&["tail"][..], &["replay", "--from", "0/1"]] {
        // The subjects are of their types, and no subject has such a one.
        for bad in ["a b", "a..b", ".a", "a.", "a..*", ">", "*.a", "a*b", "a.**"] {
            let of_type = [command, &["--event-type", bad]].concat();
            refused(&of_type, "such as lesson.published.v1");
        }
    }
    refused(&["erase", "--aggregate-id", ""], "such as 019a8f3e-");
    for (flag, bad, expected) in [
        ("--also-stream", "a.b", "a stream's name is"),
        ("--also-header", "a b", "a header's name is"),
        ("--also-header", "", "a header's name is"),
    ] {
        refused(&["erase", "--aggregate-id", ID, flag, bad], expected);
    }
    let prune = ["prune", "--older-than", "7d", "--except-slot", "A-B"];
    refused(&prune, "a slot's name is");
    refused(&["backfill", "--where", ""], "give a condition in SQL");
    refused(
        &["setup", "--backfill", "--where", " "],
        "give a condition in SQL",
    );
    refused(&["move", "--to-nats", "http://a"], "use nats:// or tls://");
    for command in ["show", "skip", "retry"] {
        let bad = ["dead-letters", command, "16"];
        refused(&bad, "not a position such as 16/B374D848:3");
    }
    refused(&["adopt", "--position", "16"], "not a position such as");
    refused(&["run", "--from", "16"], "an LSN such as 16/B374D848");
}
