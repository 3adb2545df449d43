//! What `dfs fsck` says. Pure: a report in, text out.

use dfs::fsck::Report;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::show::put_name;

/// For people and scripts: lines that begin with a slash are the files that are lost, and nothing else is.
pub fn text(report: &Report) -> Vec<u8> {
    let Report { inodes, names, chunks, copies, uploads, nodes, .. } = report;
    let mut out =
        format!("checked   {inodes} inodes, {names} names, {chunks} chunks; {copies} copies and {uploads} uploads on {nodes} nodes\n");
    if !report.summed {
        out += "note      the tree kept changing, so the sums over all of it were not compared\n";
    }
    if report.moving > 0 {
        out += &format!("note      {} inodes and chunks kept changing, so they were not counted\n", report.moving);
    }
    if report.orphans > 0 || report.pending > 0 {
        out += &format!(
            "note      {} files without a name are open or about to be freed, {} uploads may yet be used\n",
            report.orphans, report.pending
        );
    }
    out += &repairs(report);
    for flaw in &report.flaws {
        out += &format!("flaw      {}: {}\n", flaw.about, flaw.what);
    }
    if report.flaws_more > 0 {
        out += &format!("flaw      and {} more\n", report.flaws_more);
    }
    for (node, status) in &report.silent {
        out += &format!("silent    node {node} was not checked: {status}\n");
    }
    if report.dark_chunks > 0 {
        out += &format!("lost      {} chunks have no living holder\n", report.dark_chunks);
    }
    if report.lost_orphans > 0 {
        out += &format!("lost      {} files without a name\n", report.lost_orphans);
    }
    if !report.lost_files.is_empty() {
        out += &format!("lost      {} names of files:\n", report.lost_files.len());
    }
    let mut out = out.into_bytes();
    for path in &report.lost_files {
        out.extend_from_slice(path);
        out.push(b'\n');
    }
    if report.is_clean() {
        out.extend_from_slice(b"clean\n");
    }
    out
}

fn repairs(report: &Report) -> String {
    let mut out = String::new();
    let mut say = |found: u64, left: u64, what: &str, done: &str, not: &str| {
        if found > left {
            out += &format!("repaired  {} {what}: {done}\n", found - left);
        }
        if left > 0 {
            out += &format!("not yet   {left} {what}: {not}\n");
        }
    };
    say(report.missing, report.missing_left, "copies were not where they should be", "reported lost", "the leader has not heard of it");
    say(report.short, report.short_left, "chunks with too few copies", "copied again", "not copied again so far");
    say(report.unnamed, report.unnamed_left, "uploads that nobody will name", "deleted", "not deleted so far");
    out
}

/// `fsck --json`.
pub fn json(report: &Report) -> Value {
    let lost = report.lost_files.iter().map(|path| {
        let mut value = json!({});
        put_name(&mut value, "path", path);
        value
    });
    json!({
        "clean": report.is_clean(),
        "inodes": report.inodes,
        "names": report.names,
        "chunks": report.chunks,
        "copies": report.copies,
        "uploads": report.uploads,
        "nodes": report.nodes,
        "orphans": report.orphans,
        "pending_uploads": report.pending,
        "moving": report.moving,
        "sums_compared": report.summed,
        "flaws": report.flaws.iter().map(|flaw| json!({ "about": flaw.about, "what": flaw.what })).collect::<Value>(),
        "flaws_more": report.flaws_more,
        "missing_copies": report.missing,
        "missing_copies_left": report.missing_left,
        "short_chunks": report.short,
        "short_chunks_left": report.short_left,
        "unnamed_uploads": report.unnamed,
        "unnamed_uploads_left": report.unnamed_left,
        "dark_chunks": report.dark_chunks,
        "lost_files": lost.collect::<Value>(),
        "lost_orphans": report.lost_orphans,
        "silent": report.silent.iter().map(|(node, status)| json!({ "node": node.to_string(), "why": status.to_string() })).collect::<Value>(),
    })
}

/// Whether the command has succeeded: the worst thing that is left, in one line.
pub fn verdict(report: &Report) -> Result<(), Failure> {
    if report.is_clean() {
        return Ok(());
    }
    Err(Failure::new(if report.lost_files.len() as u64 + report.lost_orphans + report.dark_chunks > 0 {
        let names = report.lost_files.len();
        format!(
            "fsck: content of files is lost ({names} names, {} files without one): no living node holds it; bring back nodes that were cut off, or \
             remove the files",
            report.lost_orphans
        )
    } else if !report.flaws.is_empty() {
        let count = report.flaws.len() as u64 + report.flaws_more;
        format!("fsck: {count} flaws of the tree; copy what matters elsewhere, and please report them")
    } else if let Some((node, status)) = report.silent.first() {
        format!("fsck: {} nodes were not checked (node {node}: {status}); see `dfs status`, and run it again", report.silent.len())
    } else if report.short_left + report.missing_left > 0 {
        format!("fsck: {} chunks have too few copies; see `dfs status`, and run it again", report.short_left.max(report.missing_left))
    } else {
        format!("fsck: {} uploads that nobody will name are not deleted so far; run it again", report.unnamed_left)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lost_files_begin_with_a_slash() {
        let mut report = Report { lost_files: vec![b"/a".to_vec(), b"/b\xff".to_vec()], dark_chunks: 1, ..Report::default() };
        report.flaws.push(dfs::fsck::Flaw { about: "inode 3".into(), what: "+1 names against its own count".into() });
        let text = text(&report);
        let slashes: Vec<&[u8]> = text.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"/")).collect();
        assert_eq!(slashes, [&b"/a"[..], b"/b\xff"]);
        assert!(verdict(&report).is_err_and(|failure| !failure.to_string().contains('\n')));
        assert_eq!(json(&report)["lost_files"][1]["path_hex"], "2f62ff");
    }

    #[test]
    fn a_clean_report_says_so() {
        let report = Report { missing: 2, ..Report::default() };
        let text = String::from_utf8(text(&report)).unwrap();
        assert!(text.ends_with("clean\n") && text.contains("repaired  2 copies"), "{text}");
        assert!(verdict(&report).is_ok());
    }
}
