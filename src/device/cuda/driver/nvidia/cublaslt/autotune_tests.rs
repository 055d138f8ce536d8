//! The choice of algorithms on a library that is not there: it suggests words and says their times.

use super::*;
use crate::device::cuda::driver::gemm::{GemmEpilogue, MatrixRef};

/// Suggestions with their times, and what was asked.
#[derive(Default)]
struct Fake {
    suggested: Vec<(Algorithm, Vec<f32>)>,
    /// Algorithms that the library does not take.
    refused: Vec<Algorithm>,
    /// Algorithms that it takes and does not run.
    broken: Vec<Algorithm>,
    /// The error of the first trial.
    error: Option<Error>,
    asked: Vec<usize>,
    tried: Vec<Algorithm>,
}

fn algorithm(number: u64) -> Algorithm {
    std::array::from_fn(|word| number << (8 * word) | 0xf0)
}

/// Suggests an algorithm for each time, numbered from 0.
fn fake(times: &[f32]) -> Fake {
    let suggested = (0..).zip(times).map(|(number, time)| (algorithm(number), vec![*time; 3])).collect();
    Fake { suggested, ..Fake::default() }
}

impl GemmLibrary for Fake {
    fn suggest(&mut self, most: usize) -> Result<Vec<Algorithm>> {
        self.asked.push(most);
        Ok(self.suggested.iter().map(|(algorithm, _)| *algorithm).take(most).collect())
    }

    fn takes(&mut self, algorithm: &Algorithm) -> bool {
        !self.refused.contains(algorithm)
    }

    fn time(&mut self, algorithm: &Algorithm) -> Result<Option<Vec<f32>>> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        self.tried.push(*algorithm);
        let found = self.suggested.iter().find(|(suggested, _)| suggested == algorithm).unwrap();
        Ok((!self.broken.contains(algorithm)).then(|| found.1.clone()))
    }
}

fn gemm(batch: usize) -> Gemm {
    let matrix =
        |leading| MatrixRef { data: 256 * batch as u64, leading, stride: if batch > 1 { 1024 * leading } else { 0 } };
    Gemm {
        dtype: DType::F16,
        m: 640,
        n: 1024,
        k: 320,
        batch,
        transpose_a: true,
        transpose_b: false,
        a: matrix(320),
        b: matrix(328),
        d: matrix(640),
        out_f32: false,
        epilogue: GemmEpilogue::BiasResidual(64 * batch as u64, matrix(648)),
    }
}

fn shape() -> GemmShape {
    GemmShape::of(&gemm(1))
}

/// The choices of a process that begins now.
fn process(cache: &Cache) -> Autotuner {
    Autotuner::new("a device".into(), cache.clone(), true)
}

fn folder() -> (tempfile::TempDir, Cache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path());
    (folder, cache)
}

#[test]
fn batch_and_addresses_outside_key() {
    assert_eq!(GemmShape::of(&gemm(1)), GemmShape::of(&gemm(4)));
    let key = process(&Cache::at("/nowhere")).key(&shape());
    let text = "a device; 8 suggestions; f16 to f16, 640x1024x320 tn, columns 320 328 648 640, bias, residual";
    assert_eq!(String::from_utf8(key).unwrap(), text);
}

#[test]
fn everything_else_in_key() {
    let changes: [fn(&mut Gemm); 13] = [
        |_| {},
        |g| g.dtype = DType::BF16,
        |g| g.m = 641,
        |g| g.n = 641,
        |g| g.k = 641,
        |g| g.transpose_a = false,
        |g| g.transpose_b = true,
        |g| g.a.leading = 641,
        |g| g.b.leading = 641,
        |g| g.d.leading = 641,
        |g| g.out_f32 = true,
        |g| g.epilogue = GemmEpilogue::Bias(1),
        |g| g.epilogue = GemmEpilogue::Residual(MatrixRef { leading: 648, ..MatrixRef::default() }),
    ];
    let shapes = changes.map(|change| {
        let mut gemm = gemm(1);
        change(&mut gemm);
        GemmShape::of(&gemm)
    });
    for (i, one) in shapes.iter().enumerate() {
        for other in &shapes[..i] {
            assert_ne!(one, other);
            assert_ne!(one.to_string(), other.to_string());
        }
    }
}

#[test]
fn fastest_algorithm_for_every_batch() {
    let (_folder, cache) = folder();
    let (choice, mut library) = (process(&cache), fake(&[5.0, 3.0, 4.0]));
    let alone = choice.choose(GemmShape::of(&gemm(1)), &mut library).unwrap();
    assert_eq!(alone, algorithm(1));
    assert_eq!((library.asked.len(), library.tried.len()), (1, 3));
    // Other times, which would give another choice.
    let mut later = fake(&[1.0, 3.0, 4.0]);
    assert_eq!(choice.choose(GemmShape::of(&gemm(4)), &mut later).unwrap(), alone);
    assert!(later.asked.is_empty() && later.tried.is_empty());
}

#[test]
fn choice_from_disk() {
    let (_folder, cache) = folder();
    let chosen = process(&cache).choose(shape(), &mut fake(&[5.0, 3.0])).unwrap();
    let mut library = fake(&[1.0, 3.0]);
    assert_eq!(process(&cache).choose(shape(), &mut library).unwrap(), chosen);
    assert!(library.asked.is_empty() && library.tried.is_empty());
    // Another device or library tries its own.
    let other = Autotuner::new("another device".into(), cache, true);
    assert_eq!(other.choose(shape(), &mut library).unwrap(), algorithm(0));
}

