//! Linearizability of small histories, after Wing and Gong: is there an order of the operations that respects real time and
//! gives every answer that was seen? Operations whose answer was never seen may take effect at any later time, or never.

use std::collections::BTreeSet;
use std::fmt::Debug;

/// One operation of a history. Instants are positions in the global order of what the clients saw.
#[derive(Clone, Debug)]
pub struct Operation<C, R> {
    pub call: C,
    pub called: u64,
    /// When it was answered and what; `None` if that is unknown.
    pub answer: Option<(u64, R)>,
}

/// Sequential behaviour: the state after the call and what it answers.
pub trait Model {
    type State: Clone + Ord + Debug;
    type Call: Clone + Debug;
    type Answer: Clone + PartialEq + Debug;
    fn apply(&self, state: &Self::State, call: &Self::Call) -> (Self::State, Self::Answer);
}

/// What the search found.
#[derive(Debug, PartialEq, Eq)]
pub enum Finding {
    Linearizable,
    /// No order explains the history.
    Violation,
    /// Too many possibilities.
    GaveUp,
}

const STATES_MAX: usize = 400_000;
/// For long histories: a good one needs a few per operation.
const STATES_PER_OPERATION: usize = 16;
/// Stands for an answer that never came.
const NEVER: u64 = u64::MAX;
/// How many operations are shown of a history that no order explains: its end, where it went wrong.
const TOLD_MAX: usize = 60;

/// Which operations have taken effect, by their position in the order of calls: all before `frontier` but the skipped ones, and none from
/// there on. Skipped are few, at most one of each client and those that were never answered, however long the history is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Done {
    frontier: usize,
    skipped: Vec<usize>,
}

impl Done {
    fn with(&self, index: usize) -> Self {
        let mut next = self.clone();
        if index < self.frontier {
            next.skipped.retain(|&skipped| skipped != index);
        } else {
            next.skipped.extend(self.frontier..index);
            next.frontier = index + 1;
        }
        next
    }
}

/// Searches for an order.
pub fn check<M: Model>(model: &M, initial: M::State, operations: &[Operation<M::Call, M::Answer>]) -> Finding {
    let mut operations: Vec<_> = operations.iter().collect();
    operations.sort_by_key(|operation| operation.called);
    let answered = |index: usize| operations[index].answer.as_ref().map_or(NEVER, |answer| answer.0);
    // The earliest answer among the operations from each position on.
    let mut answered_from = vec![NEVER; operations.len() + 1];
    for index in (0..operations.len()).rev() {
        answered_from[index] = answered(index).min(answered_from[index + 1]);
    }
    let states_max = STATES_MAX.max(STATES_PER_OPERATION * operations.len());
    let mut seen: BTreeSet<(Done, M::State)> = BTreeSet::new();
    let mut stack: Vec<(Done, M::State)> = vec![(Done { frontier: 0, skipped: Vec::new() }, initial)];
    while let Some((done, state)) = stack.pop() {
        // Whatever was called after another operation had been answered comes after it.
        let bound = done.skipped.iter().map(|&index| answered(index)).fold(answered_from[done.frontier], u64::min);
        if bound == NEVER {
            return Finding::Linearizable;
        }
        let open = done.skipped.iter().copied().chain(done.frontier..operations.len());
        // Pushed in reverse, so that the earliest call is tried first: mostly right.
        for index in open.take_while(|&index| operations[index].called < bound).collect::<Vec<_>>().into_iter().rev() {
            let (next, answer) = model.apply(&state, &operations[index].call);
            if operations[index].answer.as_ref().is_some_and(|(_, seen)| *seen != answer) {
                continue;
            }
            if operations[index].answer.is_none() && next == state {
                continue; // Without an effect an unanswered operation explains nothing.
            }
            let with = done.with(index);
            if seen.insert((with.clone(), next.clone())) {
                stack.push((with, next));
            }
        }
        if seen.len() > states_max {
            return Finding::GaveUp;
        }
    }
    Finding::Violation
}

