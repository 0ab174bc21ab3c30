//! Text as HTML.

/// Text, never markup.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Text in which commands stand between backquotes. A link is its own text: the page leads to no other host.
pub(super) fn with_code(text: &str) -> String {
    let mut html = String::new();
    for (index, part) in escaped(text).split('`').enumerate() {
        match index % 2 {
            0 => html.push_str(&without_links(part)),
            _ => html.push_str(&format!("<code>{part}</code>")),
        }
    }
    html
}

fn without_links(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some((before, name, behind)) = link(rest) {
        kept.push_str(before);
        kept.push_str(name);
        rest = behind;
    }
    kept + rest
}

/// What is before a link, its text, and what is behind it.
fn link(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('[')?;
    let (name, rest) = rest.split_once("](")?;
    let (_, behind) = rest.split_once(')')?;
    Some((before, name, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_code_and_links_are_text() {
        let text =
            "see [the log](runbook.md#x), `walrelay <setup>`; [performance.md](performance.md)";
        assert_eq!(
            with_code(text),
            "see the log, <code>walrelay &lt;setup&gt;</code>; performance.md"
        );
        assert_eq!(with_code("a [b"), "a [b");
    }
}
