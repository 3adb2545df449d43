//! A token bucket that caps bulk traffic, to show what many weak nodes do together.

use std::time::Duration;

use crate::time::Time;

/// Bytes that are worth a system call; with fewer at hand one waits.
const QUANTUM_BYTES: u64 = 64 << 10;

/// Bytes per second, both directions together.
#[derive(Clone, Debug)]
pub struct RateMeter {
    /// Bytes per second, at least 1.
    rate: u64,
    /// Most bytes that idleness saves up: 20 ms worth, and at least one quantum.
    burst: u64,
    /// Bytes that may pass now.
    tokens: u64,
    /// Up to when `tokens` has been counted.
    refilled: Time,
}

impl RateMeter {
    /// A meter that starts with its burst.
    pub fn new(bytes_per_second: u64, now: Time) -> Self {
        let rate = bytes_per_second.max(1);
        let burst = (rate / 50).max(QUANTUM_BYTES);
        RateMeter { rate, burst, tokens: burst, refilled: now }
    }

    /// Bytes that may pass now; 0 until a quantum has gathered.
    pub fn allowance(&mut self, now: Time) -> usize {
        let nanos = now.since(self.refilled).as_nanos();
        let added = nanos * u128::from(self.rate) / 1_000_000_000;
        if added >= u128::from(self.burst - self.tokens) {
            self.tokens = self.burst;
            self.refilled = now;
        } else if added > 0 {
            self.tokens += added as u64;
            // Only as much time as was turned into whole bytes, so that no fraction is lost.
            self.refilled = self.refilled + Duration::from_nanos((added * 1_000_000_000 / u128::from(self.rate)) as u64);
        }
        if self.tokens < QUANTUM_BYTES { 0 } else { self.tokens as usize }
    }

    /// Counts bytes that passed.
    pub fn take(&mut self, bytes: usize) {
        self.tokens = self.tokens.saturating_sub(bytes as u64);
    }

    /// When there will be an allowance again.
    pub fn ready_at(&self) -> Time {
        let missing = QUANTUM_BYTES.saturating_sub(self.tokens);
        let nanos = (u128::from(missing) * 1_000_000_000).div_ceil(u128::from(self.rate));
        self.refilled + Duration::from_nanos(nanos.min(u128::from(u64::MAX)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_to_its_rate() {
        let start = Time(5_000_000_000);
        let mut now = start;
        let mut meter = RateMeter::new(20 << 20, now);
        let mut passed = 0u64;
        while now.since(start) < Duration::from_secs(2) {
            let allowed = meter.allowance(now);
            if allowed == 0 {
                let ready = meter.ready_at();
                assert!(ready > now);
                now = ready;
                continue;
            }
            meter.take(allowed.min(50_000));
            passed += allowed.min(50_000) as u64;
        }
        let expected = 2 * (20u64 << 20);
        assert!(passed > expected - expected / 50, "{passed}");
        assert!(passed < expected + expected / 20, "{passed}");
    }
}
