//! The Mersenne twister mt19937 with 32-bit words.
//!
//! Source: M. Matsumoto and T. Nishimura, "Mersenne Twister", ACM TOMACS 8 (1998), with the initialisation of 2002.

use std::fmt;

const N: usize = 624;
const M: usize = 397;

/// The twister: 624 words of state.
#[derive(Clone)]
pub struct Mt19937 {
    state: Box<[u32; N]>,
    next: usize,
}

impl Mt19937 {
    /// Seeds the twister with one word.
    pub fn new(seed: u32) -> Self {
        let mut state = Box::new([seed; N]);
        for i in 1..N {
            let before = state[i - 1];
            state[i] = (before ^ before >> 30).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    /// Draws the next word.
    pub fn next_word(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    fn twist(&mut self) {
        let s = &mut self.state;
        for i in 0..N {
            let y = s[i] & 0x8000_0000 | s[(i + 1) % N] & 0x7fff_ffff;
            let twisted = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            s[i] = s[(i + M) % N] ^ y >> 1 ^ twisted;
        }
        self.next = 0;
    }
}

impl fmt::Debug for Mt19937 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mt19937").field("next", &self.next).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C++ standard demands (rand.predef): the 10,000th word of the default seed 5489 is 4123659995.
    #[test]
    fn ten_thousandth_word() {
        let mut words = Mt19937::new(5489);
        assert_eq!(words.next_word(), 3_499_211_612);
        let last = (1..10_000).map(|_| words.next_word()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
