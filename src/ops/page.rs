//! The status page: HTML that is complete without its script, which only asks for it again and takes over what has changed.
//!
//! In: each lane's status and its last hour. Out: the page. Guarantee: what a server or a row says is text, never markup; nothing
//! is asked of another host, and neither script nor style stands in the page itself.

mod chart;
mod letters;
mod markup;
mod overview;

pub(super) use letters::{Rows, shown as letter};

use super::runbook;
use crate::ops::history::{Past, Point};
use crate::relay::status::{PastFault, State, Status};
use crate::relay::stored_letter::StoredLetter;
use chart::chart;
use chrono::{DateTime, Utc};
use markup::{escaped, with_code};
use postgres_types::PgLsn;

/// Its style sheet, at `/page.css`.
pub(super) const STYLE: &str = include_str!("page/page.css");
/// Its script, at `/page.js`.
pub(super) const SCRIPT: &str = include_str!("page/page.js");
/// Its picture in the browser's tab, at `/icon.svg`.
pub(super) const ICON: &str = include_str!("page/icon.svg");
/// Where nothing is known.
const UNKNOWN: &str = "–";
/// Changes of the state that are shown.
const CHANGES_SHOWN: usize = 12;

/// What is known of a lane.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) status: Status,
    pub(super) past: Past,
    /// The newest open dead letters.
    pub(super) letters: Vec<StoredLetter>,
}

/// The page, with a part for each lane.
pub(super) fn render(lanes: &[Lane], rows: Rows) -> String {
    let Some(first) = lanes.first() else {
        return String::new();
    };
    let parts = lanes.iter().enumerate().map(|(index, lane)| {
        let name = match lanes.len() {
            1 => &lane.status.name,
            _ => &lane.status.slot,
        };
        part(index, name, lane, rows)
    });
    let parts: String = parts.collect();
    document(
        &format!("{}: {}", escaped(&first.status.name), gravest(lanes).name()),
        "<script src=\"/page.js\" defer></script><noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>",
        &format!(
            "<div id=\"away\" class=\"reason away\" role=\"alert\" hidden></div><div id=\"lanes\">{overview}{parts}</div>\
             <footer><a href=\"/metrics\">metrics</a> · <a href=\"/readyz\">readiness</a> · \
             <a href=\"/status.json\">JSON</a> · <span id=\"started\" data-live>running since {started}</span> · \
             <code>walrelay doctor</code> says what is wrong, with the command that mends it</footer>",
            overview = overview::overview(lanes),
            started = time(first.status.started),
        ),
    )
}

