//! Checks of the project itself: what a machine can check of its style, its layers and its manual.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use dfs::status::Status;

/// Longest source file.
const LINES_MAX: usize = 800;

/// Files that may name sockets, threads, channels and clocks. Everything else under a `src` is a core.
const DRIVERS: &[&str] = &[
    "src/args.rs",
    "src/cli/",
    "src/client/api.rs",
    "src/client/driver.rs",
    "src/net/",
    "node/src/args.rs",
    "node/src/event_loop.rs",
    "node/src/main.rs",
    "mount/src/args.rs",
    "mount/src/caller.rs",
    "mount/src/daemonize.rs",
    "mount/src/embedded.rs",
    "mount/src/errno.rs",
    "mount/src/fuse.rs",
    "mount/src/guard.rs",
    "mount/src/leftover.rs",
    "mount/src/lock_request.rs",
    "mount/src/main.rs",
    "mount/src/mounting.rs",
    "mount/src/notifier.rs",
    "mount/src/run.rs",
    "mount/src/server.rs",
    "mount/src/signals.rs",
    "mount/src/waiters.rs",
];

/// What no core may name.
const DRIVER_WORDS: &[&str] = &[
    "mio::",
    "fuser::",
    "crossbeam_channel",
    "std::net::Tcp",
    "std::net::Udp",
    "std::net::{",
    "std::os::unix::net",
    "std::thread",
    "std::sync::mpsc",
    "Instant::now",
    "SystemTime::now",
    "std::fs::",
    "std::process::",
    "clock::now",
    "clock::wall",
];

/// (files, what they must not import): the layers, lowest first.
const LAYERS: &[(&str, &[&str])] = &[
    ("src/types.rs", &["crate::wire", "crate::client", "crate::net", "crate::cluster_map"]),
    ("src/status.rs", &["crate::wire", "crate::client", "crate::net"]),
    ("src/wire/", &["crate::client", "crate::net", "crate::links"]),
    ("src/placement.rs", &["crate::wire", "crate::client", "crate::net", "crate::links"]),
    ("src/links.rs", &["crate::client", "crate::net"]),
    ("src/client/core", &["crate::net", "crate::client::driver", "crate::client::api"]),
    ("node/src/namespace/", &["crate::raft", "crate::chunk", "crate::node", "crate::event_loop"]),
    ("node/src/chunk/", &["crate::raft", "crate::namespace", "crate::node", "crate::event_loop"]),
    ("node/src/raft/", &["crate::chunk", "crate::node", "crate::event_loop"]),
    ("mount/src/fs", &["crate::fuse", "crate::daemonize"]),
];

/// (words, the only files that may use them).
const OWNERS: &[(&str, &[&str])] = &[
    ("bincode::", &["src/wire/codec"]),
    ("fuser::", &["mount/"]),
    ("raft::prelude", &["node/src/raft/"]),
    ("eraftpb", &["node/src/raft/"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Path relative to the project.
fn short(path: &Path) -> String {
    path.strip_prefix(root()).expect("below the project").to_string_lossy().into_owned()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("readable project") {
        let path = entry.expect("readable entry").path();
        let name = path.file_name().expect("named").to_string_lossy().into_owned();
        if name == "target" || name == ".git" {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}

/// All files of the project, sorted.
fn files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    collect(root(), &mut files);
    files.sort();
    files
}

/// (short path, text) of all Rust files.
fn sources() -> Vec<(String, String)> {
    files()
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| (short(path), fs::read_to_string(path).expect("UTF-8 source")))
        .collect()
}

/// Code lines before the unit tests, numbered from 1, without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end].lines().enumerate().filter_map(|(index, line)| {
        let code = line.find("//").map_or(line, |at| &line[..at]);
        (!code.trim().is_empty()).then_some((index + 1, code))
    })
}

fn is_source(path: &str) -> bool {
    ["src/", "node/src/", "mount/src/"].iter().any(|prefix| path.starts_with(prefix))
}

/// Unit tests in a file of their own; they may use what they need.
fn is_unit_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("_test.rs") || path.ends_with("_tests.rs") || path.contains("/tests/")
}

fn is_driver(path: &str) -> bool {
    is_unit_test(path) || DRIVERS.iter().any(|driver| path == *driver || (driver.ends_with('/') && path.starts_with(driver)))
}

fn assert_none(findings: Vec<String>, rule: &str) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

#[test]
fn files_are_short() {
    let long = sources().into_iter().filter(|(_, text)| text.lines().count() > LINES_MAX);
    assert_none(long.map(|(path, text)| format!("{path}: {} lines", text.lines().count())).collect(), "split files over 800 lines");
}

#[test]
fn files_say_what_they_are_for() {
    let silent = sources().into_iter().filter(|(_, text)| !text.starts_with("//! "));
    assert_none(silent.map(|(path, _)| path).collect(), "these files do not begin with `//!`");
}

#[test]
fn cores_name_no_driver() {
    let mut findings = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| is_source(path) && !is_driver(path)) {
        for (number, line) in code(text) {
            findings.extend(
                DRIVER_WORDS.iter().filter(|word| line.contains(*word)).map(|word| format!("{path}:{number}: {word} ({})", line.trim())),
            );
        }
    }
    assert_none(findings, "only drivers name sockets, threads, channels, files and clocks");
}

