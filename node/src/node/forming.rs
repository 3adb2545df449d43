//! Forming a cluster from a fixed list of nodes (`--peers`): who may found one, when, and what becomes of a founding that failed.
//!
//! Nothing is agreed upon, only looked at, so that no message can be harmful by being lost, late or doubled. The node with the lowest
//! address of the list asks all others where they stand, in rounds. It founds after two whole rounds in a row in which the same
//! incarnations said that they belong to nothing: between the two there was an instant at which every listed node was up and free, and
//! since a node gets into a cluster only by asking a listed one, no cluster can have had any of them then.
//!
//! Until every listed address has joined (`ClusterMap::awaited`) the founder alone votes and no client is served. So if it dies, such a
//! cluster is gone for certain and has lost nothing. Who had joined it forgets it, but only after having heard from every listed node
//! that none knows it as formed: its own map may be older than the end of the forming, and then others keep that cluster alive.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use dfs::cluster_map::ClusterMap;
use dfs::limits;
use dfs::links::Peer;
use dfs::status::Status;
use dfs::time::Time;
use dfs::types::{Address, ClusterId, NodeId};
use dfs::wire::message::{Allegiance, Request};

use super::joining::Stage;
use super::{Node, Purpose, Start};

/// Which cluster this node has become part of, in this life of its process. Only ever lost by [`Node::forget_cluster`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Belonging {
    #[default]
    None,
    /// One that is being formed by that founder; `listed` is everybody who may be in it.
    Forming {
        cluster: ClusterId,
        founder: NodeId,
        founder_address: Address,
        listed: BTreeSet<Address>,
    },
    Formed,
}

/// What came of a question to one listed node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Stands {
        node: NodeId,
        cluster: ClusterId,
        allegiance: Allegiance,
    },
    /// Part of another cluster than this node: that much the handshake tells.
    Elsewhere,
    /// Cannot be reached.
    Silent,
}

/// What follows from a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing yet, and why, for people.
    Wait(String),
    /// One more round like this one.
    AskAgain,
    Found,
    Forget,
}

/// A question to all.
#[derive(Debug)]
struct Round {
    number: u64,
    began: Time,
    asked: BTreeSet<Address>,
    answers: BTreeMap<Address, Answer>,
}

/// Where this node stands, and what it heard from the others. Bounded by the list.
#[derive(Debug)]
pub(super) struct Forming {
    own: Address,
    /// The list, this node included; empty without `--peers`.
    peers: BTreeSet<Address>,
    belonging: Belonging,
    /// Whether this incarnation has founded the cluster that it is in.
    pub founded: bool,
    /// The entry with which the forming ended, if this incarnation saw it. Who has not got it may have died before, and gets no vote yet:
    /// with two such voters the founder could never do anything again.
    pub formed_index: u64,
    round: Option<Round>,
    rounds: u64,
    /// Who said in the round before that they are free, if all did.
    free_before: Option<BTreeMap<Address, NodeId>>,
    /// Why nothing has come of it yet.
    why: String,
    said_at: Time,
}

impl Forming {
    pub fn new(start: &Start, own: &Address, now: Time) -> Self {
        let peers = match start {
            Start::Peers { peers, .. } => peers.iter().cloned().collect(),
            Start::Bootstrap { .. } | Start::Join(_) => BTreeSet::new(),
        };
        Forming {
            own: own.clone(),
            peers,
            belonging: Belonging::None,
            founded: false,
            formed_index: 0,
            round: None,
            rounds: 0,
            free_before: None,
            why: String::new(),
            said_at: now,
        }
    }

    /// The whole list.
    pub fn peers(&self) -> &BTreeSet<Address> {
        &self.peers
    }

    /// What is said to whoever asks. `cluster`: the one that this node names in handshakes.
    pub fn allegiance(&self, cluster: ClusterId) -> Allegiance {
        match &self.belonging {
            Belonging::None if cluster.0 == 0 => Allegiance::None { peers: self.peers.iter().cloned().collect() },
            Belonging::Forming { founder, .. } => Allegiance::Forming { founder: *founder },
            // In a cluster whose map has not come yet: nobody must count on this node.
            Belonging::None | Belonging::Formed => Allegiance::Formed,
        }
    }

