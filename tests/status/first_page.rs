//! `docs/getting-started.md`, typed as it stands there.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use postgres_types::PgLsn;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;
use walrelay::local::ServerBinaries;

use crate::LIMIT;
use crate::platform::Platform;

/// The blocks between fences, in their order.
fn blocks(page: &str) -> Vec<&str> {
    page.split("```").skip(1).step_by(2).collect()
}

/// What is printed, word by word; an LSN is another one each time.
fn words(text: &str) -> Vec<&str> {
    text.split_whitespace()
        .map(|word| match word.parse::<PgLsn>() {
            Ok(_) => "LSN",
            Err(_) => word,
        })
        .collect()
}

fn shell(platform: &Platform, line: &str) -> Command {
    let psql = ServerBinaries::find()
        .expect("make servers")
        .postgres("psql");
    let walrelay = Path::new(env!("CARGO_BIN_EXE_walrelay"));
    let folders =
        [walrelay, &psql].map(|path| path.parent().expect("a folder").display().to_string());
    let mut command = Command::new("bash");
    command
        .args(["-c", line])
        .env_clear()
        .envs(
            platform
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .env("PATH", format!("{}:/usr/bin:/bin", folders.join(":")))
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn typed(platform: &Platform, line: &str) -> String {
    let output = timeout(LIMIT, shell(platform, line).output()).await;
    let Output {
        status,
        stdout,
        stderr,
    } = output.expect("in time").expect("a shell");
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{line}: {said}");
    String::from_utf8(stdout).expect("text")
}

/// `$ command`, and what the page shows of its output.
fn command_of(block: &str) -> (&str, &str) {
    let block = block.strip_prefix("console\n$ ").expect("a command");
    block.split_once('\n').expect("a line")
}

#[tokio::test]
async fn the_first_page_does_what_it_shows() {
    let page = fs::read_to_string("docs/getting-started.md").expect("the page");
    let blocks = blocks(&page);
    let [
        install,
        export,
        setup,
        run,
        tail,
        insert,
        arrived,
        again,
        verify,
        ..,
    ] = blocks[..]
    else {
        panic!("{blocks:?}");
    };
    assert_eq!(command_of(install).0, "cargo install --path .");
    // The servers of the test stand where the page's are.
    assert!(export.contains("export DATABASE_URL=") && export.contains(" NATS_URL="));
    let platform = Platform::servers().await;

    let (line, shown) = command_of(setup);
    assert_eq!(words(&typed(&platform, line).await), words(shown));

    let mut relay = shell(&platform, command_of(run).0)
        .spawn()
        .expect("a shell");
    let (line, header) = command_of(tail);
    let mut tail = shell(&platform, line);
    let mut tail = tail.stdout(Stdio::piped()).spawn().expect("a shell");
    let mut told = BufReader::new(tail.stdout.take().expect("piped")).lines();
    let mut next = async || {
        let line = timeout(LIMIT, told.next_line()).await.expect("in time");
        line.expect("it can be read").expect("tail goes on")
    };
    assert_eq!(words(&next().await), words(header));

    let insert = insert.strip_prefix("sql\n").expect("SQL");
    let insert = format!(
        "psql \"$DATABASE_URL\" -v ON_ERROR_STOP=1 -c '{}'",
        insert.replace('\'', "'\\''")
    );
    typed(&platform, &insert).await;
    let (event, shown) = (
        next().await,
        arrived.strip_prefix("console\n").expect("a line"),
    );
    let subject = |line: &str| line.split_whitespace().rev().nth(1).map(str::to_owned);
    assert_eq!(subject(&event), subject(shown), "{event}");

    // By its number instead of its name, which others on this machine have too.
    let mut lines = again.lines().filter_map(|line| line.strip_prefix("$ "));
    assert_eq!(lines.next(), Some("kill -9 $(pgrep -f 'walrelay run')"));
    relay.kill().await.expect("killed");
    typed(&platform, lines.next().expect("an insert")).await;
    let _relay = shell(&platform, lines.next().expect("run"))
        .spawn()
        .expect("a shell");
    assert_eq!(subject(&next().await), subject(shown));

    let (line, shown) = command_of(verify);
    assert_eq!(words(&typed(&platform, line).await), words(shown));
}
