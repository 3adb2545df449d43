//! How much repair a node may carry: everything while no client uses it, a steady share of its time while one does.

use std::time::Duration;

use dfs::limits::{REPAIR_CLIENT_QUIET, REPAIR_RATE_BUSY};
use dfs::time::Time;

/// A token bucket that only counts while clients are about.
#[derive(Debug)]
pub struct Budget {
    /// Bytes per second beside clients.
    rate: u64,
    /// Bytes that may pass; below 0 after a chunk that was larger than what was left.
    tokens: i64,
    filled: Time,
    /// When a client last moved bulk data here.
    client: Option<Time>,
}

impl Budget {
    /// `cap`: what the node's bulk traffic is limited to anyway, bytes per second; repair then gets a quarter of it beside clients.
    pub fn new(cap: Option<u64>) -> Self {
        let rate = cap.map_or(REPAIR_RATE_BUSY, |cap| (cap / 4).clamp(1, REPAIR_RATE_BUSY));
        Budget { rate, tokens: 0, filled: Time(0), client: None }
    }

    /// A client moves bulk data.
    pub fn on_client(&mut self, now: Time) {
        self.client = Some(now);
    }

    /// Whether a chunk of that length may pass now; if so it is counted.
    pub fn admit(&mut self, now: Time, length: u64) -> bool {
        if self.client.is_none_or(|at| now.since(at) > REPAIR_CLIENT_QUIET) {
            return true;
        }
        let earned = u128::from(self.rate) * now.since(self.filled).as_nanos() / Duration::from_secs(1).as_nanos();
        // At most a tenth of a second is saved up, so that a pause is not followed by a burst.
        self.tokens = self.tokens.saturating_add(earned.min(u128::from(self.rate)) as i64).min(self.rate as i64 / 10);
        self.filled = now;
        if self.tokens < 0 {
            return false;
        }
        self.tokens -= length as i64;
        true
    }

    /// How long to wait after a refusal.
    pub fn patience(&self) -> Duration {
        let nanos = u128::from(self.tokens.unsigned_abs()) * Duration::from_secs(1).as_nanos() / u128::from(self.rate);
        Duration::from_nanos(nanos as u64).clamp(Duration::from_millis(1), REPAIR_CLIENT_QUIET)
    }
}
