//! Mutated files and texts for everything that reads what a stranger may have written: no panic, no abort, bounded memory, errors of
//! one line without control characters, and the same answer twice.
//!
//! `cargo test --test fuzz` reads the seeds (tests/data/fuzz, and the images and weights of other tests) and a few thousand mutations
//! of them for each target, always the same. `make fuzz SECONDS=1200` goes on with each target for that long; there an input that takes
//! seconds is a finding, too. What fails is kept in target/tmp/fuzz; where the process itself ends, `TARGET.input` there is the cause.

#![allow(clippy::unwrap_used)]

mod driver;
#[path = "../common/memory.rs"]
mod memory;
mod mutate;
mod repair;
mod targets;
#[path = "../common/zip.rs"]
mod zip;

use driver::{Budget, Search, Target};
use std::cell::Cell;
use std::io::Write;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Every kind of fault is found and its input kept, once a mutation has two `z`.
#[test]
fn planted_faults() {
    let planted = |input: &[u8]| input.windows(2).any(|pair| pair == b"zz");
    let calls = Cell::new(0);
    let fault = |name: &str, of: &dyn Fn() -> driver::Answer| {
        let target = Target {
            name,
            seeds: vec![b"a seed".to_vec()],
            words: &["z"],
            longest: 64,
            repair: |_| None,
            read: Box::new(|input| if planted(input) { of() } else { Ok("sound".into()) }),
        };
        let finding = Search::new(&target, 1).run(&Budget::Executions(20_000)).unwrap_err();
        let kept = finding.split('`').nth(1).unwrap();
        assert!(planted(&std::fs::read(kept).unwrap()), "{finding}");
        finding
    };
    assert!(fault("planted_panic", &|| panic!("out of range")).contains("panicked: out of range"));
    assert!(
        fault("planted_memory", &|| Ok(format!("{}", std::hint::black_box(vec![0u8; 300 << 20]).len())))
            .contains("bytes at once")
    );
    assert!(fault("planted_escape", &|| Err("a \u{1b}[31m name".into())).contains("control characters"));
    let another = || {
        calls.set(calls.get() + 1);
        Ok(calls.get().to_string())
    };
    assert!(fault("planted_change", &another).contains("another answer"));
}

/// A record in a packed text is unpacked up to a size that records have, not to the quarter of a gigabyte that it could become.
#[test]
fn b42_packed_records() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bomb.png");
    let packed = |length: usize| {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(&vec![b' '; length]).unwrap();
        zlib.finish().unwrap()
    };
    let told = |kind: &[u8; 4], head: &[u8], length: usize| {
        std::fs::write(&file, repair::png_with(&[(*kind, [&b"braid\0"[..], head, &packed(length)].concat())])).unwrap();
        let (requests, held) = memory::peak(|| braid::cli::replay::requests(&file));
        assert!(held < 16 << 20, "{held} bytes");
        requests.unwrap_err().text(&braid::cli::flags::FlagNames).unwrap()
    };
    for (kind, head) in [(b"zTXt", &b"\0"[..]), (b"iTXt", b"\x01\0\0\0")] {
        let text = told(kind, head, 1 << 28);
        assert!(text.contains("bomb.png: its text `braid` is damaged") && text.contains("1048576 bytes"), "{text}");
        let text = told(kind, head, 1 << 20);
        assert!(text.contains("EOF while parsing"), "{text}");
    }
}
