//! Tensor maps: the 128-byte descriptors of bulk copies of tensors.
//!
//! The driver's form is secret; this one is the interpreter's own. Memory of zeros whose fields are set by `tensormap.replace` is a
//! tiled map, as on a GPU. The rules are those of `cuTensorMapEncodeTiled` and `cuTensorMapEncodeIm2col` in the CUDA driver's manual.

/// Bytes of a tensor map, and its alignment.
pub const TENSOR_MAP_BYTES: usize = 128;
pub(crate) const TENSOR_MAP_ALIGN: u32 = 64;

/// The order in which 16-byte chunks of a row lie in shared memory, so that a column is free of bank conflicts: within so many bytes
/// a chunk's number is combined by exclusive or with the number of its 128-byte line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Swizzle {
    #[default]
    None,
    Bytes32,
    Bytes64,
    Bytes128,
}

impl Swizzle {
    /// The address in shared memory of what would lie at `address` without it.
    pub fn apply(self, address: u64) -> u64 {
        let bits = match self {
            Self::None => 0,
            Self::Bytes32 => 1,
            Self::Bytes64 => 3,
            Self::Bytes128 => 7,
        };
        address ^ ((address >> 7 & bits) << 4)
    }

    /// Bytes of a row.
    pub(crate) fn span(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Bytes32 => Some(32),
            Self::Bytes64 => Some(64),
            Self::Bytes128 => Some(128),
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::None, Self::Bytes32, Self::Bytes64, Self::Bytes128].get(usize::from(code)).copied()
    }
}

/// The rows of an im2col map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Im2col {
    /// The first base position of each spatial dimension, innermost first: at most 0.
    pub lower: [i16; 3],
    /// The last one, from the dimension's last position.
    pub upper: [i16; 3],
    /// Channels of a row.
    pub channels: u16,
    /// Rows of a copy.
    pub pixels: u16,
}

/// A tensor map. Dimensions go from the innermost, whose elements lie together, to the outermost.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TensorMap {
    /// Device address of the first element.
    pub address: u64,
    /// Bytes of an element.
    pub element_bytes: u8,
    /// Whether elements are f16, bf16, f32, f64 or tf32.
    pub(crate) element_type: u8,
    /// Elements of each dimension, 1 to 5 of them.
    pub dims: Vec<u64>,
    /// Bytes from one position of each dimension but the first to the next.
    pub strides: Vec<u64>,
    /// Elements of a copy in each dimension; of a tiled map.
    pub tile: Vec<u32>,
    /// Steps in each dimension.
    pub steps: Vec<u8>,
    /// Layout in shared memory.
    pub swizzle: Swizzle,
    /// Fills with NaN in place of zeros outside of the tensor.
    pub nan: bool,
    /// The rows of an im2col map; `None`: a tiled one.
    pub im2col: Option<Im2col>,
}

/// Bytes and floats of the types by their code, as `tensormap.replace` counts them.
const TYPES: [(u8, bool); 13] = [
    (1, false),
    (2, false),
    (4, false),
    (4, false),
    (8, false),
    (8, false),
    (2, true),
    (4, true),
    (4, true),
    (8, true),
    (2, true),
    (4, true),
    (4, true),
];

/// Bytes of an element of that type; of one that there is not, 1.
pub(crate) fn element_bytes(code: u8) -> u8 {
    TYPES.get(usize::from(code)).map_or(1, |t| t.0)
}

// Offsets of the fields.
const ADDRESS: usize = 0;
const DIMS: usize = 8;
const STRIDES: usize = 28;
const TILE: usize = 60;
const STEPS: usize = 70;
const RANK: usize = 75;
const TYPE: usize = 76;
const INTERLEAVE: usize = 77;
const SWIZZLE: usize = 78;
const FILL: usize = 79;
const KIND: usize = 80;
const CORNERS: usize = 82;
const ROWS: usize = 94;

/// The fields that `tensormap.replace` sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapField {
    Address,
    Rank,
    BoxDim(u8),
    GlobalDim(u8),
    GlobalStride(u8),
    ElementStride(u8),
    ElementType,
    Interleave,
    Swizzle,
    Fill,
}

