//! The status page: one HTML file without scripts, that asks again by itself.

use crate::relay::status::{State, Status};
use chrono::{DateTime, Utc};
use postgres_types::PgLsn;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2430;--dim:#667085;--line:#e4e7ec;--card:#fff;--page:#f6f7f9;--good:#12805c;\
--wait:#b25e09;--bad:#c4320a}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--dim:#98a2b3;--line:#2b3340;--card:#171c24;--page:#0e1116;\
--good:#3ccb97;--wait:#f5a524;--bad:#ff7a59}}\
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);\
font:15px/1.45 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}\
main{max-width:860px;margin:0 auto;padding:32px 20px}\
header{display:flex;align-items:baseline;gap:12px;flex-wrap:wrap;margin-bottom:20px}\
h1{font-size:22px;margin:0;letter-spacing:-.01em}h2{font-size:13px;margin:28px 0 8px;color:var(--dim);font-weight:600}\
.state{padding:2px 10px;border-radius:99px;font-size:13px;font-weight:600;border:1px solid currentColor}\
.streaming{color:var(--good)}.waiting,.starting,.standby{color:var(--wait)}.halted{color:var(--bad)}\
.dim{color:var(--dim)}.right{margin-left:auto}\
.reason{border-left:3px solid var(--wait);padding:8px 14px;background:var(--card);margin-bottom:20px;overflow-wrap:anywhere}\
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(120px,1fr));gap:12px}\
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}\
.card b{display:block;font-size:24px;font-weight:600;letter-spacing:-.02em;font-variant-numeric:tabular-nums}\
.card span{color:var(--dim);font-size:13px}\
table{width:100%;border-collapse:collapse;background:var(--card);border:1px solid var(--line);border-radius:10px;\
border-spacing:0;overflow:hidden}\
td,th{padding:8px 16px;text-align:left;border-top:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere;\
font-variant-numeric:tabular-nums}tr:first-child td,tr:first-child th{border-top:0}\
th{color:var(--dim);font-weight:500;width:230px}code{font:13px ui-monospace,Menlo,Consolas,monospace}\
footer{margin-top:24px;color:var(--dim);font-size:13px}a{color:inherit}";

/// The page, with a part for each lane.
pub(super) fn render(lanes: &[Status]) -> String {
    let Some(first) = lanes.first() else {
        return String::new();
    };
    let parts = lanes.iter().map(|status| match lanes.len() {
        1 => part(&status.name, status),
        _ => part(&status.slot, status),
    });
    let parts: String = parts.collect();
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"2\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{name}: {state}</title><style>{STYLE}</style></head>\
         <body><main>{parts}<footer><a href=\"/metrics\">metrics</a> · <a href=\"/readyz\">readiness</a> · \
         <a href=\"/status.json\">JSON</a> · running since {started}</footer></main></body></html>",
        name = escaped(&first.name),
        state = gravest(lanes).name(),
        started = time(first.started),
    )
}

/// The state that a person has to see: of a lane that is not ready, if there is one.
fn gravest(lanes: &[Status]) -> State {
    let unready = lanes.iter().find(|status| !status.is_ready());
    let streams = |status: &&Status| status.state == State::Streaming;
    let shown = unready.or(lanes.iter().find(streams)).or(lanes.first());
    shown.map_or(State::Starting, |status| status.state)
}

fn part(name: &str, status: &Status) -> String {
    let totals = &status.totals;
    let open = status.dead_letters_open.map_or("-".to_owned(), grouped);
    let cards = [
        ("events a second", grouped(status.events_per_second)),
        ("acknowledged", grouped(totals.acknowledged)),
        ("in flight", grouped(status.marks.in_flight)),
        ("lag", lag(status)),
        ("held back", bytes(status.held_back_bytes())),
        ("open dead letters", open),
    ];
    let cards: String = cards
        .iter()
        .map(|(what, value)| format!("<div class=\"card\"><b>{value}</b><span>{what}</span></div>"))
        .collect();
    let state = status.state.name();
    let reason = status.reason.as_ref().map_or_else(String::new, |reason| {
        format!("<div class=\"reason\">{}</div>", escaped(reason))
    });
    format!(
        "<header><h1>{name}</h1><span class=\"state {state}\">{state}</span>\
         <span class=\"dim\">since {since}</span><span class=\"dim right\">walrelay {version}</span></header>\
         {reason}<div class=\"cards\">{cards}</div><h2>Lane</h2>{lane}<h2>Positions</h2>{positions}\
         <h2>Last faults</h2>{faults}",
        name = escaped(name),
        since = time(status.since),
        version = status.version,
        lane = lane(status),
        positions = positions(status),
        faults = faults(status),
    )
}

fn lane(status: &Status) -> String {
    let or_dash = |text: &Option<String>| text.as_deref().map_or("–".to_owned(), escaped);
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
    let lsn = |lsn: u64| format!("<code>{}</code>", PgLsn::from(lsn));
    let marks = status.marks;
    let last = status.position.as_deref().map_or_else(
        || "–".to_owned(),
        |position| format!("<code>{}</code>", escaped(position)),
    );
    table(&[
        ("last event", last),
        ("server", lsn(status.server_lsn)),
        ("received", lsn(marks.received_lsn)),
        ("acknowledged", lsn(marks.acknowledged_lsn)),
        ("confirmed to Postgres", lsn(marks.confirmed_lsn)),
    ])
}

fn faults(status: &Status) -> String {
    if status.last_faults.is_empty() {
        return "<p class=\"dim\">None since the start.</p>".to_owned();
    }
    let rows: String = status
        .last_faults
        .iter()
        .map(|fault| {
            let times = match fault.times {
                1 => String::new(),
                times => format!(" <span class=\"dim\">×{times}</span>"),
            };
            let (at, text) = (time(fault.at), escaped(&fault.text));
            format!("<tr><th>{at}</th><td>{text}{times}</td></tr>")
        })
        .collect();
    format!("<table>{rows}</table>")
}

fn table(rows: &[(&str, String)]) -> String {
    let rows: String = rows
        .iter()
        .map(|(name, value)| format!("<tr><th>{name}</th><td>{value}</td></tr>"))
        .collect();
    format!("<table>{rows}</table>")
}

fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
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

/// In bytes, and in seconds where there are any.
fn lag(status: &Status) -> String {
    match status.lag_seconds {
        0 => bytes(status.lag_bytes()),
        seconds => format!("{}, {seconds} s", bytes(status.lag_bytes())),
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

    #[test]
    fn what_a_server_says_is_text_not_markup() {
        let board = Board::new("a", "a", "A");
        board.fault(&Fault::Broker("<script>".into()));
        let page = render(&[board.status()]);
        assert!(!page.contains("<script"));
        assert!(page.contains("&lt;script&gt;"));
    }
}
