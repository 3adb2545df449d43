//! Copies of chunks where they should be: which ones this node is to make, how fast, and telling the namespace that they are made.
//!
//! Every node applies the log, so every node sees all records and finds its own part by a pure function of them and the cluster map;
//! nobody hands out work. Level-triggered: whatever is lost, late or doubled, the next walk over the records finds what is still
//! wanting. Pure tables and clocks told from outside; the node around them sends and receives.

mod announcements;
mod budget;
mod planner;

#[cfg(test)]
mod tests;

pub use announcements::Announcements;
pub use budget::Budget;
pub use planner::{Here, Planner, Survey, Task, room_needed};
