//! The two clocks, read by drivers only.

use crate::time::Time;
use crate::types::Timestamp;

/// Nanoseconds since boot, suspend included: never steps, so deadlines and leases hold across a sleeping lid.
pub fn now() -> Time {
    let value = read(libc::CLOCK_BOOTTIME);
    Time(value.tv_sec as u64 * 1_000_000_000 + value.tv_nsec as u64)
}

/// Wall-clock time, for file times only.
pub fn wall() -> Timestamp {
    let value = read(libc::CLOCK_REALTIME);
    Timestamp { seconds: value.tv_sec, nanos: value.tv_nsec as u32 }
}

fn read(clock: libc::clockid_t) -> libc::timespec {
    let mut value = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `value` is a valid timespec for the call to fill.
    let result = unsafe { libc::clock_gettime(clock, &mut value) };
    assert_eq!(result, 0, "Linux has had both clocks since 2.6.39");
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_run() {
        let earlier = now();
        assert!(now() >= earlier);
        assert!(wall().seconds > 1_600_000_000);
    }
}
