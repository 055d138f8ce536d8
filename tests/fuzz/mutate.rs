//! Mutations that break readers: bits, numbers at their ends, lengths, repeated and missing parts, words of the format.

use std::ops::Range;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `n`; 0 where that is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// A part of `length` bytes, more often a short one.
    fn part(&mut self, length: usize) -> Range<usize> {
        let start = self.below(length + 1);
        let bits = self.below(9);
        start..(start + 1 + self.below(1 << bits)).min(length)
    }
}

/// Numbers as text where readers go wrong.
const NUMBERS: [&str; 16] = [
    "0",
    "-1",
    "1",
    "0.5",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e400",
    "NaN",
    "null",
];

/// The same as binary words.
const WORDS: [u64; 12] =
    [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 100_000_000, 0x7fff_ffff, 0xffff_ffff, 1 << 32, i64::MAX as u64, u64::MAX];

/// One to eight mutations of `base`; `other` is where parts come from, `words` are the format's.
pub fn mutate(random: &mut Random, base: &[u8], other: &[u8], words: &[&str], longest: usize) -> Vec<u8> {
    let mut bytes = base.to_vec();
    let bits = random.below(4);
    for _ in 0..=random.below(1 << bits) {
        step(random, &mut bytes, other, words);
        bytes.truncate(longest);
    }
    bytes
}

fn step(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    let at = random.below(bytes.len());
    let part = random.part(bytes.len());
    match random.below(14) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
        2 | 3 => {
            let value = *random.pick(&WORDS);
            let near = value.wrapping_add(random.below(3) as u64).wrapping_sub(1);
            let size = *random.pick(&[1, 2, 4, 8]);
            let word = if random.below(2) == 0 {
                near.to_le_bytes()[..size].to_vec()
            } else {
                near.to_be_bytes()[8 - size..].to_vec()
            };
            let end = (at + size).min(bytes.len());
            bytes.splice(at..end, word);
        }
        4 => bytes.truncate(at),
        5 => drop(bytes.drain(part)),
        6 => {
            let copy = bytes[part].to_vec();
            bytes.splice(at..at, copy);
        }
        7 => {
            let bits = random.below(12);
            let copy = bytes[part].repeat(1 + random.below(1 << bits));
            bytes.splice(at..at, copy);
        }
        8 => {
            let from = random.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend(&other[from..]);
        }
        9 => {
            let copy = other[random.part(other.len())].to_vec();
            bytes.splice(at..at, copy);
        }
        10 if !words.is_empty() => {
            let word = random.pick(words).bytes();
            bytes.splice(at..at, word);
        }
        11 if !words.is_empty() => {
            let word = random.pick(words).as_bytes();
            let end = (at + word.len()).min(bytes.len());
            bytes.splice(at..end, word.iter().copied());
        }
        _ => number(random, bytes),
    }
}

/// Puts another number in the place of one that stands there as text.
fn number(random: &mut Random, bytes: &mut Vec<u8>) {
    let from = random.below(bytes.len());
    let Some(start) = (from..bytes.len()).find(|&i| bytes[i].is_ascii_digit()) else { return };
    let end = (start..bytes.len()).find(|&i| !bytes[i].is_ascii_digit()).unwrap_or(bytes.len());
    let number = random.pick(&NUMBERS).bytes();
    bytes.splice(start..end, number);
}