/// The shortest beginning of a history that no order explains; all of it if there is none.
pub fn shortest<M: Model>(
    model: &M,
    initial: M::State,
    operations: &[Operation<M::Call, M::Answer>],
) -> Vec<Operation<M::Call, M::Answer>> {
    let ends = operations.iter().filter_map(|operation| operation.answer.as_ref().map(|answer| answer.0)).collect::<BTreeSet<u64>>();
    let ends: Vec<u64> = ends.into_iter().collect();
    let until = |end: u64| {
        let begun = operations.iter().filter(|operation| operation.called <= end).cloned();
        let cut =
            |operation: Operation<M::Call, M::Answer>| Operation { answer: operation.answer.filter(|answer| answer.0 <= end), ..operation };
        begun.map(cut).collect::<Vec<_>>()
    };
    // What no order explains, none explains with more after it.
    let at = ends.partition_point(|&end| check(model, initial.clone(), &until(end)) != Finding::Violation);
    let mut shortest = ends.get(at).map_or_else(|| operations.to_vec(), |&end| until(end));
    shortest.sort_by_key(|operation| operation.answer.as_ref().map_or(operation.called, |answer| answer.0));
    shortest
}

/// The end of [`shortest`], an operation a line: what was seen too late or too early comes last.
pub fn told<M: Model>(model: &M, initial: M::State, operations: &[Operation<M::Call, M::Answer>]) -> String {
    let shortest = shortest(model, initial, operations);
    let left_out = shortest.len().saturating_sub(TOLD_MAX);
    let lines = shortest.into_iter().skip(left_out).map(|Operation { call, called, answer }| match answer {
        Some((at, answer)) => format!("{called}..{at}: {call:?} -> {answer:?}"),
        None => format!("{called}..: {call:?}"),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A register of numbers.
pub struct Register;

#[derive(Clone, Debug, PartialEq)]
pub enum RegisterCall {
    Read,
    Write(u64),
}

impl Model for Register {
    type State = u64;
    type Call = RegisterCall;
    type Answer = u64;
    fn apply(&self, state: &u64, call: &RegisterCall) -> (u64, u64) {
        match call {
            RegisterCall::Read => (*state, *state),
            RegisterCall::Write(value) => (*value, 0),
        }
    }
}

/// A directory with few names; each file is known by a number that its maker gave it.
pub struct Names;

pub type NamesState = [Option<u32>; 4];

#[derive(Clone, Debug, PartialEq)]
pub enum NamesCall {
    Create(usize, u32),
    Unlink(usize),
    Lookup(usize),
    Rename(usize, usize),
    RenameNoReplace(usize, usize),
    Exchange(usize, usize),
    List,
}

#[derive(Clone, Debug, PartialEq)]
pub enum NamesAnswer {
    Done,
    Found(u32),
    NotFound,
    Exists,
    Listed(NamesState),
}

impl Model for Names {
    type State = NamesState;
    type Call = NamesCall;
    type Answer = NamesAnswer;
    fn apply(&self, state: &NamesState, call: &NamesCall) -> (NamesState, NamesAnswer) {
        let mut next = *state;
        let answer = match *call {
            NamesCall::Create(name, _) if state[name].is_some() => NamesAnswer::Exists,
            NamesCall::Create(name, file) => {
                next[name] = Some(file);
                NamesAnswer::Done
            }
            NamesCall::Unlink(name) if state[name].is_none() => NamesAnswer::NotFound,
            NamesCall::Unlink(name) => {
                next[name] = None;
                NamesAnswer::Done
            }
            NamesCall::Lookup(name) => state[name].map_or(NamesAnswer::NotFound, NamesAnswer::Found),
            NamesCall::List => NamesAnswer::Listed(*state),
            NamesCall::Rename(from, _) | NamesCall::RenameNoReplace(from, _) if state[from].is_none() => NamesAnswer::NotFound,
            NamesCall::RenameNoReplace(_, to) if state[to].is_some() => NamesAnswer::Exists,
            NamesCall::Rename(from, to) | NamesCall::RenameNoReplace(from, to) => {
                next[to] = next[from].take();
                NamesAnswer::Done
            }
            NamesCall::Exchange(from, to) if state[from].is_none() || state[to].is_none() => NamesAnswer::NotFound,
            NamesCall::Exchange(from, to) => {
                next.swap(from, to);
                NamesAnswer::Done
            }
        };
        (next, answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(call: RegisterCall, called: u64, answer: Option<(u64, u64)>) -> Operation<RegisterCall, u64> {
        Operation { call, called, answer }
    }

    #[test]
    fn the_checker_tells_right_from_wrong() {
        use RegisterCall::{Read, Write};
        let write = |value, from, to| operation(Write(value), from, Some((to, 0)));
        let read = |value, from, to| operation(Read, from, Some((to, value)));
        let check = |history: &[_]| check(&Register, 0, history);
        assert_eq!(check(&[write(1, 1, 2), read(1, 3, 4)]), Finding::Linearizable);
        assert_eq!(check(&[write(1, 1, 2), read(0, 3, 4)]), Finding::Violation);
        assert_eq!(check(&[write(1, 1, 5), read(0, 3, 4)]), Finding::Linearizable);
        assert_eq!(check(&[write(1, 1, 9), read(1, 2, 3), read(0, 4, 5)]), Finding::Violation);
        let lost = operation(Write(7), 1, None);
        assert_eq!(check(&[lost.clone(), read(0, 2, 3), read(7, 4, 5)]), Finding::Linearizable);
        assert_eq!(check(&[lost.clone(), read(0, 2, 3)]), Finding::Linearizable);
        assert_eq!(check(&[lost, read(7, 2, 3), read(0, 4, 5)]), Finding::Violation);
    }

    #[test]
    fn a_rename_done_twice_is_found() {
        let answered = |call, called, at, answer| Operation { call, called, answer: Some((at, answer)) };
        let history = [
            answered(NamesCall::Create(0, 7), 1, 2, NamesAnswer::Done),
            answered(NamesCall::Rename(0, 1), 3, 6, NamesAnswer::NotFound),
            answered(NamesCall::Lookup(1), 7, 8, NamesAnswer::Found(7)),
        ];
        assert_eq!(check(&Names, [None; 4], &history), Finding::Violation);
    }

    #[test]
    fn a_name_created_twice_is_found() {
        let create = |file, called, at, answer| Operation { call: NamesCall::Create(0, file), called, answer: Some((at, answer)) };
        let unlink = |called, at| Operation { call: NamesCall::Unlink(0), called, answer: Some((at, NamesAnswer::Done)) };
        let twice = [create(7, 1, 4, NamesAnswer::Done), create(8, 2, 3, NamesAnswer::Done)];
        assert_eq!(check(&Names, [None; 4], &twice), Finding::Violation);
        assert_eq!(
            check(&Names, [None; 4], &[create(7, 1, 4, NamesAnswer::Done), create(8, 2, 3, NamesAnswer::Exists)]),
            Finding::Linearizable
        );
        let between = [twice[0].clone(), twice[1].clone(), unlink(1, 4)];
        assert_eq!(check(&Names, [None; 4], &between), Finding::Linearizable);
    }

    /// Three clients, two of whom write and read quickly beside one whose every write takes as long as fifty of theirs.
    fn long_history(operations: u64) -> Vec<Operation<RegisterCall, u64>> {
        let mut history = vec![operation(RegisterCall::Write(1), 0, Some((1, 0)))];
        for number in 1..operations {
            let at = 10 * number;
            history.push(operation(RegisterCall::Write(number + 1), at, Some((at + 6, 0))));
            history.push(operation(RegisterCall::Read, at + 1, Some((at + 5, if number % 2 == 0 { number } else { number + 1 }))));
            if number % 50 == 0 {
                history.push(operation(RegisterCall::Write(operations + number), at - 495, Some((at + 3, 0))));
            }
        }
        history
    }

    #[test]
    fn a_long_history_is_searched_and_its_stale_read_shown_last() {
        let mut history = long_history(20_000);
        assert_eq!(check(&Register, 0, &history), Finding::Linearizable);
        let stale = operation(RegisterCall::Read, 150_008, Some((150_009, 14_999)));
        history.push(stale.clone());
        assert_eq!(check(&Register, 0, &history), Finding::Violation);
        let told = told(&Register, 0, &history);
        assert!(told.lines().count() <= TOLD_MAX && told.ends_with("150008..150009: Read -> 14999"), "{told}");
    }
}
