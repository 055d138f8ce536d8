//! Rows of a product's operands, rounded once for all panels that read them.

use crate::device::cpu::fp_math::Operands;
use crate::device::cpu::op::OpRun;

/// Bytes of rounded rows, at most.
const MAX_BYTES: usize = 64 << 20;
/// Rows that are rounded as one item.
const ITEM: usize = 16;

/// The rows of one or two sources in words, one source after the other, in the memory that threads share.
pub(super) struct RoundedRows {
    operands: Operands,
    /// Rows of each source.
    rows: usize,
    channels: [usize; 2],
    /// Words from one row to the next.
    strides: [usize; 2],
}

impl RoundedRows {
    /// The rows of sources of the shape `source`, but for their `channels`; none where they are taken as they are, or too large.
    pub(super) fn new(operands: Operands, source: &[usize], channels: [usize; 2]) -> Option<Self> {
        let rows = source.iter().product::<usize>() / channels[0].max(1);
        // Never a power of two, so that twelve rows lie in different sets of a cache.
        let strides = channels.map(|c| if c == 0 { 0 } else { operands.words(c).next_multiple_of(32) + 16 });
        let rounded = Self { operands, rows, channels, strides };
        (operands != Operands::F32 && rounded.floats() * 4 <= MAX_BYTES).then_some(rounded)
    }

    /// Words from one row to the next, of each source.
    pub(super) fn strides(&self) -> [usize; 2] {
        self.strides
    }

    /// Floats of shared memory.
    pub(super) fn floats(&self) -> usize {
        self.rows * (self.strides[0] + self.strides[1])
    }

    /// The first word of a source's channel `channel`, an even one, in its first row.
    pub(super) fn first(&self, run: &OpRun<'_>, source: usize, channel: usize) -> *mut f32 {
        let before = self.rows * self.strides[..source].iter().sum::<usize>();
        // SAFETY: the shared memory has `floats`.
        unsafe { run.scratch.shared().add(before + self.operands.words(channel)) }
    }

    /// Rounds all rows.
    ///
    /// # Safety
    /// As [`crate::device::cpu::op::CpuOp::run`].
    pub(super) unsafe fn round(&self, run: &OpRun<'_>) {
        for (source, &channels) in self.channels.iter().enumerate().filter(|(_, c)| **c > 0) {
            let words = self.operands.words(channels);
            run.pool.run(self.rows.div_ceil(ITEM), &|item, _| {
                for row in item * ITEM..self.rows.min((item + 1) * ITEM) {
                    // SAFETY: the row exists in the operand, and in the shared memory, where one item writes it.
                    unsafe {
                        let from = std::slice::from_raw_parts(run.operand(source).add(row * channels), channels);
                        let to = self.first(run, source, 0).add(row * self.strides[source]);
                        self.operands.pack_row(from, std::slice::from_raw_parts_mut(to, words));
                    }
                }
            });
        }
    }
}
