//! All lanes of a process at a glance, where there are several.
//!
//! In: the lanes. Out: a table whose rows lead to the parts of the page.

use super::markup::escaped;
use super::{Lane, UNKNOWN, grouped, lag};

/// Nothing for a single lane, which is the page.
pub(super) fn overview(lanes: &[Lane]) -> String {
    if lanes.len() < 2 {
        return String::new();
    }
    let rows = lanes.iter().enumerate().map(|(index, lane)| {
        let status = &lane.status;
        let state = status.state.name();
        let open = status.dead_letters_open;
        let attention = match open {
            Some(1..) => " class=\"waiting\"",
            _ => "",
        };
        format!(
            "<tr><th scope=\"row\"><a href=\"#lane-{index}\">{}</a></th><td><b class=\"{state}\">{state}</b></td>\
             <td>{}</td><td>{}</td><td{attention}>{}</td></tr>",
            escaped(&status.slot),
            grouped(status.events_per_second),
            lag(status),
            open.map_or(UNKNOWN.to_owned(), grouped),
        )
    });
    let columns = ["lane", "state", "events/s", "lag", "dead letters"];
    let columns = columns.map(|column| format!("<th scope=\"col\">{column}</th>"));
    format!(
        "<div id=\"overview\" class=\"scrolled\" data-live tabindex=\"0\" role=\"region\" aria-label=\"all lanes\">\
         <table class=\"overview\"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>",
        columns.concat(),
        rows.collect::<String>(),
    )
}
