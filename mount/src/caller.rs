//! What a process that asks is allowed beyond what a FUSE request tells of it: its groups and capabilities, read from /proc.
//!
//! Read only where the answer needs it: changes of files with setgid, lists with names that not everybody may see.

use std::fs;

use crate::requests::Context;

const CAP_FSETID: u32 = 4;
const CAP_SYS_ADMIN: u32 = 21;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// What /proc says.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    groups: Vec<u32>,
    capabilities: u64,
}

impl From<Context> for Caller {
    fn from(Context { uid, gid, pid }: Context) -> Self {
        Caller { uid, gid, pid }
    }
}

impl Caller {
    /// Whether it may leave setgid on a file of that group: it is in the group, or privileged.
    pub fn keeps_setgid(&self, group: u32) -> bool {
        let status = self.status();
        self.gid == group || self.has(status.as_ref(), CAP_FSETID) || status.is_some_and(|status| status.groups.contains(&group))
    }

    /// Whether it may see names of the namespace `trusted`.
    pub fn sees_trusted(&self) -> bool {
        self.has(self.status().as_ref(), CAP_SYS_ADMIN)
    }

    /// A process that cannot be looked at has what its user id says.
    fn has(&self, status: Option<&Status>, capability: u32) -> bool {
        match status {
            Some(status) => status.capabilities >> capability & 1 == 1 && self.is_in_our_user_namespace(),
            None => self.uid == 0,
        }
    }

    /// Capabilities of another user namespace are none here.
    fn is_in_our_user_namespace(&self) -> bool {
        let theirs = fs::read_link(format!("/proc/{}/ns/user", self.pid));
        match (theirs, fs::read_link("/proc/self/ns/user")) {
            (Ok(theirs), Ok(ours)) => theirs == ours,
            _ => self.uid == 0,
        }
    }

    fn status(&self) -> Option<Status> {
        // 0: of a process namespace that this one cannot see.
        if self.pid == 0 {
            return None;
        }
        parse(&fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?)
    }
}

fn parse(text: &str) -> Option<Status> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let groups = field("Groups:")?.split_whitespace().filter_map(|group| group.parse().ok()).collect();
    let capabilities = u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?;
    Some(Status { groups, capabilities })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_capabilities_are_read() {
        let text = "Name:\tcat\nGroups:\t4 24 1000 \nCapInh:\t0000000000000001\nCapEff:\t0000000000200010\n";
        assert_eq!(parse(text), Some(Status { groups: vec![4, 24, 1000], capabilities: 1 << CAP_FSETID | 1 << CAP_SYS_ADMIN }));
        assert_eq!(parse("Groups:\t\nCapEff:\t0\n"), Some(Status { groups: Vec::new(), capabilities: 0 }));
        assert_eq!(parse("Name:\tcat\n"), None);
    }

    #[test]
    fn a_process_out_of_sight_has_what_its_user_id_says() {
        let stranger = Caller { uid: 1000, gid: 5, pid: 0 };
        assert!(stranger.keeps_setgid(5) && !stranger.keeps_setgid(6));
        assert!(!stranger.sees_trusted());
        let root = Caller { uid: 0, gid: 0, pid: 0 };
        assert!(root.keeps_setgid(6));
        assert!(root.sees_trusted());
    }
}
