//! Operands: names, numbers and addresses of the text as registers and constants.

use super::decoder::{DYNAMIC, Decoder, Name};
use super::opcode::Decoded;
use crate::counts::InstructionKind;
use crate::instruction::{Address, CONST, NONE, Op, Pred, Reg, SpecialRegister};
use crate::kernel::Const64;
use crate::parse::{Number, Operand};
use crate::space::StateSpace;

impl<'a> Decoder<'a> {
    /// Adds a 32-bit constant to the pool.
    pub fn constant32(&mut self, value: u32) -> u32 {
        let pool = &mut self.kernel.const32;
        *self.const32.entry(value).or_insert_with(|| {
            pool.push(value);
            (pool.len() as u32 - 1) | CONST
        })
    }

    /// Adds a 64-bit constant to the pool.
    pub fn constant64(&mut self, value: Const64) -> u32 {
        let pool = &mut self.kernel.const64;
        *self.const64.entry(value).or_insert_with(|| {
            pool.push(value);
            (pool.len() as u32 - 1) | CONST
        })
    }

    /// The address of a variable plus `offset` bytes, as a constant.
    pub fn address64(&mut self, name: Name, offset: i64) -> Decoded<u32> {
        Ok(match name {
            Name::Param(at) | Name::Local(at) => self.constant64(Const64::Value(at.wrapping_add_signed(offset))),
            Name::Shared(DYNAMIC) => {
                // An entry of its own, not shared with equal numbers, since `finish` changes it.
                self.kernel.const64.push(Const64::Value(offset as u64));
                let index = self.kernel.const64.len() as u32 - 1;
                self.dynamic.push((true, index));
                index | CONST
            }
            Name::Shared(at) => self.constant64(Const64::Value(at.wrapping_add_signed(offset))),
            Name::Global(index) => self.constant64(Const64::Variable { index, offset }),
            Name::Reg(_) | Name::Pred(_) => return Err("a register where an address is expected".to_owned()),
        })
    }