#[test]
fn imports_point_one_way() {
    let mut findings = Vec::new();
    for (path, text) in &sources() {
        for (_, forbidden) in LAYERS.iter().filter(|(prefix, _)| path.starts_with(prefix)) {
            for (number, line) in code(text) {
                findings.extend(forbidden.iter().filter(|word| line.contains(*word)).map(|word| format!("{path}:{number}: {word}")));
            }
        }
    }
    assert_none(findings, "a lower layer imports a higher one");
}

#[test]
fn libraries_have_one_owner() {
    let mut findings = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| is_source(path)) {
        for (word, _) in OWNERS.iter().filter(|(_, owners)| !owners.iter().any(|owner| path.starts_with(owner))) {
            findings.extend(code(text).filter(|(_, line)| line.contains(word)).map(|(number, _)| format!("{path}:{number}: {word}")));
        }
    }
    assert_none(findings, "a library is used outside the room that owns it");
}

#[test]
fn nothing_is_left_undone() {
    let words = [concat!("to", "do!"), concat!("un", "implemented!"), concat!("FIX", "ME"), concat!("TO", "DO"), concat!("db", "g!(")];
    let mut findings = Vec::new();
    for (path, text) in &sources() {
        for (index, line) in text.lines().enumerate() {
            findings.extend(words.iter().filter(|word| line.contains(*word)).map(|word| format!("{path}:{}: {word}", index + 1)));
        }
    }
    assert_none(findings, "finish it, or answer \"not yet\"");
}

#[test]
fn no_path_of_one_machine_is_named() {
    let words = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/"), concat!("../sh", "ared")];
    let mut findings = Vec::new();
    for path in files().iter().filter(|path| !path.ends_with("Cargo.lock")) {
        let Ok(text) = fs::read_to_string(path) else { continue };
        for (index, line) in text.lines().enumerate() {
            findings.extend(words.iter().filter(|word| line.contains(*word)).map(|word| format!("{}:{}: {word}", short(path), index + 1)));
        }
    }
    assert_none(findings, "a path that exists on one machine only");
}

#[test]
fn the_top_level_is_as_agreed() {
    const ALLOWED: &[&str] = &[
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "LICENSE",
        "clippy.toml",
        "rustfmt.toml",
        "src",
        "mount",
        "node",
        "tests",
        "examples",
        "benches",
        "target",
    ];
    let names = fs::read_dir(root()).expect("readable project").map(|entry| entry.expect("readable").file_name());
    let extra =
        names.map(|name| name.to_string_lossy().into_owned()).filter(|name| !name.starts_with('.') && !ALLOWED.contains(&name.as_str()));
    assert_none(extra.collect(), "unexpected at the top level");
}

/// Cells of the README's table rows that begin with `| <key> |`.
fn readme_row(readme: &str, key: &str) -> Option<Vec<String>> {
    let prefix = format!("| {key} |");
    let line = readme.lines().find(|line| line.starts_with(&prefix))?;
    Some(line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect())
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).expect("README.md")
}

#[test]
fn the_readme_names_a_test_for_each_promise() {
    let readme = readme();
    let tests: BTreeSet<String> = sources()
        .iter()
        .flat_map(|(_, text)| text.lines().filter_map(|line| line.trim().strip_prefix("fn ")).map(str::to_string).collect::<Vec<_>>())
        .filter_map(|line| line.split(['(', '<']).next().map(str::to_string))
        .collect();
    let mut findings = Vec::new();
    for promise in 1..=9 {
        let Some(cells) = readme_row(&readme, &format!("P{promise}")) else {
            findings.push(format!("P{promise} has no row"));
            continue;
        };
        let shown = cells.last().expect("a row has cells");
        let named: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        if named.is_empty() && !shown.contains("not yet") {
            findings.push(format!("P{promise}: neither a test nor \"not yet\""));
        }
        let missing = named.iter().filter(|name| !tests.contains(name.rsplit("::").next().unwrap_or(name)));
        findings.extend(missing.map(|name| format!("P{promise}: there is no test {name}")));
    }
    assert_none(findings, "the README's promise table");
}

#[test]
fn the_readme_lists_every_status() {
    let readme = readme();
    let mut findings = Vec::new();
    for status in Status::ALL {
        let wanted = format!("| {} | {status:?} | {} | {} |", status.number(), status.errno_name(), status.text());
        if !readme.lines().any(|line| line == wanted) {
            findings.push(wanted);
        }
    }
    assert_none(findings, "rows missing in the README's table of statuses");
}

#[test]
fn the_rules_find_what_they_forbid() {
    let text = "//! x\nuse mio::Poll; // std::thread\n// mio::\n#[cfg(test)]\nmod tests { use std::thread; }\n";
    let found: Vec<usize> =
        code(text).filter(|(_, line)| DRIVER_WORDS.iter().any(|word| line.contains(word))).map(|(number, _)| number).collect();
    assert_eq!(found, [2], "comments and unit tests are exempt, code is not");
    assert!(is_driver("src/cli/main.rs") && is_driver("node/src/main.rs"));
    assert!(!is_driver("node/src/node.rs") && !is_driver("src/client/core.rs") && !is_driver("src/args.rs.rs"));
}
