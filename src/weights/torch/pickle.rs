//! An allow-list reader of the pickles that `torch.save` writes (protocol 2).
//!
//! Values live in one table and refer to each other by index, so nothing recurses, nothing is copied, and memory stays
//! in proportion to the pickle: each instruction adds at most one value, and strings are slices of the input. Source of
//! the instructions: CPython's `pickletools`.

use super::super::contents::quoted;
use super::names::{Element, Global};
use std::collections::HashMap;

/// Values that a pickle may make; a full SDXL checkpoint makes about 60,000.
const MAX_VALUES: usize = 2_000_000;
/// Dictionary entries looked at in the search for tensors; more are there only where one dictionary is shared often.
const MAX_VISITS: usize = 4_000_000;
/// Dictionaries within each other; published files have two levels.
const MAX_DEPTH: usize = 32;
/// Bytes of a tensor's full name.
const MAX_NAME: usize = 512;
const MAX_RANK: usize = 8;

/// A tensor as the pickle describes it; nothing is checked against the archive yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PickledTensor<'a> {
    pub element: Element,
    /// The storage's name in the archive.
    pub key: &'a str,
    /// The storage's elements.
    pub count: usize,
    /// The first element.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// In elements.
    pub strides: Vec<usize>,
}

/// An index into the table of values.
type Id = u32;