    /// Learns from a map of this node's cluster, seen after that many entries. A cluster that was formed once stays so, however old the map.
    pub fn note_map(&mut self, map: &ClusterMap, applied: u64) {
        if map.cluster.0 == 0 || self.belonging == Belonging::Formed {
            return;
        }
        let mut belonging = Belonging::Formed;
        if map.is_forming() {
            // The founder is the only voter; before it is a member itself nobody else is one.
            let [founder] = map.voters[..] else { return };
            let Some(member) = map.member(founder) else { return };
            let listed = map.awaited.iter().chain(map.members.iter().map(|member| &member.address)).cloned().collect();
            belonging = Belonging::Forming { cluster: map.cluster, founder, founder_address: member.address.clone(), listed };
        }
        if belonging == Belonging::Formed {
            self.formed_index = applied;
        }
        if belonging != self.belonging {
            // What was asked before was asked about something else.
            (self.round, self.free_before, self.belonging) = (None, None, belonging);
        }
    }

    /// The cluster that this node was in is gone, and never was more than an attempt.
    pub fn forget(&mut self) {
        assert!(matches!(self.belonging, Belonging::Forming { .. }), "only what was never formed is forgotten");
        (self.belonging, self.founded) = (Belonging::None, false);
        (self.round, self.free_before) = (None, None);
    }

    /// Whom to ask where they stand; nobody if there is nothing to find out. `silent`: the leader of this node's cluster has not been
    /// heard for a while.
    fn targets(&self, me: NodeId, cluster: ClusterId, silent: bool) -> BTreeSet<Address> {
        let mut targets = match &self.belonging {
            Belonging::None if cluster.0 == 0 && self.peers.first() == Some(&self.own) => self.peers.clone(),
            Belonging::Forming { founder, listed, .. } if *founder != me && silent => listed.clone(),
            _ => return BTreeSet::new(),
        };
        targets.remove(&self.own);
        targets
    }

    /// Begins a round; gives its number.
    fn begin(&mut self, now: Time, asked: BTreeSet<Address>) -> u64 {
        self.rounds += 1;
        self.round = Some(Round { number: self.rounds, began: now, asked, answers: BTreeMap::new() });
        self.rounds
    }

    /// Whether the round has nothing more to wait for. Questions end by themselves; one that was lost by a new beginning does not.
    fn is_over(&self, now: Time) -> bool {
        self.round
            .as_ref()
            .is_none_or(|round| round.answers.len() == round.asked.len() || now.since(round.began) > 2 * limits::ATTEMPT_TIMEOUT)
    }

    /// Takes the answer to a question of that round; late ones tell nothing. Tells whether it was the last.
    pub fn on_answer(&mut self, number: u64, address: &Address, answer: Answer) -> bool {
        let Some(round) = self.round.as_mut().filter(|round| round.number == number && round.asked.contains(address)) else {
            return false;
        };
        round.answers.insert(address.clone(), answer);
        round.answers.len() == round.asked.len()
    }

    /// What follows from the round that is over; it is used up by this.
    fn conclude(&mut self) -> Verdict {
        let Some(round) = self.round.take() else { return Verdict::Wait(String::new()) };
        let silent: Vec<&Address> =
            round.asked.iter().filter(|&at| !matches!(round.answers.get(at), Some(Answer::Stands { .. } | Answer::Elsewhere))).collect();
        match &self.belonging {
            Belonging::None => self.conclude_free(&round, &silent),
            Belonging::Forming { cluster, founder, founder_address, .. } => {
                let knows =
                    |answer: &Answer| matches!(answer, Answer::Stands { cluster: of, allegiance: Allegiance::Formed, .. } if of == cluster);
                let lives = matches!(round.answers.get(founder_address), Some(Answer::Stands { node, .. }) if node == founder);
                if lives || round.answers.values().any(knows) {
                    return Verdict::Wait("the cluster has a founder, or has been formed: finding its leader".to_string());
                }
                if silent.is_empty() {
                    Verdict::Forget
                } else {
                    Verdict::Wait(format!("the founder is gone; waiting for {}", list(&silent)))
                }
            }
            Belonging::Formed => Verdict::Wait(String::new()),
        }
    }

