//! The order in which waiting requests begin.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

/// A waiting entry.
struct Entry<T> {
    id: u64,
    priority: i32,
    since: Instant,
    deadline: Option<Instant>,
    value: T,
}

/// Entries by priority, then by age.
pub(super) struct Queue<T> {
    entries: Vec<Entry<T>>,
    aging: Duration,
}

impl<T> Queue<T> {
    pub(super) fn new(aging: Duration) -> Self {
        Self { entries: Vec::new(), aging }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds an entry; ids are given in ascending order.
    pub(super) fn push(&mut self, id: u64, (priority, deadline): (i32, Option<Instant>), now: Instant, value: T) {
        self.entries.push(Entry { id, priority, since: now, deadline, value });
    }

    /// The priority that an entry has by now.
    fn rank(&self, entry: &Entry<T>, now: Instant) -> i64 {
        let waited = now.saturating_duration_since(entry.since);
        let steps = if self.aging.is_zero() { 0 } else { waited.as_nanos() / self.aging.as_nanos() };
        i64::from(entry.priority) + i64::try_from(steps).unwrap_or(i64::MAX / 2)
    }

    /// The key by which entries are in the order in which they are taken.
    fn order(&self, entry: &Entry<T>, now: Instant) -> (Reverse<i64>, u64) {
        (Reverse(self.rank(entry, now)), entry.id)
    }

    /// Takes the entry that is next.
    pub(super) fn pop(&mut self, now: Instant) -> Option<T> {
        let next = |(_, entry): &(usize, &Entry<T>)| self.order(entry, now);
        let (at, _) = self.entries.iter().enumerate().min_by_key(next)?;
        Some(self.entries.remove(at).value)
    }

    /// The entries in the order in which they would be taken now.
    pub(super) fn in_order(&self, now: Instant) -> impl Iterator<Item = &T> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|entry| self.order(entry, now));
        entries.into_iter().map(|entry| &entry.value)
    }

    /// Takes the entries whose deadline is past.
    pub(super) fn take_late(&mut self, now: Instant) -> Vec<T> {
        let late = |entry: &mut Entry<T>| entry.deadline.is_some_and(|deadline| deadline <= now);
        self.entries.extract_if(.., late).map(|entry| entry.value).collect()
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, id: u64) -> Option<T> {
        let at = self.entries.iter().position(|entry| entry.id == id)?;
        Some(self.entries.remove(at).value)
    }

    /// The number of entries that would be taken before this one now; none where it does not wait.
    pub(super) fn ahead(&self, id: u64, now: Instant) -> Option<usize> {
        let own = self.entries.iter().find(|entry| entry.id == id)?;
        let order = self.order(own, now);
        Some(self.entries.iter().filter(|entry| self.order(entry, now) < order).count())
    }

    /// Takes everything.
    pub(super) fn take_all(&mut self) -> Vec<T> {
        self.entries.drain(..).map(|entry| entry.value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_and_ages() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut queue = Queue::new(Duration::from_secs(10));
        for (id, priority, seconds) in [(0, 0, 0), (1, 2, 0), (2, 0, 1), (3, 2, 1), (4, 3, 25)] {
            queue.push(id, (priority, None), at(seconds), id);
        }
        assert_eq!([0, 1, 2, 3, 4].map(|id| queue.ahead(id, at(1)).unwrap()), [3, 1, 4, 2, 0]);
        assert_eq!(queue.in_order(at(1)).copied().collect::<Vec<_>>(), [4, 1, 3, 0, 2]);
        // 25 s later the first four have risen by two, and the last one, which is new, by none.
        assert_eq!(queue.pop(at(25)), Some(1));
        assert_eq!(queue.pop(at(25)), Some(3));
        assert_eq!((queue.ahead(4, at(25)), queue.ahead(0, at(25))), (Some(0), Some(1)));
        // A little later the oldest come in the order of their ages.
        assert_eq!([(); 3].map(|()| queue.pop(at(29))), [Some(4), Some(0), Some(2)]);
        assert_eq!((queue.pop(at(29)), queue.ahead(0, at(29))), (None, None));
    }

    /// A stream of higher priorities does not keep a request out for ever.
    #[test]
    fn no_starvation() {
        let begin = Instant::now();
        let mut queue = Queue::new(Duration::from_secs(1));
        queue.push(0, (0, None), begin, 0);
        let taken = (1..100u64).position(|i| {
            let now = begin + Duration::from_millis(100 * i);
            queue.push(i, (5, None), now, i);
            queue.pop(now) == Some(0)
        });
        assert_eq!(taken, Some(49));
    }

    #[test]
    fn deadlines_and_removal() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut queue = Queue::new(Duration::ZERO);
        for (id, deadline) in [(0, None), (1, Some(at(5))), (2, Some(at(3)))] {
            queue.push(id, (0, deadline), begin, id);
        }
        assert_eq!(queue.take_late(at(2)), [0u64; 0]);
        assert_eq!(queue.take_late(at(3)), [2]);
        assert_eq!((queue.remove(1), queue.remove(1), queue.len()), (Some(1), None, 1));
        assert_eq!(queue.take_all(), [0]);
    }
}
