//! Log lines about peers that are turned away, bounded: who floods us with garbage must not flood the log.

use std::time::Duration;

use crate::limits;
use crate::status::Status;
use crate::time::Time;

const WINDOW: Duration = Duration::from_secs(1);

/// Counts lines per second.
#[derive(Debug, Default)]
pub struct Refusals {
    window: Time,
    lines: u32,
    /// Lines not written since the last one that was.
    suppressed: u64,
}

impl Refusals {
    /// Says that a connection was closed, and why.
    pub fn log(&mut self, now: Time, peer: &str, reason: Status) {
        let Some(suppressed) = self.admit(now) else { return };
        tracing::warn!(peer, reason = ?reason, detail = %reason, suppressed, "closed a connection");
    }

    /// Whether a line may be written, and how many were not before it.
    fn admit(&mut self, now: Time) -> Option<u64> {
        if now.since(self.window) >= WINDOW {
            self.window = now;
            self.lines = 0;
        }
        if self.lines >= limits::REFUSAL_LINES_PER_SECOND_MAX {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_written() {
        let mut refusals = Refusals::default();
        let now = Time(7_000_000_000);
        let written = (0..1000).filter(|_| refusals.admit(now).is_some()).count();
        assert_eq!(written, limits::REFUSAL_LINES_PER_SECOND_MAX as usize);
        assert_eq!(refusals.admit(now + WINDOW), Some(1000 - written as u64));
    }
}
