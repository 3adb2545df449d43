//! Proof of leadership by echoed send times.
//!
//! A leader stamps its clock into every message; a follower echoes the newest stamp of the leader it follows. A majority's echoes of a
//! stamp `s` prove that at `s` nobody else led, and, since each of them refuses other candidates for an election timeout after
//! hearing the leader, that nobody else can lead before `s` + that timeout. Only the leader's own clock is ever compared.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dfs::time::Time;
use dfs::types::NodeId;

use super::convert::Configuration;

/// What the leader knows of one peer in its term.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    /// Newest echo; 0 if none.
    echo: Time,
    /// When a message of this term came from it.
    at: Time,
}

/// Both sides of the proof: as a leader what was echoed to me, as a follower what I shall echo.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// Term in which I lead; 0 when I do not.
    leading: u64,
    /// Emptied whenever `leading` changes.
    heard: BTreeMap<NodeId, Heard>,
    /// Set once leadership was offered to somebody in this term: voters then help the other before my lease runs out, so only an
    /// echo newer than the read counts.
    lease_dropped: bool,
    /// Whom I follow, in which term.
    followed: (u64, NodeId),
    /// Newest stamp of `followed`.
    stamp: Time,
}

impl Proof {
    /// Tells the state of the group after each turn; `term` is 0 unless leading.
    pub(super) fn set_leading(&mut self, term: u64) {
        if self.leading != term {
            self.leading = term;
            self.heard.clear();
            self.lease_dropped = false;
        }
    }

    /// Until the end of this term only echoes newer than a read prove leadership for it.
    pub(super) fn drop_lease(&mut self) {
        self.lease_dropped = true;
    }

    /// A follower was heard in the term that I lead.
    pub(super) fn on_follower(&mut self, now: Time, from: NodeId, echo: Time) {
        let heard = self.heard.entry(from).or_default();
        heard.at = heard.at.max(now);
        // An echo from the future cannot be of a stamp of mine.
        if echo <= now {
            heard.echo = heard.echo.max(echo);
        }
    }

    /// The leader that I follow was heard.
    pub(super) fn on_leader(&mut self, term: u64, from: NodeId, sent: Time) {
        if self.followed != (term, from) {
            self.followed = (term, from);
            self.stamp = Time(0);
        }
        self.stamp = self.stamp.max(sent);
    }

    /// What to echo in a message of `term` to `to`.
    pub(super) fn echo_for(&self, term: u64, to: NodeId) -> Time {
        if self.followed == (term, to) { self.stamp } else { Time(0) }
    }

    /// When a peer was last heard in the term that I lead.
    pub(super) fn heard_at(&self, node: NodeId) -> Option<Time> {
        self.heard.get(&node).map(|heard| heard.at)
    }

    /// Forgets peers that take no part any more.
    pub(super) fn retain(&mut self, configuration: &Configuration) {
        self.heard.retain(|&node, _| configuration.contains(node));
    }

    /// Newest time of mine at which a majority (while joint: two) still followed me; `None` if none has been heard.
    fn confirmed(&self, now: Time, me: NodeId, configuration: &Configuration) -> Option<Time> {
        let newest = |voters: &BTreeSet<NodeId>| {
            let echo = |&node: &NodeId| if node == me { now } else { self.heard.get(&node).map_or(Time(0), |heard| heard.echo) };
            let mut echoes: Vec<Time> = voters.iter().map(echo).collect();
            echoes.sort_unstable();
            echoes.reverse();
            echoes.get(echoes.len() / 2).copied().filter(|&time| time > Time(0))
        };
        let incoming = newest(&configuration.voters)?;
        if configuration.is_joint() { newest(&configuration.outgoing).map(|outgoing| incoming.min(outgoing)) } else { Some(incoming) }
    }

    /// Whether a read that arrived at `received` may be answered from my state as of `now`.
    pub(super) fn covers(&self, now: Time, received: Time, me: NodeId, configuration: &Configuration, lease: Duration) -> bool {
        let Some(confirmed) = self.confirmed(now, me, configuration) else { return false };
        self.leading != 0 && (confirmed >= received || (!self.lease_dropped && now < confirmed + lease))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_nanos(90);

    fn configuration(voters: &[u64], outgoing: &[u64]) -> Configuration {
        let set = |ids: &[u64]| ids.iter().map(|&id| NodeId(id)).collect();
        Configuration { voters: set(voters), outgoing: set(outgoing), ..Default::default() }
    }

    #[test]
    fn a_majority_of_echoes_makes_a_lease_and_both_majorities_when_joint() {
        let three = configuration(&[1, 2, 3], &[]);
        let mut proof = Proof::default();
        proof.set_leading(7);
        let covers = |proof: &Proof, now, received, c: &Configuration| proof.covers(Time(now), Time(received), NodeId(1), c, LEASE);
        assert!(!covers(&proof, 100, 50, &three), "nobody was heard");
        proof.on_follower(Time(100), NodeId(2), Time(80));
        assert!(covers(&proof, 100, 99, &three));
        assert!(covers(&proof, 169, 169, &three));
        assert!(!covers(&proof, 170, 170, &three), "the lease counts from the send time");
        assert!(covers(&proof, 500, 80, &three), "an echo newer than the read proves without a lease");
        let joint = configuration(&[1, 2, 3], &[1, 4, 5]);
        assert!(!covers(&proof, 100, 80, &joint));
        proof.on_follower(Time(100), NodeId(5), Time(70));
        assert!(covers(&proof, 159, 100, &joint) && !covers(&proof, 160, 100, &joint));
        proof.on_follower(Time(100), NodeId(3), Time(101));
        assert!(!covers(&proof, 180, 100, &three), "a stamp from the future is none of mine");
        proof.drop_lease();
        assert!(!covers(&proof, 101, 100, &three) && covers(&proof, 101, 80, &three));
        proof.set_leading(8);
        assert!(!covers(&proof, 101, 80, &three), "another term, another proof");
        assert!(covers(&proof, 101, 101, &configuration(&[1], &[])), "a single voter needs nobody");
    }

    #[test]
    fn only_the_leader_of_the_term_is_echoed() {
        let mut proof = Proof::default();
        proof.on_leader(3, NodeId(1), Time(50));
        proof.on_leader(3, NodeId(1), Time(40));
        assert_eq!(proof.echo_for(3, NodeId(1)), Time(50));
        assert_eq!((proof.echo_for(4, NodeId(1)), proof.echo_for(3, NodeId(2))), (Time(0), Time(0)));
        proof.on_leader(4, NodeId(2), Time(10));
        assert_eq!((proof.echo_for(3, NodeId(1)), proof.echo_for(4, NodeId(2))), (Time(0), Time(10)));
    }
}
