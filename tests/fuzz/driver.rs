//! The search: mutations of the seeds, and of every input whose answer was of a new kind.

use crate::memory::peak;
use crate::mutate::{Random, mutate};
use std::any::Any;
use std::collections::HashSet;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The result of reading an input: a description of its value, or an error's text.
pub type Answer = Result<String, String>;

/// Reads an input.
pub type Read<'a> = dyn Fn(&[u8]) -> Answer + 'a;

/// A reader and what it reads.
pub struct Target<'a> {
    pub name: &'a str,
    pub seeds: Vec<Vec<u8>>,
    /// Words of the format.
    pub words: &'a [&'a str],
    /// The most bytes of an input.
    pub longest: usize,
    /// Makes lengths and checksums right again, so that a mutation reaches what lies behind them.
    pub repair: fn(&[u8]) -> Option<Vec<u8>>,
    pub read: Box<Read<'a>>,
}

pub enum Budget {
    Executions(u64),
    Time(Duration),
}

/// The bytes that a reader may hold at once. The honest inputs among the seeds take a few megabytes, images up to 50.
const MEMORY: u64 = 256 << 20;
/// The longest time for an input, in a long run; a loaded machine is slow, but not that slow.
const SLOW: Duration = Duration::from_secs(20);
/// Inputs kept besides the seeds.
const KEPT: usize = 4000;

pub struct Search<'a> {
    target: &'a Target<'a>,
    seed: u64,
    random: Random,
    pool: Vec<Vec<u8>>,
    /// The kinds of answers so far.
    kinds: HashSet<String>,
    executions: u64,
    slowest: Duration,
    most: u64,
    folder: PathBuf,
    /// The input that is read, for whoever finds the process gone.
    current: File,
    timed: bool,
}

/// Searches for as long as the environment says: `BRAID_FUZZ_SECONDS`, else some thousand executions. `BRAID_FUZZ_SEED` chooses
/// other mutations.
pub fn fuzz(target: &Target<'_>) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let time = number("BRAID_FUZZ_SECONDS").map(|seconds| Budget::Time(Duration::from_secs(seconds)));
    let mut search = Search::new(target, number("BRAID_FUZZ_SEED").unwrap_or(1));
    match search.run(&time.unwrap_or(Budget::Executions(3000))) {
        Ok(report) => println!("{report}"),
        Err(finding) => panic!("{finding}"),
    }
}

impl<'a> Search<'a> {
    pub fn new(target: &'a Target<'a>, seed: u64) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
        std::fs::create_dir_all(&folder).unwrap();
        Self {
            target,
            seed,
            random: Random(hash(target.name.as_bytes()) ^ seed),
            pool: Vec::new(),
            kinds: HashSet::new(),
            executions: 0,
            slowest: Duration::ZERO,
            most: 0,
            current: File::create(folder.join(format!("{}.input", target.name))).unwrap(),
            folder,
            timed: false,
        }
    }

    /// Reads the seeds, as they are and repaired, and mutations until the budget is used; the error is a finding.
    pub fn run(&mut self, budget: &Budget) -> Result<String, String> {
        let begin = Instant::now();
        self.timed = matches!(budget, Budget::Time(_));
        assert!(!self.target.seeds.is_empty(), "{}: no seeds", self.target.name);
        for seed in &self.target.seeds {
            let repaired = (self.target.repair)(seed);
            for input in [seed].into_iter().chain(&repaired) {
                self.check(input)?;
                self.pool.push(input.clone());
            }
        }
        let seeds = self.pool.len();
        while match budget {
            Budget::Executions(count) => self.executions < *count,
            Budget::Time(time) => begin.elapsed() < *time,
        } {
            let [base, other] = [(); 2].map(|()| self.random.below(self.pool.len()));
            let (base, other) = (&self.pool[base], &self.pool[other]);
            let mut input = mutate(&mut self.random, base, other, self.target.words, self.target.longest);
            if self.random.below(2) == 0
                && let Some(repaired) = (self.target.repair)(&input)
            {
                input = repaired;
            }
            if self.check(&input)? && self.pool.len() < seeds + KEPT {
                self.pool.push(input);
            }
        }
        let (name, executions, seconds) = (self.target.name, self.executions, begin.elapsed().as_secs_f64());
        let (kinds, slowest, most) = (self.kinds.len(), self.slowest.as_millis(), self.most >> 10);
        Ok(format!(
            "| {name} | {executions} | {seconds:.0} s | {kinds} kinds of answers | slowest {slowest} ms | at most {most} KiB |"
        ))
    }

    /// Reads an input twice; true where its answer is of a new kind, an error where something is wrong.
    fn check(&mut self, input: &[u8]) -> Result<bool, String> {
        self.executions += 1;
        self.current.set_len(input.len() as u64).unwrap();
        self.current.rewind().unwrap();
        self.current.write_all(input).unwrap();
        let begin = Instant::now();
        let read = || [(); 2].map(|()| (self.target.read)(input));
        let (answers, held) = peak(|| catch_unwind(AssertUnwindSafe(read)));
        let took = begin.elapsed();
        (self.slowest, self.most) = (self.slowest.max(took), self.most.max(held));
        let problem = match &answers {
            Err(panic) => Some(format!("panicked: {}", message(panic.as_ref()))),
            Ok([first, second]) if first != second => {
                Some(format!("another answer the second time: {first:?}, {second:?}"))
            }
            Ok([Err(text), _]) if text.contains(char::is_control) => Some(format!("control characters in {text:?}")),
            Ok(_) if held > MEMORY => Some(format!("{held} bytes at once")),
            Ok(_) if self.timed && took > SLOW => Some(format!("it took {took:?}")),
            Ok(_) => None,
        };
        if let Some(problem) = problem {
            return Err(self.finding(input, &problem));
        }
        Ok(answers.is_ok_and(|[answer, _]| self.kinds.insert(kind(&answer))))
    }

    /// Keeps the input and says where.
    fn finding(&self, input: &[u8], problem: &str) -> String {
        let path = self.folder.join(format!("{}-{:016x}", self.target.name, hash(input)));
        std::fs::write(&path, input).unwrap();
        let (seed, execution) = (self.seed, self.executions);
        format!(
            "{}: {problem}; the input is `{}` (seed {seed}, execution {execution})",
            self.target.name,
            path.display()
        )
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words")
}

/// The words of an answer, without numbers and without names from the input.
fn kind(answer: &Answer) -> String {
    let (Ok(text) | Err(text)) = answer;
    let mut quoted = false;
    let mut word = |c: &char| {
        quoted ^= *c == '`';
        !quoted && (c.is_ascii_alphabetic() || *c == ' ')
    };
    let words: String = text.chars().filter(|c| word(c)).take(400).collect();
    format!("{} {words}", answer.is_ok())
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
