//! Bulk copies: `cp.async.bulk` and `cp.reduce.async.bulk`.

use super::decoder::Decoder;
use super::hopper::{NOWHERE, integer, shared_space};
use super::opcode::{Decoded, Opcode};
use crate::asynchronous::{BulkOp, BulkReduce};
use crate::counts::InstructionKind;
use crate::instruction::{Address, Op, Reg};
use crate::parse::Operand;
use crate::space::StateSpace;

/// The side of a bulk copy.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Shared,
    Global,
}

fn side(m: &str) -> Option<Side> {
    match m {
        "global" => Some(Side::Global),
        _ => shared_space(m).map(|_| Side::Shared),
    }
}

/// The modifiers of a copy.
struct Form {
    /// Dimensions of a tensor; `None`: plain bytes.
    rank: Option<usize>,
    im2col: bool,
    to_shared: bool,
    from_shared: bool,
    multicast: bool,
    /// Whether the last operand is a cache policy.
    policy: bool,
    reduce: Option<BulkReduce>,
    element_type: Option<u8>,
}

impl Form {
    /// Takes the modifiers; `None` for a form that does not exist.
    fn take(op: &mut Opcode, reduction: bool) -> Option<Self> {
        let tensor = op.take("tensor");
        let rank = op.find(|m| m.strip_suffix('d').and_then(|n| n.parse::<usize>().ok()));
        let im2col = op.find(|m| matches!(m, "im2col" | "im2col_no_offs").then_some(())).is_some();
        op.take("tile");
        let policy = op.take("L2::cache_hint");
        let multicast = op.take("multicast::cluster");
        let (mbarrier, group) = (op.take("mbarrier::complete_tx::bytes"), op.take("bulk_group"));
        // Destination and source, in this order.
        let (to, from) = (op.find(side)?, op.find(side)?);
        let reduce = op.find(|m| {
            Some(match m {
                "add" => BulkReduce::Add,
                "min" => BulkReduce::Min,
                "max" => BulkReduce::Max,
                "and" => BulkReduce::And,
                "or" => BulkReduce::Or,
                "xor" => BulkReduce::Xor,
                _ => return None,
            })
        });
        op.take("noftz");
        let element_type = op.find(|m| {
            Some(match m {
                "u32" | "b32" => 2,
                "s32" => 3,
                "u64" | "b64" => 4,
                "s64" => 5,
                "f16" => 6,
                "f32" => 7,
                "bf16" => 10,
                _ => return None,
            })
        });
        let to_shared = to == Side::Shared;
        let sides = to != from || to_shared;
        let fits = sides && mbarrier == to_shared && group != mbarrier && reduction == reduce.is_some();
        (fits && tensor == rank.is_some()).then_some(Self {
            rank,
            im2col,
            to_shared,
            from_shared: to_shared && from == Side::Shared,
            multicast,
            policy,
            reduce,
            element_type: element_type.filter(|_| !tensor),
        })
    }
}

impl<'a> Decoder<'a> {
    /// Decodes a copy, or the commit or wait of groups.
    pub(super) fn bulk(&mut self, op: &mut Opcode<'a>, o: &[Operand<'a>]) -> Decoded {
        let reduction = op.take("reduce");
        if !(op.take("async") && op.take("bulk")) {
            return Err("cp.bulk without .async".to_owned());
        }
        if op.take("commit_group") {
            op.done()?;
            self.emit(Op::BulkCommit, InstructionKind::AsyncCopy);
            return Ok(());
        }
        if op.take("wait_group") {
            let read = op.take("read");
            op.done()?;
            let left = integer(o.first().ok_or("cp.async.bulk.wait_group without a number")?)?;
            self.emit(Op::BulkWait { left, read }, InstructionKind::AsyncCopy);
            return Ok(());
        }
        let form = Form::take(op, reduction).ok_or("cp.async.bulk of that form")?;
        op.done()?;
        let bulk = self.bulk_operands(&form, o)?.ok_or("cp.async.bulk with other operands")?;
        self.emit(Op::Bulk(Box::new(bulk)), InstructionKind::AsyncCopy);
        Ok(())
    }

    /// The operands of a copy; `None` where they do not fit its form.
    fn bulk_operands(&mut self, form: &Form, o: &[Operand<'a>]) -> Decoded<Option<BulkOp>> {
        let o = if form.policy { &o[..o.len().saturating_sub(1)] } else { o };
        let mut bulk = BulkOp {
            shared: NOWHERE,
            other: NOWHERE,
            tensor: form.rank.is_some(),
            im2col: form.im2col,
            from_shared: form.from_shared,
            size: Reg::None,
            coordinates: Vec::new(),
            offsets: Vec::new(),
            mbarrier: None,
            multicast: Reg::None,
            reduce: form.reduce,
            element_type: form.element_type,
        };
        let [first, second, rest @ ..] = o else { return Ok(None) };
        let (shared, other) = if form.to_shared { (first, second) } else { (second, first) };
        bulk.shared = self.address(shared, StateSpace::Shared)?.0;
        let mut rest = rest;
        if let Some(rank) = form.rank {
            (bulk.other, bulk.coordinates) = self.with_coordinates(other)?;
            if bulk.coordinates.len() != rank {
                return Ok(None);
            }
        } else {
            let space = if form.from_shared { StateSpace::Shared } else { StateSpace::Global };
            bulk.other = self.address(other, space)?.0;
            let [size, more @ ..] = rest else { return Ok(None) };
            (bulk.size, rest) = (Reg::B32(self.src32(size)?), more);
        }
        if form.to_shared {
            let [at, more @ ..] = rest else { return Ok(None) };
            (bulk.mbarrier, rest) = (Some(self.address(at, StateSpace::Shared)?.0), more);
        }
        if let (true, [Operand::Vector(list), more @ ..]) = (form.im2col, rest) {
            for offset in list {
                bulk.offsets.push(Reg::B16(self.src16(offset)?));
            }
            rest = more;
        }
        if form.multicast {
            let [mask, more @ ..] = rest else { return Ok(None) };
            (bulk.multicast, rest) = (Reg::B16(self.src16(mask)?), more);
        }
        Ok(rest.is_empty().then_some(bulk))
    }

    /// An address with coordinates: `[map, {x, y}]`.
    fn with_coordinates(&mut self, operand: &Operand<'a>) -> Decoded<(Address, Vec<Reg>)> {
        let Operand::Coordinates(address, list) = operand else {
            return Err("a tensor without coordinates".to_owned());
        };
        let mut coordinates = Vec::new();
        for c in list {
            coordinates.push(Reg::B32(self.src32(c)?));
        }
        Ok((self.address(address, StateSpace::Generic)?.0, coordinates))
    }
}