impl MapField {
    /// The place of the field, and its bytes for `value`.
    pub fn bytes(self, value: u64) -> (usize, Vec<u8>) {
        let word = |v: u64| (v as u32).to_le_bytes().to_vec();
        match self {
            Self::Address => (ADDRESS, value.to_le_bytes().to_vec()),
            Self::Rank => (RANK, vec![value as u8]),
            Self::BoxDim(i) => (TILE + 2 * usize::from(i), (value as u16).to_le_bytes().to_vec()),
            // Up to 2^32, so one less is kept.
            Self::GlobalDim(i) => (DIMS + 4 * usize::from(i), word(value.wrapping_sub(1))),
            Self::GlobalStride(i) => (STRIDES + 8 * usize::from(i), value.to_le_bytes().to_vec()),
            Self::ElementStride(i) => (STEPS + usize::from(i), vec![value as u8]),
            Self::ElementType => (TYPE, vec![value as u8]),
            Self::Interleave => (INTERLEAVE, vec![value as u8]),
            Self::Swizzle => (SWIZZLE, vec![value as u8]),
            Self::Fill => (FILL, vec![value as u8]),
        }
    }
}

impl TensorMap {
    /// A tiled map of f16 elements without swizzle; steps of 1.
    pub fn tiled(address: u64, dims: &[u64], strides: &[u64], tile: &[u32]) -> Self {
        Self {
            address,
            element_bytes: 2,
            element_type: 6,
            dims: dims.to_vec(),
            strides: strides.to_vec(),
            tile: tile.to_vec(),
            steps: vec![1; dims.len()],
            ..Self::default()
        }
    }

    /// A map of f16 elements in order of channel, width, height, image (or fewer or more spatial dimensions) that takes rows of channels.
    pub fn im2col(address: u64, dims: &[u64], strides: &[u64], rows: Im2col) -> Self {
        Self { im2col: Some(rows), ..Self::tiled(address, dims, strides, &[]) }
    }

    /// The same map with elements of this many bytes, floats or integers.
    pub fn with_elements(mut self, bytes: u8, float: bool) -> Self {
        self.element_bytes = bytes;
        let code = TYPES.iter().position(|t| *t == (bytes, float)).or(TYPES.iter().position(|t| t.0 == bytes));
        self.element_type = code.unwrap_or(0) as u8;
        self
    }

    /// The bytes of a kernel's parameter.
    pub fn to_bytes(&self) -> [u8; TENSOR_MAP_BYTES] {
        let mut out = [0; TENSOR_MAP_BYTES];
        let mut set = |field: MapField, value: u64| {
            let (at, bytes) = field.bytes(value);
            out[at..at + bytes.len()].copy_from_slice(&bytes);
        };
        set(MapField::Address, self.address);
        set(MapField::Rank, self.dims.len() as u64 - 1);
        for (i, d) in (0..).zip(&self.dims) {
            set(MapField::GlobalDim(i), *d);
        }
        for (i, s) in (0..).zip(&self.strides) {
            set(MapField::GlobalStride(i), *s);
        }
        for (i, t) in (0..).zip(&self.tile) {
            set(MapField::BoxDim(i), u64::from(*t));
        }
        for (i, s) in (0..).zip(&self.steps) {
            set(MapField::ElementStride(i), u64::from(*s));
        }
        set(MapField::ElementType, self.element_type.into());
        set(MapField::Swizzle, self.swizzle as u64);
        set(MapField::Fill, self.nan.into());
        if let Some(rows) = self.im2col {
            out[KIND] = 1;
            for (i, c) in rows.lower.iter().chain(&rows.upper).enumerate() {
                out[CORNERS + 2 * i..CORNERS + 2 * i + 2].copy_from_slice(&c.to_le_bytes());
            }
            out[ROWS..ROWS + 2].copy_from_slice(&rows.channels.to_le_bytes());
            out[ROWS + 2..ROWS + 4].copy_from_slice(&rows.pixels.to_le_bytes());
        }
        out
    }