#[derive(Debug)]
enum Value<'a> {
    /// Floats, None and integers beyond 64 bits: read, never used.
    Other,
    Bool,
    Int(i64),
    Str(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage {
        element: Element,
        key: &'a str,
        count: usize,
    },
    Tensor(Box<PickledTensor<'a>>),
}

impl Value<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Other => "a number or None",
            Self::Bool => "a bool",
            Self::Int(_) => "an int",
            Self::Str(_) => "a string",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a name",
            Self::Storage { .. } => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// Reads all tensors in the nested dictionaries of a pickle, with their keys joined by dots.
pub(super) fn tensors(pickle: &[u8]) -> Result<Vec<(String, PickledTensor<'_>)>, String> {
    let mut machine = Machine {
        input: pickle,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let top = machine.run().map_err(|e| format!("{e} (byte {})", machine.at))?;
    machine.flatten(top)
}

struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Follows the instructions to the end; returns the value that they leave.
    fn run(&mut self) -> Result<Id, String> {
        loop {
            match self.byte()? {
                0x80 => match self.byte()? {
                    2 => {}
                    n => return Err(format!("pickle protocol {n}; torch.save writes 2: save the file again")),
                },
                b'.' => return self.pop(),
                b'(' => self.mark()?,
                b'c' => self.global()?,
                b'Q' => self.storage()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                op if self.literal(op)? || self.memoize(op)? || self.collect(op)? => {}
                op => return Err(format!("instruction {op:#04x} is not among those that torch.save writes")),
            }
        }
    }

    /// Pushes the value that an instruction itself holds; false for other instructions.
    fn literal(&mut self, op: u8) -> Result<bool, String> {
        match op {
            b'N' => self.push(Value::Other)?,
            0x88 | 0x89 => self.push(Value::Bool)?,
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()))?;
            }
            0x8a => self.long()?,
            b'G' => {
                self.take(8)?;
                self.push(Value::Other)?;
            }
            b'X' => {
                let n = u32::from_le_bytes(self.array()?);
                let text = self.take(n as usize)?;
                let text = std::str::from_utf8(text).map_err(|_| "a string is not UTF-8".to_owned())?;
                self.push(Value::Str(text))?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b')' => self.push(Value::Tuple(Vec::new()))?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Stores or fetches a value of the memo; false for other instructions.
    fn memoize(&mut self, op: u8) -> Result<bool, String> {
        match op {
            b'q' => {
                let n = self.byte()?;
                self.remember(n.into())?;
            }
            b'r' => {
                let n = u32::from_le_bytes(self.array()?);
                self.remember(n)?;
            }
            b'h' => {
                let n = self.byte()?;
                self.recall(n.into())?;
            }
            b'j' => {
                let n = u32::from_le_bytes(self.array()?);
                self.recall(n)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Makes a tuple of values on the stack or adds them to a list or a dictionary; false for other instructions.
    fn collect(&mut self, op: u8) -> Result<bool, String> {
        match op {
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))?;
            }
            n @ 0x85..=0x87 => {
                let mut items = Vec::with_capacity(3);
                for _ in 0x84..n {
                    items.insert(0, self.pop()?);
                }
                self.push(Value::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(&items)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let rest = &self.input[self.at..];
        let Some(taken) = rest.get(..n) else {
            return Err(format!("{n} bytes expected, {} are left: the pickle is damaged", rest.len()));
        };
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        if self.values.len() == MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values; not a file of weights"));
        }
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        if self.stack.len() <= self.marks.last().copied().unwrap_or(0) {
            return Err("a value is missing on the stack: the pickle is damaged".into());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty: the pickle is damaged".into())
    }

    /// The value on top, which stays.
    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty: the pickle is damaged".into())
    }

    fn mark(&mut self) -> Result<(), String> {
        if self.marks.len() == MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} marks; not a file of weights"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("a mark is missing: the pickle is damaged")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn remember(&mut self, slot: u32) -> Result<(), String> {
        let id = self.top()?;
        self.memo.insert(slot, id);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), String> {
        let id = self.memo.get(&slot).ok_or_else(|| format!("value {slot} is used before it is made"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn int(&mut self, bytes: usize) -> Result<(), String> {
        let n = self.take(bytes)?.iter().rev().fold(0, |n, &b| n << 8 | i64::from(b));
        self.push(Value::Int(n))
    }

    fn long(&mut self) -> Result<(), String> {
        let n = self.byte()?;
        let bytes = self.take(n.into())?;
        let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { -1 } else { 0 };
        let value = bytes.iter().rev().fold(sign, |n, &b| n << 8 | i64::from(b));
        self.push(if bytes.len() <= 8 { Value::Int(value) } else { Value::Other })
    }

    fn get(&self, id: Id) -> &Value<'a> {
        self.values.get(id as usize).unwrap_or(&Value::Other)
    }

    fn append(&mut self, items: &[Id]) -> Result<(), String> {
        let list = self.top()?;
        match self.values.get_mut(list as usize) {
            Some(Value::List(list)) => list.extend_from_slice(items),
            other => return Err(format!("append to {}, expected a list", other.map_or("nothing", |v| v.kind()))),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<(), String> {
        let (pairs, odd) = items.as_chunks::<2>();
        if !odd.is_empty() {
            return Err("a key without a value: the pickle is damaged".into());
        }
        let dict = self.top()?;
        match self.values.get_mut(dict as usize) {
            Some(Value::Dict(dict)) => dict.extend(pairs.iter().map(|&[k, v]| (k, v))),
            other => return Err(format!("SETITEM on {}, expected a dict", other.map_or("nothing", |v| v.kind()))),
        }
        Ok(())
    }

    fn global(&mut self) -> Result<(), String> {
        let mut line = || {
            let rest = &self.input[self.at..];
            let end =
                rest.iter().take(256).position(|&b| b == b'\n').ok_or("a name does not end: the pickle is damaged")?;
            let text = self.take(end + 1)?;
            std::str::from_utf8(&text[..end]).map_err(|_| "a name is not UTF-8".to_owned())
        };
        let (module, name) = (line()?, line()?);
        let global = Global::find(module, name).ok_or_else(|| {
            let asked = quoted(&format!("{module}.{name}"));
            format!(
                "it asks for {asked}, which weights do not need; nothing was executed. Do not load this file elsewhere; use a \
                 safetensors version"
            )
        })?;
        self.push(Value::Global(global))
    }

    /// BINPERSID: `('storage', storage class, key, device, elements)`.
    fn storage(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let fields = self.tuple(id, "a storage")?;
        let [kind, class, key, _, count] = *fields else {
            return Err(format!("a storage of {} fields, expected 5", fields.len()));
        };
        let (Value::Str("storage"), Value::Global(Global::Element(element)), Value::Str(key)) =
            (self.get(kind), self.get(class), self.get(key))
        else {
            return Err("a storage's fields are not ('storage', class, key, device, elements)".into());
        };
        let (element, key) = (*element, *key);
        let count = self.size(count, "a storage's elements")?;
        self.push(Value::Storage { element, key, count })
    }

    fn reduce(&mut self) -> Result<(), String> {
        let args = self.pop()?;
        let callee = self.pop()?;
        let Value::Global(global) = self.get(callee) else {
            return Err(format!("a call of {}, expected a name", self.get(callee).kind()));
        };
        let global = *global;
        let args = self.tuple(args, "a call's arguments")?;
        match global {
            Global::OrderedDict if args.is_empty() => self.push(Value::Dict(Vec::new())),
            Global::OrderedDict => Err("OrderedDict with arguments, expected none".into()),
            Global::Parameter => {
                let &[tensor, _, _] = args else { return Err(short("_rebuild_parameter", args.len(), "3")) };
                match self.get(tensor) {
                    Value::Tensor(_) => {
                        self.stack.push(tensor);
                        Ok(())
                    }
                    other => Err(format!("a parameter of {}, expected a tensor", other.kind())),
                }
            }
            Global::Tensor2 | Global::Tensor3 => {
                let tensor = self.rebuild(args, global == Global::Tensor3)?;
                self.push(Value::Tensor(Box::new(tensor)))
            }
            Global::Ignored => self.push(Value::Other),
            Global::Element(element) => Err(format!("a call of torch.{}, expected none", element.name)),
        }
    }

    /// `(storage, offset, shape, strides, requires_grad, hooks[, metadata])`; version 3 has the type before the
    /// metadata.
    fn rebuild(&self, args: &[Id], typed: bool) -> Result<PickledTensor<'a>, String> {
        let (name, fields) = if typed { ("_rebuild_tensor_v3", 7) } else { ("_rebuild_tensor_v2", 6) };
        let &[storage, offset, shape, strides, ..] = args else { return Err(short(name, args.len(), "6 or 7")) };
        if args.len() != fields && args.len() != fields + 1 {
            return Err(short(name, args.len(), &format!("{fields} or {}", fields + 1)));
        }
        // The metadata are flags such as a lazy negation, which would change the values.
        if args.get(fields).is_some_and(|&m| !matches!(self.get(m), Value::Dict(d) if d.is_empty())) {
            return Err(format!("{name} with metadata, expected none"));
        }
        let Value::Storage { mut element, key, mut count } = *self.get(storage) else {
            return Err(format!("a tensor of {}, expected a storage", self.get(storage).kind()));
        };
        if typed {
            match args.get(6).map(|&t| self.get(t)) {
                Some(Value::Global(Global::Element(kind))) if count % kind.size == 0 && element.size == 1 => {
                    count /= kind.size;
                    element = *kind;
                }
                _ => return Err(format!("{name} without a sound element type")),
            }
        }
        let sizes = |id, what| {
            let ids = self.tuple(id, what)?;
            if ids.len() > MAX_RANK {
                return Err(format!("a tensor of {} dimensions, more than {MAX_RANK}", ids.len()));
            }
            ids.iter().map(|&d| self.size(d, what)).collect::<Result<Vec<_>, _>>()
        };
        let (shape, strides) = (sizes(shape, "a shape")?, sizes(strides, "strides")?);
        if shape.len() != strides.len() {
            return Err(format!("a tensor of {} dimensions with {} strides", shape.len(), strides.len()));
        }
        Ok(PickledTensor { element, key, count, offset: self.size(offset, "an offset")?, shape, strides })
    }

    fn tuple(&self, id: Id, what: &str) -> Result<&[Id], String> {
        match self.get(id) {
            Value::Tuple(ids) => Ok(ids),
            other => Err(format!("{what} given as {}, expected a tuple", other.kind())),
        }
    }

    fn size(&self, id: Id, what: &str) -> Result<usize, String> {
        match self.get(id) {
            Value::Int(n) => usize::try_from(*n).map_err(|_| format!("{what} of {n}, expected 0 or more")),
            other => Err(format!("{what} given as {}, expected an int", other.kind())),
        }
    }

    /// BUILD sets attributes; a state dictionary carries its `_metadata` (module versions) so.
    fn build(&mut self) -> Result<(), String> {
        let state = self.pop()?;
        match (self.get(self.top()?), self.get(state)) {
            (Value::Dict(_), Value::Dict(_)) => Ok(()),
            (target, state) => Err(format!("a state of {} for {}, expected two dicts", state.kind(), target.kind())),
        }
    }

    fn flatten(&self, top: Id) -> Result<Vec<(String, PickledTensor<'a>)>, String> {
        if !matches!(self.get(top), Value::Dict(_)) {
            let kind = self.get(top).kind();
            return Err(format!("the file holds {kind}, expected a dict of tensors"));
        }
        let mut found = Vec::new();
        let mut visits = 0;
        let mut open = vec![(String::new(), top, 0)];
        while let Some((prefix, id, depth)) = open.pop() {
            let Value::Dict(entries) = self.get(id) else { continue };
            for &(key, value) in entries {
                visits += 1;
                if visits > MAX_VISITS || found.len() + open.len() > MAX_VALUES / 16 {
                    return Err("too many entries; not a file of weights".into());
                }
                let value = match self.get(value) {
                    Value::Tensor(tensor) => Ok(tensor),
                    Value::Dict(_) => Err(value),
                    _ => continue,
                };
                let name = match self.get(key) {
                    Value::Str(key) if prefix.len() + key.len() < MAX_NAME => format!("{prefix}{key}"),
                    Value::Int(key) if prefix.len() + 20 < MAX_NAME => format!("{prefix}{key}"),
                    Value::Str(_) | Value::Int(_) => return Err(format!("a name longer than {MAX_NAME} bytes")),
                    other => return Err(format!("a dict's key is {}, expected a string", other.kind())),
                };
                match value {
                    Ok(tensor) => found.push((name, PickledTensor::clone(tensor))),
                    Err(_) if depth == MAX_DEPTH => {
                        return Err(format!("dicts more than {MAX_DEPTH} deep in each other"));
                    }
                    Err(dict) => open.push((name + ".", dict, depth + 1)),
                }
            }
        }
        Ok(found)
    }
}

fn short(name: &str, found: usize, expected: &str) -> String {
    format!("{name} with {found} arguments, expected {expected}")
}
