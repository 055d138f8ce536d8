//! Smoothing of progressive files whose last scans are missing, as libjpeg-turbo does it: low frequencies that are not
//! known are estimated from the DC values of the 5x5 blocks around.

use super::frame::{Component, Frame};
use super::tables::ZIGZAG;

/// Weights of 25 DC values, row by row.
type Kernel = [[i32; 5]; 5];

/// The precision at which each component is known.
pub(super) struct Smoothing {
    /// The rows of units of the image.
    rows: usize,
    /// The last row of units that the last scan has.
    last_good: usize,
    scans: usize,
}

impl Smoothing {
    /// Returns `None` where all is known, or nothing could be estimated.
    pub(super) fn new(frame: &Frame, last_good: usize, scans: usize) -> Option<Self> {
        let usable = |c: &Component| {
            let steps = c.steps.is_some_and(|steps| ZIGZAG[..10].iter().all(|&at| steps[usize::from(at)] != 0));
            steps && c.missing_bits[0][0] >= 0
        };
        let useful = frame.components.iter().any(|c| c.missing_bits[0][1..10].iter().any(|&bits| bits != 0));
        let smooth = frame.progressive && useful && frame.components.iter().all(usable);
        smooth.then_some(Self { rows: frame.mcus.1, last_good, scans })
    }

    /// Estimates what is missing of the block at (x, y).
    pub(super) fn block(
        &self,
        component: &Component,
        steps: &[u16; 64],
        blocks: &[[i16; 64]],
        columns: usize,
        (x, y): (usize, usize),
    ) -> [i16; 64] {
        let around = self.around(component, blocks, columns, (x, y));
        let missing = match y / component.v > self.last_good {
            false => &component.missing_bits[0],
            true if self.scans > 1 => &component.missing_bits[1],
            true => &[-1; 64],
        };
        let only_dc = missing[1..10].iter().all(|&bits| bits == -1);
        let dc_step = i64::from(steps[0]);
        let estimate = |kernel: &Kernel, step: u16| {
            let weights = kernel.iter().flatten();
            let sum: i32 = weights.zip(around.iter().flatten()).map(|(weight, dc)| weight * dc).sum();
            let (number, step) = (dc_step * i64::from(sum), i64::from(step));
            (((step << 7) + number.abs()) / (step << 8), number < 0)
        };
        let mut block = blocks[y * columns + x];
        let kernels = if only_dc { &WITHOUT_AC[..] } else { &WITH_AC[..] };
        for (k, kernel) in kernels.iter().enumerate().map(|(i, kernel)| (i + 1, kernel)) {
            let at = usize::from(ZIGZAG[k]);
            if missing[k] == 0 || block[at] != 0 {
                continue;
            }
            let (mut value, negative) = estimate(kernel, steps[at]);
            if missing[k] > 0 {
                value = value.min((1 << missing[k]) - 1);
            }
            block[at] = if negative { -value } else { value } as i16;
        }
        if only_dc {
            let (value, negative) = estimate(&AVERAGE, steps[0]);
            block[0] = if negative { -value } else { value } as i16;
        }
        block
    }

    /// The DC values around a block. Rows beyond the edge repeat by the rules of libjpeg, which counts them by the height
    /// of the last row of units.
    fn around(&self, component: &Component, blocks: &[[i16; 64]], columns: usize, (x, y): (usize, usize)) -> Kernel {
        let (unit, v) = (y / component.v, component.v);
        let height = if unit + 1 == self.rows { (component.blocks.1 - 1) % v + 1 } else { v };
        let (counted, total) = (unit * height + y % v, height * self.rows);
        let last = component.blocks.0 - 1;
        let above = |n: usize| if counted >= n { n } else { counted };
        let below = |n: usize| if counted + n < total { n } else { total - 1 - counted };
        let rows = [y - above(2), y - above(1), y, y + below(1), y + below(2)];
        let xs = [x.saturating_sub(2), x.saturating_sub(1), x, (x + 1).min(last), (x + 2).min(last)];
        rows.map(|row| xs.map(|x| i32::from(blocks[row * columns + x][0])))
    }
}

const NONE: [i32; 5] = [0; 5];

/// The kernels of the first nine AC coefficients in zigzag order, where none of them is known.
const WITHOUT_AC: [Kernel; 9] = [
    [[-1, -1, 0, 1, 1], [-3, 13, 0, -13, 3], [-3, 38, 0, -38, 3], [-3, 13, 0, -13, 3], [-1, -1, 0, 1, 1]],
    [[-1, -3, -3, -3, -1], [-1, 13, 38, 13, -1], NONE, [1, -13, -38, -13, 1], [1, 3, 3, 3, 1]],
    [[0, 0, 1, 0, 0], [0, 2, 7, 2, 0], [0, -5, -14, -5, 0], [0, 2, 7, 2, 0], [0, 0, 1, 0, 0]],
    [[-1, 0, 0, 0, 1], [0, 9, 0, -9, 0], NONE, [0, -9, 0, 9, 0], [1, 0, 0, 0, -1]],
    [NONE, [0, 2, -5, 2, 0], [1, 7, -14, 7, 1], [0, 2, -5, 2, 0], NONE],
    [NONE, [0, 1, 0, -1, 0], [0, 2, 0, -2, 0], [0, 1, 0, -1, 0], NONE],
    [NONE, [0, 1, -3, 1, 0], NONE, [0, -1, 3, -1, 0], NONE],
    [NONE, [0, 1, 0, -1, 0], [0, -3, 0, 3, 0], [0, 1, 0, -1, 0], NONE],
    [NONE, [0, 1, 2, 1, 0], NONE, [0, -1, -2, -1, 0], NONE],
];

/// The kernels of the first five, where some are known.
const WITH_AC: [Kernel; 5] = [
    [NONE, NONE, [-7, 50, 0, -50, 7], NONE, NONE],
    [[0, 0, -7, 0, 0], [0, 0, 50, 0, 0], NONE, [0, 0, -50, 0, 0], [0, 0, 7, 0, 0]],
    [[0, 0, -1, 0, 0], [0, 0, 13, 0, 0], [0, 0, -24, 0, 0], [0, 0, 13, 0, 0], [0, 0, -1, 0, 0]],
    [[0, -1, 0, 1, 0], [-1, 10, 0, -10, 1], NONE, [1, -10, 0, 10, -1], [0, 1, 0, -1, 0]],
    [NONE, NONE, [-1, 13, -24, 13, -1], NONE, NONE],
];

/// The kernel of the DC value, where no AC coefficient is known.
const AVERAGE: Kernel =
    [[-2, -6, -8, -6, -2], [-6, 6, 42, 6, -6], [-8, 42, 152, 42, -8], [-6, 6, 42, 6, -6], [-2, -6, -8, -6, -2]];