    /// Reads a map and checks it against the rules.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u64_at = |at: usize| (0..8).fold(0, |v, i| v | u64::from(bytes[at + i]) << (8 * i));
        let u32_at = |at: usize| u64_at(at) as u32;
        let rank = usize::from(bytes[RANK]) + 1;
        if rank > 5 {
            return Err(format!(
                "a tensor map of rank {rank}; 1 to 5 are possible, so this is none, or memory that was not set"
            ));
        }
        let Some((element_bytes, _)) = TYPES.get(usize::from(bytes[TYPE])).copied() else {
            return Err(format!("a tensor map with elements of type {}", bytes[TYPE]));
        };
        if bytes[INTERLEAVE] != 0 {
            return Err("interleaved tensor maps are not supported".to_owned());
        }
        let swizzle = Swizzle::from_code(bytes[SWIZZLE]).ok_or(format!("swizzle mode {}", bytes[SWIZZLE]))?;
        let corner = |i: usize| u16_at(CORNERS + 2 * i) as i16;
        let im2col = (bytes[KIND] == 1).then(|| Im2col {
            lower: std::array::from_fn(corner),
            upper: std::array::from_fn(|i| corner(3 + i)),
            channels: u16_at(ROWS),
            pixels: u16_at(ROWS + 2),
        });
        let map = Self {
            address: u64_at(ADDRESS),
            element_bytes,
            element_type: bytes[TYPE],
            dims: (0..rank).map(|i| u64::from(u32_at(DIMS + 4 * i)) + 1).collect(),
            strides: (0..rank - 1).map(|i| u64_at(STRIDES + 8 * i)).collect(),
            tile: (0..rank).map(|i| u16_at(TILE + 2 * i).into()).collect(),
            steps: (0..rank).map(|i| bytes[STEPS + i]).collect(),
            swizzle,
            nan: bytes[FILL] != 0,
            im2col,
        };
        map.check().map(|()| map)
    }

    fn check(&self) -> Result<(), String> {
        let fail = |what: String| Err(format!("a tensor map with {what}"));
        if !self.address.is_multiple_of(16) {
            return fail(format!("address {:#x}, which is no multiple of 16", self.address));
        }
        if let Some(s) = self.strides.iter().find(|s| !s.is_multiple_of(16) || **s >= 1 << 40 || **s == 0) {
            return fail(format!("a stride of {s} bytes; multiples of 16 below 2^40 are possible"));
        }
        if let Some(s) = self.steps.iter().find(|s| !(1..=8).contains(*s)) {
            return fail(format!("a step of {s}; 1 to 8 are possible"));
        }
        let inner = match self.im2col {
            None => {
                if let Some(t) = self.tile.iter().find(|t| !(1..=256).contains(*t)) {
                    return fail(format!("a tile of {t} elements in a dimension; 1 to 256 are possible"));
                }
                self.tile[0]
            }
            Some(rows) => {
                if self.dims.len() < 3 {
                    return fail(format!("rank {} in im2col mode; 3 to 5 are possible", self.dims.len()));
                }
                if !(1..=256).contains(&rows.channels) || !(1..=1024).contains(&rows.pixels) {
                    let (c, p) = (rows.channels, rows.pixels);
                    return fail(format!("{c} channels and {p} pixels; at most 256 and 1024 are possible"));
                }
                rows.channels.into()
            }
        };
        let row = u64::from(inner) * u64::from(self.element_bytes);
        if !row.is_multiple_of(16) {
            return fail(format!("rows of {row} bytes in shared memory, which are no multiple of 16"));
        }
        match self.swizzle.span() {
            Some(span) if row > span => fail(format!("rows of {row} bytes; its swizzle takes {span}")),
            _ => Ok(()),
        }
    }

    /// Bytes from one row in shared memory to the next.
    pub(crate) fn pitch(&self) -> u64 {
        self.swizzle.span().unwrap_or(self.row_bytes())
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(&self) -> u64 {
        let inner = self.im2col.map_or(self.tile[0], |rows| rows.channels.into());
        u64::from(inner) * u64::from(self.element_bytes)
    }

    /// The rows of a copy that begins at `start`, shifted by `offsets`: for each the position of its first element, none where the row
    /// lies outside of the tensor in an outer dimension.
    pub(crate) fn rows(&self, start: &[i64], offsets: &[i64]) -> Vec<Option<Vec<i64>>> {
        let inside = |at: &[i64]| {
            let outer = at.iter().zip(&self.dims).skip(1);
            outer.clone().all(|(x, d)| *x >= 0 && (*x as u64) < *d)
        };
        let mut rows = Vec::new();
        let Some(im2col) = self.im2col else {
            let counts: Vec<i64> =
                self.tile.iter().zip(&self.steps).map(|(t, s)| i64::from(t.div_ceil(u32::from(*s)))).collect();
            let total: i64 = counts[1..].iter().product();
            for row in 0..total {
                let (mut at, mut rest) = (start.to_vec(), row);
                for d in 1..at.len() {
                    at[d] += rest % counts[d] * i64::from(self.steps[d]);
                    rest /= counts[d];
                }
                rows.push(inside(&at).then_some(at));
            }
            return rows;
        };
        let mut base = start.to_vec();
        let spatial = base.len() - 2;
        for _ in 0..im2col.pixels {
            let mut at = base.clone();
            for (x, o) in at[1..].iter_mut().zip(offsets) {
                *x += o;
            }
            rows.push(inside(&at).then_some(at));
            for d in 1..=spatial {
                base[d] += i64::from(self.steps[d]);
                if base[d] <= self.dims[d] as i64 - 1 + i64::from(im2col.upper[d - 1]) {
                    break;
                }
                base[d] = im2col.lower[d - 1].into();
                if d == spatial {
                    base[d + 1] += 1;
                }
            }
        }
        rows
    }

    /// The device address of a position, whose innermost coordinate may lie outside.
    pub(crate) fn element(&self, at: &[i64]) -> u64 {
        let outer = at[1..].iter().zip(&self.strides).map(|(x, s)| (*x as u64).wrapping_mul(*s));
        let inner = (at[0] * i64::from(self.element_bytes)) as u64;
        outer.fold(self.address.wrapping_add(inner), u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_back() {
        let mut map = TensorMap::tiled(0x7000_0000_0100, &[64, 1 << 32], &[128], &[64, 256]);
        map.swizzle = Swizzle::Bytes128;
        assert_eq!(TensorMap::from_bytes(&map.to_bytes()), Ok(map.clone()));
        let rows = Im2col { lower: [-1, -1, 0], upper: [-1, -2, 0], channels: 64, pixels: 128 };
        let map = TensorMap::im2col(0x100, &[64, 32, 32, 2], &[128, 4096, 131_072], rows).with_elements(1, false);
        let mut back = TensorMap::from_bytes(&map.to_bytes()).expect("a map");
        back.tile.clear();
        assert_eq!(back, map);
        assert!(TensorMap::from_bytes(&[0xff; 128]).is_err());
        let bad = |change: fn(&mut TensorMap)| {
            let mut map = TensorMap::tiled(0x100, &[64, 64], &[128], &[64, 64]);
            change(&mut map);
            TensorMap::from_bytes(&map.to_bytes()).expect_err("a broken rule")
        };
        assert!(bad(|m| m.address = 8).contains("multiple of 16"));
        assert!(bad(|m| m.strides[0] = 100).contains("a stride of 100"));
        assert!(bad(|m| m.tile[1] = 257).contains("a tile of 257"));
        assert!(bad(|m| m.tile[0] = 4).contains("rows of 8 bytes"));
        assert!(bad(|m| m.swizzle = Swizzle::Bytes64).contains("its swizzle takes 64"));
    }

    #[test]
    fn swizzles() {
        // The second 16 bytes of the third line: number 1 with line 2 is 3.
        assert_eq!(Swizzle::Bytes128.apply(2 * 128 + 16), 2 * 128 + 48);
        assert_eq!(Swizzle::Bytes64.apply(5 * 128 + 16), 5 * 128);
        assert_eq!(Swizzle::Bytes32.apply(3 * 128 + 16), 3 * 128);
        assert_eq!(Swizzle::None.apply(3 * 128 + 16), 3 * 128 + 16);
    }

    /// A 3x3 convolution with padding 1 over images of 3 by 2: output pixels in order, across the ends of rows and images.
    #[test]
    fn im2col_rows() {
        let rows = Im2col { lower: [-1, -1, 0], upper: [-1, -1, 0], channels: 8, pixels: 8 };
        let map = TensorMap::im2col(0x100, &[8, 3, 2, 2], &[16, 48, 96], rows);
        let got = map.rows(&[0, 0, -1, 0], &[2, 1, 0]);
        // From output pixel (1, 0) of image 0 under the tap to the right and in the middle.
        let want: [Option<[i64; 3]>; 8] =
            [Some([2, 0, 0]), None, Some([1, 1, 0]), Some([2, 1, 0]), None, Some([1, 0, 1]), Some([2, 0, 1]), None];
        let got: Vec<_> = got.iter().map(|r| r.as_ref().map(|r| [r[1], r[2], r[3]])).collect();
        assert_eq!(got, want);
    }
}