/// `title` and the rest are HTML.
fn document(title: &str, head: &str, main: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\" data-version=\"{version}\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <link rel=\"icon\" href=\"/icon.svg\"><link rel=\"stylesheet\" href=\"/page.css\">{head}</head>\
         <body><main>{main}</main></body></html>",
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// The state that a person has to see: of a lane that is not ready, if there is one.
fn gravest(lanes: &[Lane]) -> State {
    let mut statuses = lanes.iter().map(|lane| &lane.status);
    let unready = statuses.clone().find(|status| !status.is_ready());
    let streams = |status: &&Status| status.state == State::Streaming;
    let shown = unready
        .or(statuses.clone().find(streams))
        .or(statuses.next());
    shown.map_or(State::Starting, |status| status.state)
}

fn part(index: usize, name: &str, lane: &Lane, rows: Rows) -> String {
    let Lane {
        status,
        past,
        letters,
    } = lane;
    let state = status.state.name();
    let reason = status.reason.as_ref().map_or_else(String::new, |reason| {
        format!(
            "<div class=\"reason of-{state}\">{}</div>",
            with_code(reason)
        )
    });
    let live = |name: &str, role: &str, content: String| {
        format!("<div id=\"{name}-{index}\" data-live{role}>{content}</div>")
    };
    let head = format!(
        "<header><h1>{name}</h1><span class=\"state {state}\">{state}</span>\
         <span class=\"dim\">since {since}</span><span class=\"dim right\">walrelay {version}</span></header>{reason}",
        name = escaped(name),
        since = time(status.since),
        version = escaped(&status.version),
    );
    let told = format!(
        "<h2>Positions</h2>{}<h2>Open dead letters</h2>{}<h2>Dead letters since the start</h2>{}",
        positions(status),
        letters::open(
            (index, &status.slot),
            letters,
            status.dead_letters_open,
            rows
        ),
        dead_letters(status)
    );
    let told = bulk_work(status) + &told;
    let happened = format!(
        "<h2>Changes of the state</h2>{}<h2>Last faults</h2>{}<h2>Lane</h2>{}",
        changes(past),
        faults(status),
        lane_itself(status)
    );
    format!(
        "<section class=\"lane\" id=\"lane-{index}\" aria-label=\"{}\">{}{}{}<div class=\"columns\">{}{}</div></section>",
        escaped(name),
        live("head", " role=\"status\"", head),
        live("cards", "", cards(status)),
        live("charts", " class=\"charts\"", charts(past)),
        live("told", "", told),
        live("happened", "", happened),
    )
}

/// Commands beside the relay; nothing where there are none.
fn bulk_work(status: &Status) -> String {
    if status.bulk_work.is_empty() {
        return String::new();
    }
    let works = status.bulk_work.iter().map(|work| {
        let remedy = match work.ended {
            true => format!("<br>run it again: <code>{}</code>", escaped(&work.command)),
            false => String::new(),
        };
        format!("<p>{}{remedy}</p>", escaped(&work.what()))
    });
    format!(
        "<h2>Commands beside the relay</h2>{}",
        works.collect::<String>()
    )
}

fn cards(status: &Status) -> String {
    let open = status.dead_letters_open;
    let is_asked_for = open.is_some_and(|open| open > 0);
    let cards = [
        ("events a second", grouped(status.events_per_second)),
        ("acknowledged", grouped(status.totals.acknowledged)),
        ("in flight", grouped(status.marks.in_flight)),
        ("lag", lag(status)),
        (
            "held back",
            known_bytes(ours(status, status.held_back_bytes())),
        ),
        (
            "open dead letters",
            open.map_or(UNKNOWN.to_owned(), grouped),
        ),
    ];
    let cards = cards.iter().map(|(what, value)| {
        let class = match *what {
            "open dead letters" if is_asked_for => " class=\"waiting\"",
            _ => "",
        };
        format!("<div class=\"card\"><dt>{what}</dt><dd{class}>{value}</dd></div>")
    });
    format!("<dl class=\"cards\">{}</dl>", cards.collect::<String>())
}

fn charts(past: &Past) -> String {
    let values = |of: fn(&Point) -> Option<f64>| past.points.iter().map(of).collect::<Vec<_>>();
    let rate = values(|point| Some(point.events_per_second));
    let latency = values(|point| point.latency_us.map(|us| us as f64 / 1e3));
    let lag = values(|point| point.lag_seconds.map(|seconds| seconds as f64));
    [
        chart("Events a second", &rate, |value| match value {
            0.0 => "0".to_owned(),
            below if below < 10.0 => format!("{below:.1}"),
            value => grouped(value.round() as u64),
        }),
        chart("99 % acknowledged within", &latency, |ms| match ms {
            1_000.0.. => format!("{} s", ms / 1e3),
            ms => format!("{ms} ms"),
        }),
        chart("Lag", &lag, |seconds| format!("{seconds:.0} s")),
    ]
    .concat()
}

fn changes(past: &Past) -> String {
    if past.changes.is_empty() {
        return "<p class=\"dim\">None yet.</p>".to_owned();
    }
    let rows: String = past
        .changes
        .iter()
        .take(CHANGES_SHOWN)
        .map(|change| {
            let state = change.state.name();
            let reason = change.reason.as_deref().map_or_else(String::new, |reason| {
                format!(": {}", with_code(reason))
            });
            let at = time(change.at);
            format!(
                "<tr><th scope=\"row\">{at}</th><td><b class=\"{state}\">{state}</b>{reason}</td></tr>"
            )
        })
        .collect();
    format!("<table class=\"events\">{rows}</table>")
}

/// By reason.
fn dead_letters(status: &Status) -> String {
    let rows: Vec<(&str, String)> = status
        .totals
        .dead_letters
        .iter()
        .map(|(reason, count)| (reason.as_str(), grouped(*count)))
        .collect();
    match rows.is_empty() {
        true => "<p class=\"dim\">None.</p>".to_owned(),
        false => table(&rows),
    }
}

fn lane_itself(status: &Status) -> String {
    let or_dash = |text: &Option<String>| text.as_deref().map_or(UNKNOWN.to_owned(), escaped);
    table(&[
        ("slot", escaped(&status.slot)),
        ("stream", escaped(&status.stream)),
        ("publishes by", or_dash(&status.mode)),
        ("Postgres", or_dash(&status.postgres)),
        ("nats-server", or_dash(&status.nats)),
        ("epochs", grouped(status.totals.epochs)),
    ])
}

fn positions(status: &Status) -> String {
    let marks = status.marks;
    let last = status.position.as_deref().map_or_else(
        || UNKNOWN.to_owned(),
        |position| format!("<code>{}</code>", escaped(position)),
    );
    let behind = ours(status, status.lag_bytes());
    table(&[
        ("last event", last),
        ("server", lsn(status.server_lsn, None)),
        (
            "received",
            lsn(
                marks.received_lsn,
                status.received_lag_bytes().zip(Some("behind")),
            ),
        ),
        (
            "acknowledged",
            lsn(marks.acknowledged_lsn, behind.zip(Some("behind"))),
        ),
        (
            "confirmed to Postgres",
            lsn(
                marks.confirmed_lsn,
                status.held_back_bytes().zip(Some("held back")),
            ),
        ),
    ])
}

/// A place in the WAL, and how much there is behind it, if anything.
fn lsn(lsn: u64, rest: Option<(u64, &str)>) -> String {
    let rest = match rest {
        Some((count @ 1.., what)) => {
            format!(" <span class=\"dim whole\">{} {what}</span>", bytes(count))
        }
        _ => String::new(),
    };
    match lsn {
        0 => UNKNOWN.to_owned(),
        lsn => format!("<code>{}</code>{rest}", PgLsn::from(lsn)),
    }
}

fn faults(status: &Status) -> String {
    if status.last_faults.is_empty() {
        return "<p class=\"dim\">None since the start.</p>".to_owned();
    }
    let rows: String = status.last_faults.iter().map(fault).collect();
    format!("<table class=\"events\">{rows}</table>")
}

/// With what to do where it repeats.
fn fault(fault: &PastFault) -> String {
    let times = match fault.times {
        1 => String::new(),
        times => format!(" <span class=\"dim\">×{times}</span>"),
    };
    let to_do = runbook::of_fault(&fault.side, &fault.reason);
    let to_do = to_do.map_or_else(String::new, |to_do| {
        format!(
            "<br><span class=\"dim\">Where it repeats: {}</span>",
            with_code(to_do)
        )
    });
    let (at, text) = (time(fault.at), with_code(&fault.text));
    format!("<tr><th scope=\"row\">{at}</th><td>{text}{times}{to_do}</td></tr>")
}

fn table(rows: &[(&str, String)]) -> String {
    let rows: String = rows
        .iter()
        .map(|(name, value)| {
            format!(
                "<tr><th scope=\"row\">{}</th><td>{value}</td></tr>",
                escaped(name)
            )
        })
        .collect();
    format!("<table>{rows}</table>")
}

fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// `1,234,567`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn known_bytes(count: Option<u64>) -> String {
    count.map_or_else(|| UNKNOWN.to_owned(), bytes)
}