    /// As the node that would found: may it?
    fn conclude_free(&mut self, round: &Round, silent: &[&Address]) -> Verdict {
        let before = self.free_before.take();
        let mut free = BTreeMap::new();
        for (address, answer) in &round.answers {
            let Answer::Stands { node, allegiance, .. } = answer else { continue };
            match allegiance {
                Allegiance::None { peers } if peers.iter().eq(&self.peers) => _ = free.insert(address.clone(), *node),
                Allegiance::None { peers } if peers.is_empty() => {
                    return Verdict::Wait(format!("{address} was started without --peers"));
                }
                Allegiance::None { peers } => {
                    let theirs = list(&peers.iter().collect::<Vec<_>>());
                    return Verdict::Wait(format!("{address} has another list: --peers {theirs}"));
                }
                Allegiance::Forming { .. } => return Verdict::Wait(format!("{address} still waits for a founder that is gone")),
                Allegiance::Formed => return Verdict::Wait(format!("{address} belongs to a cluster: joining it")),
            }
        }
        if !silent.is_empty() || free.len() < round.asked.len() {
            return Verdict::Wait(format!("waiting for {}", list(silent)));
        }
        if before.as_ref() == Some(&free) {
            return Verdict::Found;
        }
        self.free_before = Some(free);
        Verdict::AskAgain
    }

    /// Why there is no cluster yet, for `dfs status`; `None` for a node that is in one, or was not given a list.
    pub fn explain(&self, cluster: ClusterId) -> Option<String> {
        if cluster.0 != 0 || self.peers.is_empty() {
            return None;
        }
        if !self.why.is_empty() {
            return Some(format!("no cluster yet: {}", self.why));
        }
        Some(format!("no cluster yet: waiting for {} to form or find one", self.peers.first()?))
    }
}

