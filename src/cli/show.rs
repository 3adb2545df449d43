//! How results look, for people and as JSON. Pure: values in, text out.

use serde_json::{Value, json};

use dfs::cluster_map::{ClusterMap, MemberState};
use dfs::types::{Attributes, FileKind, NodeId, Timestamp};
use dfs::wire::message::{RepairReport, StatusReport};
use dfs::wire::namespace::{Extent, Source, Space};

/// A node that holds bytes, as `locate` and `ls --where` name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub address: String,
    pub node: NodeId,
}

impl Holder {
    /// Names a node by the map; a node that has left the map shows as `?`.
    pub fn of(map: &ClusterMap, node: NodeId) -> Self {
        Holder { address: map.member(node).map_or("?".to_string(), |member| member.address.to_string()), node }
    }

    fn text(&self) -> String {
        format!("{}@{}", self.node, self.address)
    }

    fn json(&self) -> Value {
        json!({ "address": self.address, "node": self.node.to_string() })
    }
}

/// A run of a file and who holds it.
#[derive(Clone, Debug)]
pub struct Run {
    pub extent: Extent,
    pub holders: Vec<Holder>,
}

/// One line of `ls`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: Vec<u8>,
    pub attributes: Attributes,
    /// With `--where`: whoever holds any chunk of it.
    pub holders: Option<Vec<Holder>>,
}

/// Holders separated by commas; `namespace` for bytes that live in the inode, with the voters.
fn holders_text(holders: &[Holder], size: u64) -> String {
    if holders.is_empty() {
        return if size == 0 { "-" } else { "namespace" }.to_string();
    }
    holders.iter().map(Holder::text).collect::<Vec<_>>().join(",")
}

/// `ls`: one name per line, with `--where` followed by a tab and the holders.
pub fn listing_text(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        out.extend_from_slice(&entry.name);
        if let Some(holders) = &entry.holders {
            let size = if entry.attributes.kind == FileKind::File { entry.attributes.size } else { 0 };
            out.push(b'\t');
            out.extend_from_slice(holders_text(holders, size).as_bytes());
        }
        out.push(b'\n');
    }
    out
}

/// `ls --json`.
pub fn listing_json(entries: &[Entry]) -> Value {
    let one = |entry: &Entry| {
        let mut value = attributes_json(&entry.attributes);
        put_name(&mut value, "name", &entry.name);
        if let Some(holders) = &entry.holders {
            value["holders"] = holders.iter().map(Holder::json).collect();
        }
        value
    };
    entries.iter().map(one).collect()
}

/// A name is any bytes; JSON is UTF-8. What does not fit is shown with replacement characters, and exactly as `<key>_hex`.
pub fn put_name(value: &mut Value, key: &str, name: &[u8]) {
    value[key] = String::from_utf8_lossy(name).into();
    if std::str::from_utf8(name).is_err() {
        value[format!("{key}_hex")] = name.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
    }
}

fn attributes_json(attributes: &Attributes) -> Value {
    json!({
        "kind": kind_text(attributes.kind),
        "ino": attributes.ino.0,
        "mode": format!("{:04o}", attributes.mode),
        "uid": attributes.uid,
        "gid": attributes.gid,
        "links": attributes.links,
        "size": attributes.size,
        "mtime": time_text(attributes.mtime),
    })
}

fn kind_text(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "char-device",
        FileKind::BlockDevice => "block-device",
    }
}

/// Seconds since 1970 with nanoseconds, as `stat -c %.Y` prints them.
fn time_text(time: Timestamp) -> String {
    format!("{}.{:09}", time.seconds, time.nanos)
}

/// `stat`: one fact a line.
pub fn stat_text(path: &str, attributes: &Attributes) -> String {
    let a = attributes;
    let mut out = format!("path   {path}\nkind   {}\nsize   {}\nino    {}\n", kind_text(a.kind), a.size, a.ino.0);
    out += &format!("mode   {:04o}\nowner  {}:{}\nlinks  {}\nblocks {}\n", a.mode, a.uid, a.gid, a.links, a.blocks);
    out += &format!("atime  {}\nmtime  {}\nctime  {}\n", time_text(a.atime), time_text(a.mtime), time_text(a.ctime));
    out
}

fn source_text(source: &Source) -> String {
    match source {
        Source::Hole => "hole".to_string(),
        Source::Inline(_) => "inline".to_string(),
        Source::Chunk { hash, .. } => hash.to_string(),
    }
}