    /// The special register of this name, and whether it has 64 bits.
    fn special(&mut self, name: &str) -> Option<(SpecialRegister, bool)> {
        let dim = |suffix: &str| match suffix {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        if let Some((stem, suffix)) = name.split_once('.') {
            let dim = dim(suffix)?;
            return Some(match stem {
                "%tid" => (SpecialRegister::Tid(dim), false),
                "%ntid" => (SpecialRegister::Ntid(dim), false),
                "%ctaid" => (SpecialRegister::Ctaid(dim), false),
                "%nctaid" => (SpecialRegister::Nctaid(dim), false),
                "%cluster_ctaid" => (SpecialRegister::ClusterCtaId(dim), false),
                "%cluster_nctaid" => (SpecialRegister::ClusterNctaId(dim), false),
                "%clusterid" => (SpecialRegister::ClusterId(dim), false),
                "%nclusterid" => (SpecialRegister::NClusterId(dim), false),
                _ => return None,
            });
        }
        Some(match name {
            "%cluster_ctarank" => (SpecialRegister::ClusterCtaRank, false),
            "%cluster_nctarank" => (SpecialRegister::ClusterNctaRank, false),
            "%laneid" => (SpecialRegister::LaneId, false),
            "%warpid" => (SpecialRegister::WarpId, false),
            "%nwarpid" => (SpecialRegister::NWarpId, false),
            "%lanemask_eq" => (SpecialRegister::LaneMaskEq, false),
            "%lanemask_lt" => (SpecialRegister::LaneMaskLt, false),
            "%lanemask_le" => (SpecialRegister::LaneMaskLe, false),
            "%lanemask_gt" => (SpecialRegister::LaneMaskGt, false),
            "%lanemask_ge" => (SpecialRegister::LaneMaskGe, false),
            "%smid" => (SpecialRegister::SmId, false),
            "%nsmid" => (SpecialRegister::NSmId, false),
            "%gridid" => (SpecialRegister::GridId, false),
            "%clock" | "%clock_hi" | "%globaltimer_lo" => (SpecialRegister::Clock, false),
            "%clock64" | "%globaltimer" => (SpecialRegister::Clock, true),
            "%dynamic_smem_size" => (SpecialRegister::DynamicShared, false),
            "%total_smem_size" => (SpecialRegister::TotalShared, false),
            "WARP_SZ" => return None,
            _ => return None,
        })
    }

    /// A source operand of any width.
    pub fn source(&mut self, operand: &Operand<'a>) -> Decoded<Reg> {
        match operand {
            Operand::Name(name) => {
                if let Some((which, wide)) = self.special(name) {
                    let reg = self.new_reg(if wide { "b64" } else { "b32" })?;
                    let Name::Reg(d) = reg else { return Err("a special register".to_owned()) };
                    self.emit(Op::Special { d, which }, InstructionKind::Move);
                    return Ok(d);
                }
                if *name == "WARP_SZ" {
                    return Ok(Reg::B32(self.constant32(32)));
                }
                match self.lookup(name) {
                    Some(Name::Reg(slot)) => Ok(slot),
                    Some(Name::Pred(_)) => Err(format!("predicate {name} as a value")),
                    Some(address) => self.address64(address, 0).map(Reg::B64),
                    None => Err(format!("{name}, which is not declared")),
                }
            }
            Operand::Address(base, offset) => match &**base {
                Operand::Name(name) => match self.lookup(name) {
                    Some(found) => self.address64(found, *offset).map(Reg::B64),
                    None => Err(format!("{name}, which is not declared")),
                },
                _ => Err("an address as a value".to_owned()),
            },
            _ => Err("an operand that is no value".to_owned()),
        }
    }

    /// A source operand of up to 32 bits.
    pub fn src32(&mut self, operand: &Operand<'a>) -> Decoded<u32> {
        if let Operand::Number(number) = operand {
            let value = match number {
                Number::Int(value) => *value as u32,
                Number::F32(bits) => *bits,
                Number::F64(bits) => (f64::from_bits(*bits) as f32).to_bits(),
            };
            return Ok(self.constant32(value));
        }
        match self.source(operand)? {
            Reg::B32(r) | Reg::B16(r) => Ok(r),
            Reg::B64(r) if r & CONST != 0 => self.low_address(r),
            _ => Err("a 64-bit operand where one of 32 bits is expected".to_owned()),
        }
    }

    /// The low 32 bits of a constant address, which are enough for shared memory.
    fn low_address(&mut self, index: u32) -> Decoded<u32> {
        let at = index & !CONST;
        let Const64::Value(value) = self.kernel.const64[at as usize] else {
            return Err("the address of a global variable in 32 bits".to_owned());
        };
        if self.dynamic.contains(&(true, at)) {
            self.kernel.const32.push(value as u32);
            let index = self.kernel.const32.len() as u32 - 1;
            self.dynamic.push((false, index));
            return Ok(index | CONST);
        }
        Ok(self.constant32(value as u32))
    }

    /// A 16-bit source operand; an immediate is truncated to 16 bits.
    pub fn src16(&mut self, operand: &Operand<'a>) -> Decoded<u32> {
        match operand {
            Operand::Number(Number::Int(value)) => Ok(self.constant32(*value as u32 & 0xffff)),
            _ => self.src32(operand),
        }
    }

    /// A 64-bit source operand.
    pub fn src64(&mut self, operand: &Operand<'a>) -> Decoded<u32> {
        if let Operand::Number(number) = operand {
            let value = match number {
                Number::Int(value) => *value as u64,
                Number::F32(bits) => f64::from(f32::from_bits(*bits)).to_bits(),
                Number::F64(bits) => *bits,
            };
            return Ok(self.constant64(Const64::Value(value)));
        }
        match self.source(operand)? {
            Reg::B64(r) => Ok(r),
            _ => Err("a 32-bit operand where one of 64 bits is expected".to_owned()),
        }
    }

    /// A source operand of a type of `bytes` bytes.
    pub fn src(&mut self, operand: &Operand<'a>, bytes: u64) -> Decoded<Reg> {
        Ok(match bytes {
            1 | 2 => Reg::B16(self.src16(operand)?),
            4 => Reg::B32(self.src32(operand)?),
            _ => Reg::B64(self.src64(operand)?),
        })
    }

    /// A destination operand of any width; [`Reg::None`] for `_`.
    pub fn dst(&mut self, operand: &Operand<'a>) -> Decoded<Reg> {
        match operand {
            Operand::Name("_") => Ok(Reg::None),
            Operand::Name(name) => match self.lookup(name) {
                Some(Name::Reg(slot)) => Ok(slot),
                _ => Err(format!("{name}, which is no register to write to")),
            },
            _ => Err("a destination that is no register".to_owned()),
        }
    }

    /// A destination operand of up to 32 bits; an unused register for `_`.
    pub fn dst32(&mut self, operand: &Operand<'a>) -> Decoded<u32> {
        match self.dst(operand)? {
            Reg::B32(r) | Reg::B16(r) => Ok(r),
            Reg::None => {
                self.kernel.n32 += 1;
                Ok(self.kernel.n32 as u32 - 1)
            }
            Reg::B64(_) => Err("a 64-bit destination where one of 32 bits is expected".to_owned()),
        }
    }

    /// A 64-bit destination operand.
    pub fn dst64(&mut self, operand: &Operand<'a>) -> Decoded<u32> {
        match self.dst(operand)? {
            Reg::B64(r) => Ok(r),
            _ => Err("a 32-bit destination where one of 64 bits is expected".to_owned()),
        }
    }

    /// A destination predicate; [`NONE`] for `_`.
    pub fn dst_pred(&mut self, operand: &Operand<'a>) -> Decoded<u32> {
        match operand {
            Operand::Name("_") => Ok(NONE),
            Operand::Name(name) => match self.lookup(name) {
                Some(Name::Pred(p)) => Ok(p),
                _ => Err(format!("{name}, which is no predicate")),
            },
            _ => Err("a destination that is no predicate".to_owned()),
        }
    }

    /// A source predicate, negated or constant.
    pub fn pred(&mut self, operand: &Operand<'a>) -> Decoded<Pred> {
        let (name, negated) = match operand {
            Operand::Name(name) => (name, false),
            Operand::Not(name) => (name, true),
            Operand::Number(Number::Int(0)) => return Ok(Pred::TRUE.not()),
            Operand::Number(Number::Int(_)) => return Ok(Pred::TRUE),
            _ => return Err("an operand that is no predicate".to_owned()),
        };
        match self.lookup(name) {
            Some(Name::Pred(p)) => Ok(Pred::new(p, negated)),
            _ => Err(format!("{name}, which is no predicate")),
        }
    }

    /// Whether the operand is a predicate register.
    pub fn is_pred(&mut self, operand: &Operand<'a>) -> bool {
        !matches!(operand, Operand::Number(_)) && self.pred(operand).is_ok()
    }

    /// The elements of a vector operand, or the operand itself.
    pub fn elements<'o>(&self, operand: &'o Operand<'a>) -> &'o [Operand<'a>] {
        match operand {
            Operand::Vector(list) => list,
            other => std::slice::from_ref(other),
        }
    }

    /// An address operand with its state space. `.param` is local memory if the name is a parameter of a call.
    pub fn address(&mut self, operand: &Operand<'a>, space: StateSpace) -> Decoded<(Address, StateSpace)> {
        let Operand::Address(base, offset) = operand else { return Err("an address without brackets".to_owned()) };
        match &**base {
            Operand::Number(Number::Int(value)) => {
                let base = Reg::B64(self.constant64(Const64::Value(*value as u64)));
                Ok((Address { base, offset: *offset }, space))
            }
            Operand::Name(name) => match self.lookup(name) {
                Some(Name::Reg(base)) => Ok((Address { base, offset: *offset }, space)),
                Some(Name::Pred(_)) | None => Err(format!("{name} as an address")),
                Some(found) => {
                    let space = match (found, space) {
                        (Name::Local(_), StateSpace::Param | StateSpace::Local) => StateSpace::Local,
                        (Name::Global(_), StateSpace::Generic | StateSpace::Global) => StateSpace::Global,
                        (Name::Shared(_), StateSpace::Shared) | (Name::Param(_), StateSpace::Param) => space,
                        _ => return Err(format!("{name} in another space than its own")),
                    };
                    let base = Reg::B64(self.address64(found, 0)?);
                    Ok((Address { base, offset: *offset }, space))
                }
            },
            _ => Err("an address of another form".to_owned()),
        }
    }
}