fn list(addresses: &[&Address]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl Node {
    /// Asks the others where they stand, or does what follows from their answers. Called when it is time to look around.
    pub(super) fn pursue_forming(&mut self) {
        if self.stage == Stage::Stopped || self.leaving.is_some() {
            return;
        }
        let silent = self.now.since(self.leader_heard) > limits::ELECTION_TIMEOUT && self.leading.is_none();
        let targets = self.forming.targets(self.id, self.cluster, silent);
        // Who gave up its copy of a cluster's tree for another's has nothing to form.
        let alone = self.forming.peers.len() == 1 && self.cluster.0 == 0 && self.forming.belonging == Belonging::None;
        if alone && self.stage == Stage::Joining {
            return self.found_by_list();
        }
        if self.forming.round.is_none() {
            return self.ask_where_they_stand(targets);
        }
        if !self.forming.is_over(self.now) {
            return;
        }
        match self.forming.conclude() {
            // The next round begins at the usual pace, or nodes that have to wait for each other would do nothing but ask.
            Verdict::Wait(why) => self.say_why(why),
            Verdict::AskAgain => self.ask_where_they_stand(targets),
            Verdict::Found if self.stage == Stage::Joining && self.cluster.0 == 0 => self.found_by_list(),
            Verdict::Found => {}
            Verdict::Forget => self.forget_cluster(),
        }
    }

    fn ask_where_they_stand(&mut self, targets: BTreeSet<Address>) {
        if targets.is_empty() {
            return;
        }
        let round = self.forming.begin(self.now, targets.clone());
        for address in targets {
            let peer = Peer { address: address.clone(), node: None };
            let ticket = self.links.request(self.now, &peer, Request::Muster, Bytes::new(), limits::ATTEMPT_TIMEOUT);
            self.tickets.insert(ticket, Purpose::Muster { round, address });
        }
    }

    /// An answer, or the lack of one.
    pub(super) fn on_mustered(&mut self, round: u64, address: &Address, answer: Answer) {
        if self.forming.on_answer(round, address, answer.clone()) && answer != Answer::Silent {
            self.joining.look_at(self.now);
        }
    }

    fn found_by_list(&mut self) {
        tracing::info!(peers = self.forming.peers.len(), "all listed peers are up and free: forming a cluster");
        self.forming.founded = true;
        self.found();
    }

    /// The cluster that this node joined was never formed, and its founder is gone.
    fn forget_cluster(&mut self) {
        tracing::warn!(cluster = %self.cluster, "the founder died before the cluster was formed: forgetting it");
        self.forming.forget();
        self.cluster = ClusterId(0);
        self.reincarnate();
    }

    /// Tells people what is being waited for, when it changes and now and then.
    fn say_why(&mut self, why: String) {
        if why.is_empty() {
            return;
        }
        if why != self.forming.why || self.now.since(self.forming.said_at) >= limits::FORMING_SAY_INTERVAL {
            tracing::info!("no cluster yet: {why}");
            self.forming.said_at = self.now;
            self.forming.why = why;
        }
    }

    /// The status of a failed question as an answer.
    pub(super) fn muster_failure(status: Status) -> Answer {
        if status == Status::WrongCluster { Answer::Elsewhere } else { Answer::Silent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs::cluster_map::{Member, MemberState};
    use dfs::types::Epoch;

    const CLUSTER: ClusterId = ClusterId(9);

    fn address(port: u16) -> Address {
        Address::Tcp { host: "n".into(), port }
    }

    fn addresses(ports: &[u16]) -> Vec<Address> {
        ports.iter().map(|&port| address(port)).collect()
    }

    /// The node at port 1 of a list of three, which founds.
    fn founder() -> Forming {
        let start = Start::Peers { peers: addresses(&[3, 1, 2]), replicas: 2 };
        Forming::new(&start, &address(1), Time(0))
    }

    fn stands(node: u64, cluster: u128, allegiance: Allegiance) -> Answer {
        Answer::Stands { node: NodeId(node), cluster: ClusterId(cluster), allegiance }
    }

    fn free(node: u64) -> Answer {
        stands(node, 0, Allegiance::None { peers: addresses(&[1, 2, 3]) })
    }

    /// One whole round: what the nodes at ports 2 and 3 answer.
    fn round(forming: &mut Forming, answers: [Answer; 2]) -> Verdict {
        let targets: BTreeSet<Address> = [2, 3].map(address).into();
        let number = forming.begin(Time(0), targets);
        for (port, answer) in [2, 3].into_iter().zip(answers) {
            assert!(!forming.is_over(Time(0)));
            forming.on_answer(number, &address(port), answer);
        }
        assert!(forming.is_over(Time(0)));
        forming.conclude()
    }

    /// The map of a cluster whose founder is the node 100 at port 1, and which node 20 at port 2 has joined.
    fn map(awaited: &[u16]) -> ClusterMap {
        let member = |id, port| Member { id: NodeId(id), address: address(port), memory: 1, zone: String::new(), state: MemberState::Live };
        let members = vec![member(20, 2), member(100, 1)];
        let voters = vec![NodeId(100)];
        ClusterMap { cluster: CLUSTER, epoch: Epoch(3), replicas: 2, members, voters, awaited: addresses(awaited), ..ClusterMap::default() }
    }

    /// The node at port 2, in a cluster that it believes to be forming.
    fn joined() -> Forming {
        let start = Start::Peers { peers: addresses(&[1, 2, 3]), replicas: 2 };
        let mut forming = Forming::new(&start, &address(2), Time(0));
        forming.note_map(&map(&[3]), 7);
        forming
    }

    #[test]
    fn two_equal_rounds_found() {
        let mut forming = founder();
        assert_eq!(forming.targets(NodeId(1), ClusterId(0), false), [2, 3].map(address).into());
        assert_eq!(round(&mut forming, [free(20), free(30)]), Verdict::AskAgain);
        assert_eq!(round(&mut forming, [free(20), free(30)]), Verdict::Found);
    }

    #[test]
    fn who_was_started_anew_between_the_rounds_is_asked_twice() {
        let mut forming = founder();
        assert_eq!(round(&mut forming, [free(20), free(30)]), Verdict::AskAgain);
        assert_eq!(round(&mut forming, [free(21), free(30)]), Verdict::AskAgain);
        assert_eq!(round(&mut forming, [free(21), free(30)]), Verdict::Found);
    }

    #[test]
    fn a_round_in_between_that_is_not_whole_begins_anew() {
        let mut forming = founder();
        assert_eq!(round(&mut forming, [free(20), free(30)]), Verdict::AskAgain);
        assert!(matches!(round(&mut forming, [free(20), Answer::Silent]), Verdict::Wait(why) if why.contains("n:3")));
        assert_eq!(round(&mut forming, [free(20), free(30)]), Verdict::AskAgain);
        // A question that never ends counts as silence.
        forming.begin(Time(0), [2, 3].map(address).into());
        let late = Time(0) + 3 * limits::ATTEMPT_TIMEOUT;
        assert!(!forming.is_over(Time(0)) && forming.is_over(late));
        assert!(matches!(forming.conclude(), Verdict::Wait(_)));
    }

    #[test]
    fn nobody_founds_beside_a_cluster_or_with_another_list() {
        let others = [
            (stands(30, 9, Allegiance::Formed), "belongs to a cluster"),
            (stands(30, 9, Allegiance::Forming { founder: NodeId(5) }), "founder that is gone"),
            (stands(30, 0, Allegiance::None { peers: addresses(&[1, 2, 3, 4]) }), "n:1,n:2,n:3,n:4"),
            (stands(30, 0, Allegiance::None { peers: Vec::new() }), "without --peers"),
            (Answer::Elsewhere, "waiting"),
        ];
        for (other, why) in others {
            let mut forming = founder();
            for _ in 0..3 {
                let verdict = round(&mut forming, [free(20), other.clone()]);
                assert!(matches!(&verdict, Verdict::Wait(said) if said.contains(why)), "{other:?}: {verdict:?}");
            }
        }
    }

    #[test]
    fn late_and_doubled_answers_tell_nothing() {
        let mut forming = founder();
        let old = forming.begin(Time(0), [2, 3].map(address).into());
        forming.conclude();
        let number = forming.begin(Time(0), [2, 3].map(address).into());
        assert!(!forming.on_answer(old, &address(2), free(20)));
        assert!(!forming.on_answer(number, &address(4), free(40)), "nobody asked it");
        assert!(!forming.on_answer(number, &address(2), free(20)));
        assert!(!forming.on_answer(number, &address(2), free(20)), "twice is once");
        assert!(!forming.is_over(Time(0)));
        assert!(forming.on_answer(number, &address(3), free(30)));
    }

    #[test]
    fn only_the_lowest_address_asks_in_order_to_found() {
        let start = Start::Peers { peers: addresses(&[1, 2]), replicas: 2 };
        let forming = Forming::new(&start, &address(2), Time(0));
        assert!(forming.targets(NodeId(2), ClusterId(0), true).is_empty());
        assert_eq!(forming.allegiance(ClusterId(0)), Allegiance::None { peers: addresses(&[1, 2]) });
        assert_eq!(forming.allegiance(CLUSTER), Allegiance::Formed, "a cluster whose map has not come");
    }

    #[test]
    fn a_founder_that_is_gone_is_forgotten_once_nobody_knows_the_cluster_as_formed() {
        let mut forming = joined();
        assert_eq!(forming.allegiance(CLUSTER), Allegiance::Forming { founder: NodeId(100) });
        assert!(forming.targets(NodeId(20), CLUSTER, false).is_empty(), "as long as the leader is heard there is nothing to ask");
        assert_eq!(forming.targets(NodeId(20), CLUSTER, true), [1, 3].map(address).into());
        let ask = |forming: &mut Forming, founder: Answer, third: Answer| {
            let number = forming.begin(Time(0), [1, 3].map(address).into());
            forming.on_answer(number, &address(1), founder);
            forming.on_answer(number, &address(3), third);
            forming.conclude()
        };
        let waits = |verdict: Verdict| matches!(verdict, Verdict::Wait(_));
        // The founder lives, or is only silent; somebody is silent; somebody knows better.
        assert!(waits(ask(&mut forming, stands(100, 9, Allegiance::Forming { founder: NodeId(100) }), free(30))));
        assert!(waits(ask(&mut forming, Answer::Silent, free(30))));
        assert!(waits(ask(&mut forming, free(101), Answer::Silent)));
        assert!(waits(ask(&mut forming, free(101), stands(30, 9, Allegiance::Formed))));
        // Another cluster is no reason to cling to this one.
        assert_eq!(ask(&mut forming, free(101), stands(30, 8, Allegiance::Formed)), Verdict::Forget);
        assert_eq!(ask(&mut forming, Answer::Elsewhere, Answer::Elsewhere), Verdict::Forget);
        let third = stands(30, 9, Allegiance::Forming { founder: NodeId(100) });
        assert_eq!(ask(&mut forming, free(101), third), Verdict::Forget);
        forming.forget();
        assert_eq!(forming.allegiance(ClusterId(0)), Allegiance::None { peers: addresses(&[1, 2, 3]) });
    }

    #[test]
    fn a_cluster_that_was_formed_is_never_forgotten() {
        let mut forming = joined();
        forming.note_map(&map(&[]), 7);
        assert_eq!(forming.allegiance(CLUSTER), Allegiance::Formed);
        forming.note_map(&map(&[3]), 7);
        assert_eq!(forming.allegiance(CLUSTER), Allegiance::Formed, "an older map changes nothing");
        assert!(forming.targets(NodeId(20), CLUSTER, true).is_empty());
    }

    #[test]
    fn what_was_asked_before_joining_is_void() {
        let mut forming = founder();
        round(&mut forming, [free(20), free(30)]);
        let number = forming.begin(Time(0), [2, 3].map(address).into());
        forming.note_map(&map(&[]), 7);
        assert!(!forming.on_answer(number, &address(2), free(20)) && !forming.on_answer(number, &address(3), free(30)));
        assert_eq!(forming.conclude(), Verdict::Wait(String::new()));
    }
}