/// `locate`: offset, length, chunk (or `hole`, `inline`), holders.
pub fn runs_text(runs: &[Run]) -> String {
    let line = |run: &Run| {
        let size = u64::from(matches!(run.extent.source, Source::Inline(_)));
        format!("{} {} {} {}\n", run.extent.offset, run.extent.length, source_text(&run.extent.source), holders_text(&run.holders, size))
    };
    runs.iter().map(line).collect()
}

/// `locate --json`.
pub fn runs_json(path: &str, size: u64, runs: &[Run]) -> Value {
    let one = |run: &Run| {
        let mut value = json!({ "offset": run.extent.offset, "length": run.extent.length });
        value["kind"] = match run.extent.source {
            Source::Hole => "hole",
            Source::Inline(_) => "inline",
            Source::Chunk { .. } => "chunk",
        }
        .into();
        if let Source::Chunk { hash, offset } = &run.extent.source {
            value["chunk"] = hash.to_string().into();
            value["offset_in_chunk"] = (*offset).into();
        }
        value["holders"] = run.holders.iter().map(Holder::json).collect();
        value
    };
    json!({ "path": path, "size": size, "extents": runs.iter().map(one).collect::<Value>() })
}

/// `df`: sizes after replication.
pub fn space_text(space: &Space) -> String {
    let percent = if space.capacity == 0 { 0 } else { (space.used as u128 * 100).div_ceil(space.capacity as u128) };
    let head = ["SIZE", "USED", "AVAILABLE", "USE%", "INODES", "IFREE"].map(str::to_string).to_vec();
    let row = vec![
        size_text(space.capacity),
        size_text(space.used),
        size_text(space.available),
        format!("{percent}%"),
        space.inodes.to_string(),
        space.inodes_available.to_string(),
    ];
    table(&[head, row])
}

/// `df --json`, in bytes.
pub fn space_json(space: &Space) -> Value {
    json!({
        "capacity": space.capacity,
        "used": space.used,
        "available": space.available,
        "inodes": space.inodes,
        "inodes_available": space.inodes_available,
    })
}

fn state_text(state: MemberState) -> &'static str {
    match state {
        MemberState::Live => "live",
        MemberState::Leaving => "leaving",
        MemberState::Dead => "dead",
    }
}

/// `status` for people.
pub fn status_text(report: &StatusReport) -> String {
    let leader = report.leader.map_or("none".to_string(), |node| node.to_string());
    let health = report.degraded.as_ref().map_or("ok".to_string(), |reason| format!("degraded: {reason}"));
    let mut out = format!("cluster  {}, epoch {}, term {}, leader {leader}\n", report.cluster, report.epoch.0, report.term.0);
    out += &format!("health   {health}\n");
    let chunks = report.referenced_chunks;
    let nodes = if report.replicas == 1 { "node" } else { "nodes" };
    out += &format!("stored   {} in {chunks} chunks, each on {} {nodes}\n", size_text(report.referenced_bytes), report.replicas);
    out += &format!("repair   {}\n", repair_text(&report.repair));
    let names = size_text(report.namespace_bytes);
    out += &format!("tree     {} inodes, {names}, {} sessions, applied {}\n", report.inodes, report.sessions.len(), report.applied);
    if !report.from_leader {
        out += &format!("note     this is the view of node {}, which does not lead; numbers may be incomplete\n", report.node);
    }
    let zoned = report.members.iter().any(|node| !node.member.zone.is_empty());
    let head = ["ADDRESS", "NODE", "STATE", "ROLE", "STORED", "CHUNKS", "MEMORY", "RESIDENT", "SCRUBBED", "CORRUPT", "SILENT"];
    let mut rows = vec![head.map(str::to_string).to_vec()];
    rows[0].extend(zoned.then(|| "ZONE".to_string()));
    for node in &report.members {
        let role = if node.leader {
            "leader"
        } else if node.voter {
            "voter"
        } else {
            "-"
        };
        let mut row = vec![
            node.member.address.to_string(),
            node.member.id.to_string(),
            state_text(node.member.state).to_string(),
            role.to_string(),
            size_text(node.stored),
            node.chunks.to_string(),
            size_text(node.member.memory),
            size_text(node.resident),
            size_text(node.scrubbed.bytes),
            node.scrubbed.corrupt.to_string(),
            node.silent_ms.map_or("-".to_string(), |millis| format!("{millis}ms")),
        ];
        let zone = if node.member.zone.is_empty() { "-" } else { &node.member.zone };
        row.extend(zoned.then(|| zone.to_string()));
        rows.push(row);
    }
    out + "\n" + &table(&rows)
}

