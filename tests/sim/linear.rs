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
const WORDS: usize = 8;
type Set = [u64; WORDS];

/// Searches for an order.
pub fn check<M: Model>(model: &M, initial: M::State, operations: &[Operation<M::Call, M::Answer>]) -> Finding {
    if operations.len() > WORDS * 64 {
        return Finding::GaveUp;
    }
    let mut order: Vec<usize> = (0..operations.len()).collect();
    order.sort_by_key(|&index| operations[index].called);
    let operations: Vec<_> = order.into_iter().map(|index| &operations[index]).collect();
    let mut seen: BTreeSet<(Set, M::State)> = BTreeSet::new();
    let mut stack: Vec<(Set, M::State)> = vec![([0; WORDS], initial)];
    while let Some((done, state)) = stack.pop() {
        let is_done = |index: usize| done[index / 64] >> (index % 64) & 1 == 1;
        let open = || (0..operations.len()).filter(|&index| !is_done(index));
        // Whatever was called after another operation had been answered comes after it.
        let Some(bound) = open().filter_map(|index| operations[index].answer.as_ref().map(|answer| answer.0)).min() else {
            return Finding::Linearizable;
        };
        // Pushed in reverse, so that the earliest call is tried first: mostly right.
        for index in open().take_while(|&index| operations[index].called < bound).collect::<Vec<_>>().into_iter().rev() {
            let (next, answer) = model.apply(&state, &operations[index].call);
            if operations[index].answer.as_ref().is_some_and(|(_, seen)| *seen != answer) {
                continue;
            }
            if operations[index].answer.is_none() && next == state {
                continue; // Without an effect an unanswered operation explains nothing.
            }
            let mut with = done;
            with[index / 64] |= 1 << (index % 64);
            if seen.insert((with, next.clone())) {
                stack.push((with, next));
            }
        }
        if seen.len() > STATES_MAX {
            return Finding::GaveUp;
        }
    }
    Finding::Violation
}

/// The shortest beginning of a history that no order explains, an operation a line: what was seen too late or too early comes last.
pub fn told<M: Model>(model: &M, initial: M::State, operations: &[Operation<M::Call, M::Answer>]) -> String {
    let ends = operations.iter().filter_map(|operation| operation.answer.as_ref().map(|answer| answer.0)).collect::<BTreeSet<u64>>();
    let until = |end: u64| {
        let begun = operations.iter().filter(|operation| operation.called <= end).cloned();
        let cut =
            |operation: Operation<M::Call, M::Answer>| Operation { answer: operation.answer.filter(|answer| answer.0 <= end), ..operation };
        begun.map(cut).collect::<Vec<_>>()
    };
    let shortest = ends.into_iter().map(until).find(|history| check(model, initial.clone(), history) == Finding::Violation);
    let lines = shortest.unwrap_or_else(|| operations.to_vec()).into_iter().map(|Operation { call, called, answer }| match answer {
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
}
