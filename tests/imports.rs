//! Modules import one way: a folder knows only those below it, and no two files know each other.
//!
//! Reads the sources: each `crate::…` and `super::…` path outside of tests is an import of the file that it leads to. A
//! module and the modules inside it may know each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Who may import whom; what is not here is refused.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("environment", &[]),
    ("event", &[]),
    ("consumer", &["event"]),
    ("counted", &[]),
    ("nearest", &[]),
    ("secret", &[]),
    ("table_name", &[]),
    ("tls", &["secret"]),
    ("pipeline", &["event", "table_name"]),
    ("nats", &["secret", "tls"]),
    (
        "postgres",
        &[
            "counted",
            "environment",
            "nearest",
            "pipeline",
            "secret",
            "table_name",
            "tls",
        ],
    ),
    ("outbox", &["event", "table_name"]),
    ("relay", &["nats", "pipeline", "postgres"]),
    (
        "bulk",
        &["nats", "pipeline", "postgres", "relay", "table_name"],
    ),
    ("ops", &["environment", "pipeline", "relay", "tls"]),
    (
        "config",
        &[
            "environment",
            "nats",
            "nearest",
            "pipeline",
            "postgres",
            "relay",
            "secret",
            "table_name",
            "tls",
        ],
    ),
    ("local", &[]),
    (
        "cli",
        &[
            "bulk",
            "config",
            "counted",
            "environment",
            "event",
            "local",
            "nats",
            "nearest",
            "ops",
            "outbox",
            "pipeline",
            "postgres",
            "relay",
            "table_name",
        ],
    ),
    ("main", &["cli"]),
];

type Graph = BTreeMap<String, BTreeSet<String>>;

/// A source file's module, such as `nats::stream::fit`, and its text without comments and tests.
fn sources() -> BTreeMap<String, String> {
    fn walk(folder: &Path, module: &str, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            let stem = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .expect("UTF-8");
            let inner = match module {
                "" => stem.to_owned(),
                module => format!("{module}::{stem}"),
            };
            if path.is_dir() {
                walk(&path, &inner, found);
                continue;
            }
            let module = match stem {
                "lib" | "tests" => continue,
                "mod" => module.to_owned(),
                _ => inner,
            };
            let text = fs::read_to_string(&path).expect("UTF-8");
            let code = text
                .split("#[cfg(test)]\nmod tests")
                .next()
                .unwrap_or_default();
            let lines = code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            found.insert(module, lines.collect::<Vec<_>>().join("\n"));
        }
    }
    let mut found = BTreeMap::new();
    walk(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        "",
        &mut found,
    );
    found
}

/// Reads the tree `a::{b, c::d}` at the start of `text` and adds its paths; returns what follows it.
fn read_tree<'a>(text: &'a str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    let mut path = prefix.to_vec();
    let mut rest = text.trim_start();
    loop {
        if let Some(mut group) = rest.strip_prefix('{') {
            while !group.trim_start().is_empty() {
                group = read_tree(group, &path, paths).trim_start();
                match group.strip_prefix(',') {
                    Some(after) if !after.trim_start().starts_with('}') => group = after,
                    Some(after) => return after.trim_start().strip_prefix('}').unwrap_or(after),
                    None => return group.strip_prefix('}').unwrap_or(group),
                }
            }
            return group;
        }
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if end > 0 {
            path.push(rest[..end].to_owned());
        }
        rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(after) => rest = after,
            None => break,
        }
    }
    paths.push(path);
    // `as name`
    match rest.strip_prefix(" as ") {
        Some(after) => after.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
        None => rest.strip_prefix('*').unwrap_or(rest),
    }
}

/// The modules that a module's paths lead to.
fn imports(module: &str, code: &str, modules: &BTreeMap<String, String>) -> BTreeSet<String> {
    let mut paths = Vec::new();
    for root in ["crate::", "super::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            // The second half of `super::super::`, or of a longer name.
            if !(before.is_alphanumeric() || before == '_' || before == ':') {
                read_tree(&code[at..], &[], &mut paths);
            }
        }
    }
    let mut found = BTreeSet::new();
    for path in paths {
        let supers = path.iter().take_while(|part| *part == "super").count();
        let mut full: Vec<&str> = match supers {
            0 => Vec::new(),
            _ => module.split("::").collect(),
        };
        full.truncate(full.len().saturating_sub(supers));
        let rest = path.iter().skip(supers.max(1)).map(String::as_str);
        full.extend(rest);
        // The longest part of the path that is a file.
        while !full.is_empty() && !modules.contains_key(&full.join("::")) {
            full.pop();
        }
        let target = full.join("::");
        if !target.is_empty() && target != module {
            found.insert(target);
        }
    }
    found
}

fn file_graph() -> Graph {
    let modules = sources();
    modules
        .iter()
        .map(|(module, code)| (module.clone(), imports(module, code, &modules)))
        .collect()
}

/// The folder, or the file beside the folders, that a module is in.
fn folder(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

/// Whether one is inside the other.
fn is_family(a: &str, b: &str) -> bool {
    a.starts_with(&format!("{b}::")) || b.starts_with(&format!("{a}::"))
}

/// Whether `to` is reached from `from`.
fn reaches(graph: &Graph, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(node) = open.pop() {
        for next in graph.get(node).into_iter().flatten() {
            if next == to {
                return true;
            }
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    false
}

#[test]
fn folders_import_only_those_below_them() {
    let mut refused = Vec::new();
    for (module, targets) in file_graph() {
        let from = folder(&module);
        let (_, may) = MAY_IMPORT
            .iter()
            .find(|(name, _)| *name == from)
            .unwrap_or_else(|| panic!("{from} has no entry in MAY_IMPORT"));
        for target in targets {
            if folder(&target) != from && !may.contains(&folder(&target)) {
                refused.push(format!("{module} imports {target}"));
            }
        }
    }
    assert!(refused.is_empty(), "not allowed: {refused:#?}");
}

#[test]
fn what_folders_may_import_has_no_circle() {
    let allowed: Graph = MAY_IMPORT
        .iter()
        .map(|(name, may)| {
            (
                name.to_string(),
                may.iter().map(ToString::to_string).collect(),
            )
        })
        .collect();
    for name in allowed.keys() {
        assert!(!reaches(&allowed, name, name), "{name} reaches itself");
    }
}

#[test]
fn files_do_not_import_each_other_in_a_circle() {
    let mut graph = file_graph();
    for (module, targets) in &mut graph {
        targets.retain(|target| !is_family(module, target));
    }
    let mut circles = Vec::new();
    for (module, targets) in &graph {
        for target in targets
            .iter()
            .filter(|target| reaches(&graph, target, module))
        {
            circles.push(format!("{module} imports {target}, which leads back"));
        }
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn paths_are_read_as_the_compiler_reads_them() {
    let modules: BTreeMap<String, String> = ["a", "a::b", "a::c", "d", "d::e"]
        .map(|name| (name.to_owned(), String::new()))
        .into();
    let read = |module: &str, code: &str| {
        let found = imports(module, code, &modules);
        found.into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(read("a::b", "use super::c::X; use super::Y;"), "a a::c");
    assert_eq!(read("a::b", "super::super::d::e::f()"), "d::e");
    assert_eq!(
        read("d", "use crate::a::{self, b::{X, Y as Z}, c,\n};"),
        "a a::b a::c"
    );
    assert_eq!(
        read("a::b", "let x: crate::d::e::T = other::a::c();"),
        "d::e"
    );
    assert_eq!(read("a::b", "use crate::a::b::X; use crate::d::*;"), "d");
}