/// What repair has left to do, in one line.
fn repair_text(repair: &RepairReport) -> String {
    if !repair.known {
        return "looking at all chunks".to_string();
    }
    let mut parts = Vec::new();
    if repair.weak_chunks > 0 {
        parts.push(format!("{} chunks lack copies of {}", repair.weak_chunks, size_text(repair.weak_bytes)));
    }
    if repair.lost_chunks > 0 {
        parts.push(format!("no living node holds {} of them: dfs fsck lists the files", repair.lost_chunks));
    }
    if repair.misplaced_chunks > 0 {
        parts.push(format!("{} chunks, {}, are to move", repair.misplaced_chunks, size_text(repair.misplaced_bytes)));
    }
    if parts.is_empty() {
        return "nothing to do".to_string();
    }
    parts.extend(repair.seconds_left.map(|seconds| format!("about {seconds} s left")));
    parts.join("; ")
}

/// `status --json`.
pub fn status_json(report: &StatusReport) -> Value {
    let node = |node: &dfs::wire::message::MemberReport| {
        json!({
            "address": node.member.address.to_string(),
            "node": node.member.id.to_string(),
            "state": state_text(node.member.state),
            "zone": node.member.zone,
            "voter": node.voter,
            "leader": node.leader,
            "stored": node.stored,
            "chunks": node.chunks,
            "recorded": node.recorded,
            "memory": node.member.memory,
            "resident": node.resident,
            "scrubbed_chunks": node.scrubbed.chunks,
            "scrubbed_bytes": node.scrubbed.bytes,
            "scrub_cycles": node.scrubbed.cycles,
            "corrupt": node.scrubbed.corrupt,
            "silent_ms": node.silent_ms,
        })
    };
    json!({
        "cluster": report.cluster.to_string(),
        "epoch": report.epoch.0,
        "term": report.term.0,
        "leader": report.leader.map(|leader| leader.to_string()),
        "answered_by": report.node.to_string(),
        "from_leader": report.from_leader,
        "degraded": report.degraded,
        "replicas": report.replicas,
        "repair": {
            "known": report.repair.known,
            "weak_chunks": report.repair.weak_chunks,
            "weak_bytes": report.repair.weak_bytes,
            "misplaced_chunks": report.repair.misplaced_chunks,
            "misplaced_bytes": report.repair.misplaced_bytes,
            "lost_chunks": report.repair.lost_chunks,
            "seconds_left": report.repair.seconds_left,
        },
        "referenced_bytes": report.referenced_bytes,
        "referenced_chunks": report.referenced_chunks,
        "namespace_bytes": report.namespace_bytes,
        "inodes": report.inodes,
        "applied": report.applied,
        "sessions": report.sessions.iter().map(|session| session.to_string()).collect::<Vec<_>>(),
        "nodes": report.members.iter().map(node).collect::<Value>(),
    })
}

/// Bytes in the largest unit that leaves at least one before the point.
fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1}{}", UNITS[unit])
}

/// Columns padded to their widest cell, two spaces between.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let padded: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        for (bytes, text) in [(0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (1536 << 10, "1.5MiB"), (3 << 40, "3.0TiB")] {
            assert_eq!(size_text(bytes), text);
        }
    }

    #[test]
    fn tables_line_up() {
        let rows = [vec!["A".to_string(), "LONG".to_string()], vec!["wide cell".to_string(), "x".to_string()]];
        assert_eq!(table(&rows), "A          LONG\nwide cell  x\n");
    }

    #[test]
    fn names_that_are_not_utf8_survive_json() {
        let mut value = json!({});
        put_name(&mut value, "name", b"a\xffb");
        assert_eq!(value["name_hex"], "61ff62");
        put_name(&mut value, "plain", b"ab");
        assert!(value.get("plain_hex").is_none());
    }

    #[test]
    fn df_of_an_empty_cluster_does_not_divide_by_zero() {
        assert!(space_text(&Space::default()).contains("0%"));
    }
}
