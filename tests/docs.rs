//! The documents name tests and files that exist.

use std::fs;
use std::path::{Path, PathBuf};

/// All Markdown of the repository's own.
fn documents() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .map(PathBuf::from)
        .into();
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

/// What stands between two single backquotes, line by line.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// A file of the repository, perhaps with the name of a test in it.
fn names_a_file(quoted: &str) -> bool {
    let is_in_a_folder = ["src/", "tests/", "scripts/", "sql/", "examples/"]
        .iter()
        .any(|folder| quoted.starts_with(folder));
    is_in_a_folder && !quoted.contains(['{', '*', ' '])
}

fn missing(document: &Path, text: &str) -> Vec<String> {
    let mut missing = Vec::new();
    for name in quoted(text).filter(|name| names_a_file(name)) {
        let (path, test) = name.split_once("::").unwrap_or((name, ""));
        let has_test =
            || fs::read_to_string(path).is_ok_and(|code| code.contains(&format!("fn {test}(")));
        if !Path::new(path).exists() || (!test.is_empty() && !has_test()) {
            missing.push(format!("{}: {name}", document.display()));
        }
    }
    let folder = document.parent().expect("a file is in a folder");
    for (at, _) in text.match_indices("](") {
        let link = text[at + 2..].split([')', '#']).next().unwrap_or_default();
        if !link.is_empty() && !link.contains("://") && !folder.join(link).exists() {
            missing.push(format!("{}: link to {link}", document.display()));
        }
    }
    missing
}

#[test]
fn the_documents_name_tests_and_files_that_exist() {
    let found: Vec<String> = documents()
        .iter()
        .flat_map(|path| missing(path, &fs::read_to_string(path).expect("a document")))
        .collect();
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn what_does_not_exist_is_found() {
    let document = Path::new("docs/some.md");
    let text = "`tests/docs.rs::what_does_not_exist_is_found` [a](glossary.md#lane) [b](https://example.org)";
    assert_eq!(missing(document, text), Vec::<String>::new());
    let text = "`tests/docs.rs::no_such_test`, `src/none.rs` [a](none.md)";
    assert_eq!(missing(document, text).len(), 3);
}

/// `make book` makes it of `docs/SUMMARY.md`, whose links `missing` looks at as at all others.
#[test]
fn each_page_is_in_the_book_once() {
    let summary = fs::read_to_string("docs/SUMMARY.md").expect("the contents");
    let of_docs = |path: &PathBuf| path.starts_with("docs") && !path.ends_with("SUMMARY.md");
    let pages: Vec<PathBuf> = documents().into_iter().filter(of_docs).collect();
    assert!(pages.len() > 50, "{}", pages.len());
    for page in pages {
        let page = page.strip_prefix("docs").expect("below docs");
        let entry = format!("]({})", page.display());
        assert_eq!(summary.matches(&entry).count(), 1, "{}", page.display());
    }
}

#[test]
fn no_number_stands_for_two_rules() {
    let document = fs::read_to_string("docs/specification.md").expect("the rules");
    let mut numbers: Vec<&str> = document
        .lines()
        .filter_map(|line| {
            line.strip_prefix("**")?
                .split_once(". ")
                .or(line.strip_prefix("**")?.split_once(".**"))
        })
        .map(|(number, _)| number)
        .filter(|number| number.starts_with("G-") || number.starts_with("L-"))
        .collect();
    assert!(numbers.len() > 100, "{}", numbers.len());
    numbers.sort_unstable();
    let twice: Vec<_> = numbers.windows(2).filter(|two| two[0] == two[1]).collect();
    assert_eq!(twice, Vec::<&[&str]>::new());
}

/// The table of rule G-43 in docs/specification.md.
#[test]
fn each_halt_has_a_way_out_that_a_test_walks() {
    let code = fs::read_to_string("src/pipeline/fault/halt.rs").expect("the halts");
    let (_, halts) = code.split_once("pub enum Halt {\n").expect("the halts");
    let (halts, _) = halts.split_once("\n}\n").expect("their end");
    let variants = halts.lines().filter_map(|line| {
        let line = line.strip_prefix("    ")?;
        let name: String = line
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect();
        (!name.is_empty()).then_some(name)
    });
    let document = fs::read_to_string("docs/specification.md").expect("the rules");
    let walked = |name: &str| {
        let row = format!("| `{name}` | ");
        let rows = document.lines().filter(|line| line.starts_with(&row));
        rows.flat_map(quoted)
            .any(|test| test.starts_with("tests/") && test.contains("::"))
    };
    let (walked, missing): (Vec<_>, Vec<_>) = variants.partition(|name| walked(name));
    assert_eq!(missing, Vec::<String>::new());
    assert!(walked.len() >= 10, "{walked:?}");
}

/// The words that a function of the sources has for each variant.
fn words_of(source: &str, function: &str) -> Vec<String> {
    let code = fs::read_to_string(source).expect("a source");
    let (_, code) = code.split_once(function).expect("the function");
    let (code, _) = code.split_once("\n    }\n").expect("its end");
    let arms = code.lines().filter_map(|line| line.split_once(" => "));
    arms.filter_map(|(_, word)| word.split('"').rev().nth(1).map(str::to_owned))
        .collect()
}

#[test]
fn the_runbook_has_each_halt_and_each_reason_of_a_fault_and_of_a_dead_letter() {
    let runbook = fs::read_to_string("docs/runbook.md").expect("the runbook");
    for (source, function, row, few) in [
        ("src/pipeline/fault/halt.rs", "pub fn name(", "| `", 10),
        ("src/pipeline/fault.rs", "pub fn name(", " | `", 15),
        ("src/pipeline/envelope.rs", "pub fn reason(", "| `", 8),
    ] {
        let words = words_of(source, function);
        assert!(words.len() > few, "{source}: {words:?}");
        let has = |word: &String| runbook.contains(&format!("{row}{word}` | "));
        let missing: Vec<_> = words.iter().filter(|word| !has(word)).collect();
        assert_eq!(missing, Vec::<&String>::new(), "{source}");
    }
}
