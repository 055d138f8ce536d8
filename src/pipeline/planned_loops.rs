//! The denoise loops that images of one size may run: one for each number of rows that may come together.

use super::denoise_plan::DenoisePlan;

/// The most images that share evaluations where nothing else is said.
pub(super) const MAX_IMAGES: usize = 8;

/// The loops of images that share evaluations. All have room for the longest prompt and the most references among them, so that one loop
/// serves all groups of as many rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedLoops {
    /// With the most rows of an image.
    plan: DenoisePlan,
    /// Whether there are images of one row beside those of two, or steps.
    mixed: bool,
}

impl PlannedLoops {
    /// The loops for images of a plan, which share evaluations with those of others where they can.
    pub(super) fn new<'a>(plan: &'a DenoisePlan, others: impl IntoIterator<Item = &'a DenoisePlan>) -> Self {
        let others: Vec<_> = others.into_iter().filter(|other| plan.joins(other)).collect();
        let rows = others.iter().map(|other| other.shape.batch).chain([plan.shape.batch]);
        let (most, least) = (rows.clone().max().unwrap_or(1), rows.min().unwrap_or(1));
        let mut shared = plan.shared(others);
        shared.shape.batch = most;
        Self { plan: shared, mixed: most != least }
    }

    /// The plan of an image of the most rows.
    pub(super) fn plan(&self) -> &DenoisePlan {
        &self.plan
    }

    /// The fewest rows of an image.
    pub(super) fn image_rows(&self) -> usize {
        if self.mixed { 1 } else { self.plan.shape.batch }
    }

    /// Whether what is planned for these does for others.
    pub(super) fn serve(&self, other: &Self) -> bool {
        let rows = self.mixed || !other.mixed && self.plan.shape.batch == other.plan.shape.batch;
        rows && self.plan.with_rows(other.plan.shape.batch) == other.plan
    }

    /// The plan by which a group of images runs; its own where it has no room in these loops.
    pub(super) fn widened(&self, group: &DenoisePlan) -> DenoisePlan {
        let wide = self.plan.with_rows(group.shape.batch);
        if wide.covers(group) { wide } else { group.clone() }
    }

    /// The plans of all loops where `most` images share an evaluation, of a request of so many; with `every` others join it.
    pub(super) fn plans(&self, most: usize, images: usize, every: bool) -> Vec<DenoisePlan> {
        let (each, numbers) = (self.plan.shape.batch, image_numbers(most, images, every));
        let mut rows: Vec<usize> = numbers.iter().map(|images| each * images).collect();
        if self.mixed {
            // At any step the images that are together may be of any kind.
            rows.extend(if every && most <= MAX_IMAGES { (1..=each * most.max(1)).collect() } else { numbers });
            rows.sort_unstable();
            rows.dedup();
        }
        rows.into_iter().map(|rows| self.plan.with_rows(rows)).collect()
    }
}

/// The numbers of images that evaluations have, of which `most` share one, for a request of so many. With `every` images join and leave,
/// so that each number may occur; where they are too many to be compiled ahead, the most alone.
fn image_numbers(most: usize, images: usize, every: bool) -> Vec<usize> {
    let at_once = most.min(images).max(1);
    match every {
        true if most <= MAX_IMAGES => (1..=most.max(1)).collect(),
        true => vec![most],
        false => [at_once, images % at_once].into_iter().filter(|number| *number > 0).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::denoise_plan::tests::plan;
    use super::*;

    #[test]
    fn numbers_of_images() {
        assert_eq!([1, 3].map(|most| image_numbers(most, 1, true)), [vec![1], vec![1, 2, 3]]);
        assert_eq!([0, MAX_IMAGES + 1].map(|most| image_numbers(most, 1, true)), [vec![1], vec![MAX_IMAGES + 1]]);
        let alone = |most, images| image_numbers(most, images, false);
        assert_eq!([alone(4, 1), alone(4, 3), alone(4, 4), alone(4, 8)], [vec![1], vec![3], vec![4], vec![4]]);
        assert_eq!([alone(4, 7), alone(1, 5), alone(2, 5)], [vec![4, 3], vec![1], vec![2, 1]]);
    }

    fn rows(loops: &PlannedLoops, most: usize, images: usize, every: bool) -> Vec<usize> {
        loops.plans(most, images, every).iter().map(|plan| plan.shape.batch).collect()
    }

    /// Two rows an image, one, and both: any sum of them where images join and leave, one kind after the other in a request alone.
    #[test]
    fn numbers_of_rows() {
        let (guided, unguided) = (plan(), plan().with_rows(1));
        let [two, one] = [&guided, &unguided].map(|plan| PlannedLoops::new(plan, []));
        let both = PlannedLoops::new(&unguided, [&guided, &unguided]);
        let every = |loops, most| rows(loops, most, 1, true);
        assert_eq!([&two, &one, &both].map(|loops| every(loops, 3)), [vec![2, 4, 6], vec![1, 2, 3], (1..=6).collect()]);
        assert_eq!([&two, &both].map(|loops| every(loops, MAX_IMAGES + 1)), [vec![18], vec![9, 18]]);
        assert_eq!((rows(&two, 2, 3, false), rows(&both, 2, 3, false)), (vec![4, 2], vec![1, 2, 4]));
        assert_eq!([both.serve(&two), both.serve(&one), two.serve(&both), two.serve(&one)], [true, true, false, false]);
    }

    /// More references and a longer prompt beside fewer: all loops have room for both, and a group runs in those.
    #[test]
    fn room_for_all() {
        let mut more = plan();
        more.shape.branches[0].tokens += 4;
        let mut longer = plan().with_rows(1);
        longer.shape.tokens *= 2;
        let loops = PlannedLoops::new(&more, [&longer]);
        for group in [&plan(), &more, &longer] {
            let wide = loops.widened(&group.with_rows(3));
            assert_eq!((wide.shape.batch, wide.shape.tokens), (3, longer.shape.tokens));
            assert_eq!(wide.shape.branches[0].tokens, more.shape.branches[0].tokens);
        }
        // Others keep their own.
        let mut apart = plan();
        apart.shape.width += 8;
        assert_eq!((PlannedLoops::new(&more, [&apart]).plan, loops.widened(&apart)), (more.clone(), apart));
        let mut longest = plan();
        longest.shape.tokens *= 3;
        assert_eq!(loops.widened(&longest), longest);
        assert!(!loops.serve(&PlannedLoops::new(&more, [])) && !PlannedLoops::new(&more, []).serve(&loops));
    }
}