/// One that stands by reads nothing that it could be behind with.
fn ours(status: &Status, behind: Option<u64>) -> Option<u64> {
    behind.filter(|_| status.state != State::Standby)
}

/// In bytes; in seconds before, where there are any.
fn lag(status: &Status) -> String {
    let behind = known_bytes(ours(status, status.lag_bytes()));
    match ours(status, status.lag_seconds) {
        None | Some(0) => behind,
        Some(seconds) => format!("{} s <small>{behind}</small>", grouped(seconds)),
    }
}

/// `1.5 MiB`
#[allow(clippy::cast_precision_loss)]
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            let digits = usize::from(unit != "B" && value < 100.0);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::fault::Fault;
    use crate::relay::board::Board;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
    }

    fn lane(board: &Board) -> Lane {
        Lane {
            status: board.status(),
            past: Past::default(),
            letters: Vec::new(),
        }
    }

    #[test]
    fn several_lanes_have_a_table_that_leads_to_each() {
        let boards = ["a_0", "a_1"].map(|slot| Board::new("a", slot, "A"));
        let pages = [&boards[..1], &boards[..]]
            .map(|boards| render(&boards.iter().map(lane).collect::<Vec<_>>(), Rows::OnDemand));
        assert!(!pages[0].contains("id=\"overview\""));
        for index in 0..2 {
            let link = format!("<a href=\"#lane-{index}\">a_{index}</a>");
            let part = format!("id=\"lane-{index}\"");
            assert!(pages[1].contains(&link) && pages[1].contains(&part));
        }
    }

    #[test]
    fn what_another_relay_reads_is_no_lag_of_one_that_stands_by() {
        let mut status = Board::new("a", "a", "A").status();
        status.server_lsn = 4096;
        status.marks.acknowledged_lsn = 1024;
        status.lag_seconds = Some(90);
        assert_eq!(lag(&status), "90 s <small>3.0 KiB</small>");
        status.state = State::Standby;
        assert_eq!(lag(&status), UNKNOWN);
        assert!(!positions(&status).contains("behind"));
    }

    #[test]
    fn what_a_server_says_is_text_not_markup() {
        let board = Board::new("a", "a", "A");
        board.fault(&Fault::Broker("<script>".into()));
        let page = render(&[lane(&board)], Rows::OnDemand);
        assert!(!page.contains("<script>"));
        assert!(page.contains("&lt;script&gt;"));
        // What the runbook says of it.
        assert!(page.contains("Where it repeats: network, <code>max_pings_out</code>"));
        // The policy of the answer refuses both.
        assert!(!page.contains("style=") && !page.contains("<style"));
    }
}
