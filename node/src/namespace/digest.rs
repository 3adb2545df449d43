//! A small fast hash for the state hash of the namespace: equal states give equal sums on every machine.
//!
//! Guards against divergence and corruption, not against an adversary.

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Folds words into 64 bits.
pub(super) struct Digest(u64);

fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x2d35_8dcc_aa6c_78a5) * u128::from(b ^ MULTIPLIER);
    (product as u64) ^ (product >> 64) as u64
}

impl Digest {
    pub fn new(tag: u64) -> Self {
        Digest(mix(tag, 1))
    }

    pub fn word(self, word: u64) -> Self {
        Digest(mix(self.0, word.wrapping_add(self.0.rotate_left(32))))
    }

    pub fn bytes(self, bytes: &[u8]) -> Self {
        let mut state = self.word(bytes.len() as u64).0;
        let mut pairs = bytes.chunks_exact(16);
        for pair in &mut pairs {
            let (low, high) = pair.split_at(8);
            state = mix(state ^ word_of(low), word_of(high)).wrapping_add(state.rotate_left(23));
        }
        let rest = pairs.remainder();
        let (low, high) = rest.split_at(rest.len().min(8));
        Digest(mix(state ^ word_of(low), word_of(high)))
    }

    pub fn end(self) -> u64 {
        mix(self.0, 1)
    }
}

/// Up to eight bytes, little-endian.
fn word_of(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_the_length_count() {
        let mut seen = std::collections::BTreeSet::new();
        for length in 0..40 {
            let mut bytes = vec![7u8; length];
            assert!(seen.insert(Digest::new(0).bytes(&bytes).end()));
            for position in 0..length {
                bytes[position] ^= 1;
                assert!(seen.insert(Digest::new(0).bytes(&bytes).end()));
                bytes[position] ^= 1;
            }
        }
    }
}
