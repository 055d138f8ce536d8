//! Hashes of weights: by them files are told to be the same.

use super::weight::{Weight, Weights};
use crate::parallel;
use xxhash_rust::xxh3::Xxh3;

/// The bytes of a tensor that a fingerprint reads in each of two places.
const SAMPLE: usize = 64;

impl Weights {
    /// A hash of all tensors: names, types, shapes and every byte; XXH3 of 128 bits.
    ///
    /// It reads every byte of the tensors: for a mapped file, from the disk.
    pub fn hash(&self) -> u128 {
        self.hash_by(|hasher, weight| hasher.update(weight.bytes()))
    }

    /// A hash of names, types and shapes of all tensors, and of a few bytes at the beginning and in the middle of each. Weights that
    /// differ elsewhere alone have the same.
    pub fn fingerprint(&self) -> u128 {
        self.hash_by(|hasher, weight| {
            let bytes = weight.bytes();
            for start in [0, bytes.len() / 2] {
                hasher.update(&bytes[start..bytes.len().min(start + SAMPLE)]);
            }
        })
    }

    fn hash_by(&self, add: impl Fn(&mut Xxh3, &Weight) + Sync) -> u128 {
        let tensors: Vec<_> = self.iter().collect();
        let mut hashes = vec![[0; 16]; tensors.len()];
        let hash = |(name, weight): (&str, &Weight)| {
            let mut hasher = Xxh3::new();
            let mut number = |n: usize| hasher.update(&(n as u64).to_le_bytes());
            number(name.len());
            // A view of other strides holds its elements in another order.
            [weight.shape(), weight.strides()].concat().into_iter().for_each(&mut number);
            number(weight.shape().len());
            hasher.update(name.as_bytes());
            hasher.update(weight.dtype().to_string().as_bytes());
            add(&mut hasher, weight);
            hasher.digest128().to_le_bytes()
        };
        let pairs = tensors.into_iter().zip(&mut hashes);
        parallel::for_each(usize::MAX, pairs, |(tensor, out)| *out = hash(tensor));
        let mut all = Xxh3::new();
        hashes.iter().for_each(|hash| all.update(hash));
        all.digest128()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;
    use crate::weights::MappedBytes;
    use std::sync::Arc;

    fn weights(change: impl Fn(&mut Vec<u8>), name: &str, shape: &[usize], dtype: DType) -> Weights {
        let mut bytes: Vec<u8> = (0..2400).map(|i| (i * 7 % 251) as u8).collect();
        change(&mut bytes);
        let mut weights = Weights::new("w");
        let weight = Weight::new(Arc::new(MappedBytes::owned(bytes)), 0, dtype, shape.to_vec(), name).unwrap();
        weights.insert(name, weight).unwrap();
        weights
    }

    /// Each part counts, where it counts.
    #[test]
    fn differences() {
        let one = || weights(|_| (), "a", &[20, 30], DType::F32);
        let other = |at: usize| weights(move |bytes| bytes[at] ^= 1, "a", &[20, 30], DType::F32);
        assert_eq!((one().hash(), one().fingerprint()), (one().hash(), one().fingerprint()));
        for at in [0, 63, 64, 1199, 1200, 1263, 1264, 2399] {
            assert_ne!(other(at).hash(), one().hash(), "{at}");
            let sampled = at < 64 || (1200..1264).contains(&at);
            assert_eq!(other(at).fingerprint() != one().fingerprint(), sampled, "{at}");
        }
        let half = |dtype| weights(|_| (), "a", &[20, 60], dtype);
        let all = [
            one(),
            weights(|_| (), "b", &[20, 30], DType::F32),
            weights(|_| (), "a", &[30, 20], DType::F32),
            weights(|_| (), "a", &[600], DType::F32),
            half(DType::F16),
            half(DType::BF16),
        ];
        for i in 0..all.len() {
            for j in 0..i {
                assert!(all[i].hash() != all[j].hash() && all[i].fingerprint() != all[j].fingerprint(), "{i} {j}");
            }
        }
        let mut transposed = Weights::new("w");
        transposed
            .insert("a", weights(|_| (), "a", &[30, 20], DType::F32).get("a").unwrap().transposed().unwrap())
            .unwrap();
        assert_ne!(transposed.hash(), one().hash());
    }
}
