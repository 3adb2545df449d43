//! Random file operations of two mounts: what can happen, what should come of it, and how it is done for real.

pub mod model;
pub mod ops;
pub mod real;

use std::time::{Duration, Instant};

use ops::Step;

/// Leaves out what a failure does not need: halves first, then less, as long as there is time. `fails` gives the step that went wrong.
#[allow(clippy::disallowed_methods)]
pub fn shrink(mut steps: Vec<Step>, within: Duration, mut fails: impl FnMut(&[Step]) -> Option<usize>) -> Vec<Step> {
    let end = Instant::now() + within;
    let mut part = steps.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        while at < steps.len() {
            if Instant::now() > end {
                return steps;
            }
            let mut fewer = steps.clone();
            fewer.drain(at..(at + part).min(steps.len()));
            match fails(&fewer) {
                Some(index) => {
                    fewer.truncate(index + 1);
                    steps = fewer;
                }
                None => at += part,
            }
        }
        part = if part == 1 { 0 } else { part.div_ceil(2) };
    }
    steps
}