#[test]
fn damaged_or_foreign_entry() {
    let (folder, cache) = folder();
    process(&cache).choose(shape(), &mut fake(&[5.0, 3.0])).unwrap();
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for bytes in [&flipped[..], &whole[..whole.len() / 2], b"", b"something else"] {
        std::fs::write(&file, bytes).unwrap();
        let mut library = fake(&[1.0, 3.0]);
        assert_eq!(process(&cache).choose(shape(), &mut library).unwrap(), algorithm(0));
        assert_eq!(library.tried.len(), 2);
        // And kept again.
        assert_eq!(process(&cache).choose(shape(), &mut fake(&[])).unwrap(), algorithm(0));
    }
    // Whole files whose value is no algorithm, and one that the library does not take.
    let (choice, of_another) = (process(&cache), algorithm(77));
    let long = encode(&algorithm(1)) + "0";
    for value in ["", "xyz", &long, &long[..127], &long[..128].to_uppercase(), &encode(&of_another)] {
        assert!(cache.store(FILE, &choice.key(&shape()), value.as_bytes()));
        let mut library = Fake { refused: vec![of_another], ..fake(&[5.0, 3.0]) };
        assert_eq!(process(&cache).choose(shape(), &mut library).unwrap(), algorithm(1), "{value}");
        assert_eq!(library.tried.len(), 2, "{value}");
    }
}

#[test]
fn failing_algorithm() {
    let (_folder, cache) = folder();
    let mut library = Fake { broken: vec![algorithm(1)], ..fake(&[5.0, 1.0, 3.0, f32::NAN, -1.0]) };
    library.suggested.push((algorithm(5), Vec::new()));
    assert_eq!(process(&cache).choose(shape(), &mut library).unwrap(), algorithm(2));
}

#[test]
fn all_algorithms_fail() {
    let (folder, cache) = folder();
    let mut library = Fake { broken: vec![algorithm(0), algorithm(1)], ..fake(&[5.0, 1.0]) };
    assert_eq!(process(&cache).choose(shape(), &mut library).unwrap(), algorithm(0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let error = process(&cache).choose(shape(), &mut fake(&[])).unwrap_err().to_string();
    assert!(error.contains("no algorithm for f16 to f16, 640x1024x320"), "{error}");
}

#[test]
fn ties() {
    let (_folder, cache) = folder();
    let of = |times: &[f32]| fastest(&fake(times).suggested.iter().map(|s| s.0).collect::<Vec<_>>(), &mut fake(times));
    assert_eq!(of(&[10.0, 10.0, 10.0]).unwrap(), Some(algorithm(0)));
    // 2 % are a tie with the shortest, not with one another.
    assert_eq!(of(&[10.1, 9.95, 10.0]).unwrap(), Some(algorithm(0)));
    assert_eq!(of(&[10.3, 10.15, 10.0]).unwrap(), Some(algorithm(1)));
    assert_eq!(of(&[10.3, 10.25, 10.0]).unwrap(), Some(algorithm(2)));
    assert_eq!(process(&cache).choose(shape(), &mut fake(&[10.1, 10.0])).unwrap(), algorithm(0));
    // A slow round does not count.
    assert_eq!(smallest(vec![9.0, f32::NAN, -1.0, 1.0, 2.0]), Some(1.0));
    assert_eq!(smallest(vec![]), None);
}

#[test]
fn trials_or_cache_disabled() {
    let (folder, cache) = folder();
    let kept = process(&cache).choose(shape(), &mut fake(&[5.0, 3.0])).unwrap();
    assert_eq!(kept, algorithm(1));
    let off = Autotuner::new("a device".into(), cache, false);
    let mut library = fake(&[5.0, 3.0]);
    assert_eq!(off.choose(shape(), &mut library).unwrap(), algorithm(0));
    assert_eq!((library.asked, library.tried.len()), (vec![1], 0));
    // A folder that cannot be made: a trial shows it, and the next shape is not tried.
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let choice = process(&Cache::at(file.join("inner")));
    assert_eq!(choice.choose(shape(), &mut fake(&[5.0, 3.0])).unwrap(), algorithm(0));
    let mut library = fake(&[5.0, 3.0]);
    let next = GemmShape { bias: false, ..shape() };
    assert_eq!(choice.choose(next, &mut library).unwrap(), algorithm(0));
    assert!(library.tried.is_empty());
}

#[test]
fn out_of_memory_and_lost_device() {
    let (folder, cache) = folder();
    let short = Error::Memory { stage: "the GPU", need: 1, have: 0, hint: "".into() };
    let choice = process(&cache);
    let mut library = Fake { error: Some(short), ..fake(&[5.0, 3.0]) };
    assert_eq!(choice.choose(shape(), &mut library).unwrap(), algorithm(0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    // This process keeps to it.
    assert_eq!(choice.choose(shape(), &mut fake(&[5.0, 3.0])).unwrap(), algorithm(0));
    let fault = Error::Fault { device: "cuda".into(), call: "x".into(), what: "y".into(), lost: true };
    let mut library = Fake { error: Some(fault), ..fake(&[5.0, 3.0]) };
    assert!(matches!(process(&cache).choose(shape(), &mut library), Err(Error::Fault { lost: true, .. })));
}

#[test]
fn the_setting() {
    assert!(wanted(None) && wanted(Some(OsStr::new("1"))) && wanted(Some(OsStr::new(""))));
    assert!(!wanted(Some(OsStr::new("0"))) && !wanted(Some(OsStr::new("OFF"))));
}

#[test]
fn byte_order() {
    let algorithm = [0x0807_0605_0403_0201, 0, 0, 0, 0, 0, 0, 0xff00_0000_0000_0000];
    let text = encode(&algorithm);
    assert!(text.starts_with("0102030405060708") && text.ends_with("ff") && text.len() == 128);
    assert_eq!(decode(text.as_bytes()), Some(algorithm));
}
