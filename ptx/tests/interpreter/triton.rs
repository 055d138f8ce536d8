//! Programs of Triton 3.6 (tests/data/triton/make.py) against f64: what they need of the interpreter was decided elsewhere.

use super::common::{noise, product_error, upload};
use std::collections::BTreeMap;

use braid_ptx::{Arithmetic, Counts, GlobalMemory, InstructionKind, Launch, Module, Schedule, Swizzle, TensorMap, run};
use half::{bf16, f16};

/// A program: its module, and the numbers of kernels.json.
struct Program {
    name: &'static str,
    module: Module,
    entry: String,
    numbers: BTreeMap<String, u64>,
}

impl Program {
    fn new(name: &'static str) -> Self {
        let folder = format!("{}/tests/data/triton", env!("CARGO_MANIFEST_DIR"));
        let table = std::fs::read_to_string(format!("{folder}/kernels.json")).unwrap();
        let at = table.find(&format!("\"{name}\"")).unwrap_or_else(|| panic!("no {name} in kernels.json"));
        let object = &table[at..][..table[at..].find('}').unwrap()];
        let fields = object.lines().skip(1).filter_map(|l| l.trim().trim_end_matches(',').split_once(": "));
        let (mut entry, mut numbers) = (String::new(), BTreeMap::new());
        for (key, value) in fields {
            match value.parse() {
                Ok(n) => drop(numbers.insert(key.trim_matches('"').to_owned(), n)),
                Err(_) if key.contains("entry") => entry = value.trim_matches('"').to_owned(),
                Err(_) => {}
            }
        }
        let text = std::fs::read_to_string(format!("{folder}/{name}.ptx")).unwrap();
        Self { name, module: Module::parse(&text).unwrap(), entry, numbers }
    }

    /// Runs it with these arguments and the memory that Triton's launcher adds.
    fn run(&self, memory: &GlobalMemory, grid: [u32; 3], arguments: &[u64], schedule: Schedule) -> Counts {
        let arguments: Vec<_> = arguments.iter().map(|v| v.to_le_bytes().to_vec()).collect();
        self.run_with(memory, grid, arguments, schedule)
    }

    /// [`Self::run`] with the bytes of each argument, of which a parameter takes as many as it has.
    fn run_with(
        &self,
        memory: &GlobalMemory,
        grid: [u32; 3],
        mut arguments: Vec<Vec<u8>>,
        schedule: Schedule,
    ) -> Counts {
        let kernel = self.module.kernel(&self.entry).unwrap();
        let scratch = self.numbers["scratch"];
        let grid = [grid[0] * self.numbers["cluster"] as u32, grid[1], grid[2]];
        let blocks: u32 = grid.iter().product();
        let extra = memory.alloc((scratch * u64::from(blocks)).max(256));
        let mut params = vec![0; kernel.param_bytes()];
        arguments.extend([extra.to_le_bytes().to_vec(), extra.to_le_bytes().to_vec()]);
        assert_eq!(kernel.params().len(), arguments.len(), "{}", self.name);
        for (param, value) in kernel.params().iter().zip(&arguments) {
            params[param.offset..param.offset + param.size].copy_from_slice(&value[..param.size]);
        }
        let mut launch = Launch::new(grid, [self.numbers["threads"] as u32, 1, 1], &params);
        launch.dynamic_shared = self.numbers["shared"] as usize;
        launch.schedule = schedule;
        launch.arithmetic = Arithmetic::from_env();
        launch.step_limit = 1 << 24;
        run(&self.module, &self.entry, memory, &launch).unwrap_or_else(|f| panic!("{} {schedule:?}: {f}", self.name))
    }
}

const SCHEDULES: [Schedule; 3] = [Schedule::InOrder, Schedule::Greedy, Schedule::Random(5)];

/// Elements with their bytes.
#[derive(Clone, Copy, PartialEq)]
enum Type {
    F16,
    Bf16,
    E4m3,
    F32,
}

impl Type {
    fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::E4m3 => 1,
            Self::F32 => 4,
        }
    }

    fn decode(self, bytes: &[u8]) -> f64 {
        match self {
            Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
            Self::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
            Self::F32 => f32::from_le_bytes(bytes.try_into().unwrap()).into(),
            Self::E4m3 => {
                let (sign, exponent, fraction) =
                    (bytes[0] >> 7, i32::from(bytes[0] >> 3 & 15), f64::from(bytes[0] & 7));
                let value = match exponent {
                    0 => fraction / 8.0 * 2f64.powi(-6),
                    e => (1.0 + fraction / 8.0) * 2f64.powi(e - 7),
                };
                if sign == 1 { -value } else { value }
            }
        }
    }
}

/// Random elements: their values and their bytes.
fn random(count: usize, ty: Type, seed: u32) -> (Vec<f64>, Vec<u8>) {
    let mut next = noise(seed);
    let bytes: Vec<u8> = match ty {
        // All signs and exponents up to 1; no NaN.
        Type::E4m3 => {
            (0..count).map(|_| ((next() * 64.0 + 64.0) as u8 % 0x3f) | (u8::from(next() > 0.0) << 7)).collect()
        }
        Type::Bf16 => (0..count).flat_map(|_| bf16::from_f32(next()).to_le_bytes()).collect(),
        // Of tf32, which drops the last bits.
        Type::F32 => (0..count).flat_map(|_| (next().to_bits() & 0xffff_e000).to_le_bytes()).collect(),
        Type::F16 => (0..count).flat_map(|_| f16::from_f32(next()).to_le_bytes()).collect(),
    };
    (bytes.chunks_exact(ty.bytes()).map(|b| ty.decode(b)).collect(), bytes)
}

/// Checks a product of sizes `m`, `n`, `k`; `transposed` where B is `[n, k]`. The program takes the arguments that `arguments` makes of
/// the addresses, and writes elements of type `out`.
fn product(
    name: &'static str,
    [m, n, k]: [usize; 3],
    ty: Type,
    out: Type,
    transposed: bool,
    blocks: Option<u32>,
    arguments: impl Fn([u64; 3]) -> Vec<u64>,
) {
    product_with(name, [m, n, k], ty, out, transposed, blocks, |addresses| {
        arguments(addresses).iter().map(|v| v.to_le_bytes().to_vec()).collect()
    });
}

/// [`product`] with the bytes of each argument.
fn product_with(
    name: &'static str,
    [m, n, k]: [usize; 3],
    ty: Type,
    out: Type,
    transposed: bool,
    blocks: Option<u32>,
    arguments: impl Fn([u64; 3]) -> Vec<Vec<u8>>,
) {
    let program = Program::new(name);
    let (a, a_bytes) = random(m * k, ty, 3);
    let (b, b_bytes) = random(n * k, ty, 4);
    for schedule in SCHEDULES {
        let memory = GlobalMemory::new();
        let pa = upload(&memory, a_bytes.iter().map(|b| [*b]));
        let pb = upload(&memory, b_bytes.iter().map(|b| [*b]));
        let pc = memory.alloc((m * n * out.bytes()) as u64);
        // Some add to what is there.
        memory.fill(pc, (m * n * out.bytes()) as u64, 0).unwrap();
        let tiles = [m.div_ceil(program.numbers["BM"] as usize), n.div_ceil(program.numbers["BN"] as usize)];
        let grid = blocks.map_or([tiles[0] as u32, tiles[1] as u32, 1], |b| [b, 1, 1]);
        let counts = program.run_with(&memory, grid, arguments([pa, pb, pc]), schedule);
        assert!(counts.of(InstructionKind::Mma) > 0, "{name} multiplies without tensor cores");
        let mut bytes = vec![0; m * n * out.bytes()];
        memory.read(pc, &mut bytes).unwrap();
        let size = out.bytes();
        let error = product_error(
            [m, n, k],
            |row, x| a[row * k + x],
            |x, col| if transposed { b[col * k + x] } else { b[x * n + col] },
            |i| out.decode(&bytes[i * size..][..size]),
        );
        let bound = match out {
            // Half a unit in the last of three bits.
            Type::E4m3 => 6.3e-2,
            Type::F16 => 6e-4,
            _ => 2e-6,
        };
        assert!(error < bound, "{name} {schedule:?}: {error}");
    }
}

/// Strides of A `[m, k]` and of B, `[k, n]` or `[n, k]`, as `gemm` takes them.
fn strided([m, n, k]: [usize; 3], transposed: bool) -> impl Fn([u64; 3]) -> Vec<u64> {
    let b = if transposed { [1, k] } else { [n, 1] };
    move |[pa, pb, pc]| {
        let sizes = [m, n, k, k, 1, b[0], b[1]].map(|v| v as u64);
        [pa, pb, pc].into_iter().chain(sizes).collect()
    }
}

fn sized([m, n, k]: [usize; 3]) -> impl Fn([u64; 3]) -> Vec<u64> {
    move |[pa, pb, pc]| [pa, pb, pc].into_iter().chain([m, n, k].map(|v| v as u64)).collect()
}

#[test]
fn products_by_pointers() {
    let size = [144, 96, 112];
    for name in [
        "gemm_sm80_128x128x32",
        "gemm_sm80_64x64x64",
        "gemm_sm80_128x64x64",
        "gemm_sm90_128x128x32",
        "gemm_sm90_64x64x64",
        "gemm_sm90_128x64x64",
    ] {
        for transposed in [false, true] {
            product(name, size, Type::F16, Type::F32, transposed, None, strided(size, transposed));
        }
    }
}

#[test]
fn products_of_other_types() {
    let size = [144, 256, 80];
    product("gemm_tma_bf16_128x256x64", size, Type::Bf16, Type::F32, true, None, sized(size));
    let size = [272, 48, 48];
    product("gemm_half", size, Type::F16, Type::F16, true, None, strided(size, true));
    for name in ["gemm_sm80_tf32", "gemm_sm90_tf32"] {
        let size = [80, 64, 48];
        product(name, size, Type::F32, Type::F32, true, None, strided(size, true));
    }
}

#[test]
fn products_of_e4m3() {
    let size = [80, 64, 160];
    product("gemm_sm90_e4m3", size, Type::E4m3, Type::F32, true, None, strided(size, true));
    product("gemm_tma_e4m3_out", [64, 128, 80], Type::E4m3, Type::E4m3, true, None, sized([64, 128, 80]));
    product("gemm_tma_e4m3", [64, 128, 272], Type::E4m3, Type::F16, true, None, sized([64, 128, 272]));
}

/// Tiles reach beyond the tensors in every dimension.
#[test]
fn products_by_tensor_maps() {
    let size = [144, 136, 208];
    product("gemm_tma_128x128x64", size, Type::F16, Type::F16, true, None, sized(size));
    product("gemm_tma_64x64x64_mn", size, Type::F16, Type::F16, false, None, sized(size));
    // A cluster of two blocks to a tile.
    product("gemm_tma_two_blocks", size, Type::F16, Type::F16, true, None, sized(size));
}

/// Maps that the host makes, and copies that add to what is in memory.
#[test]
fn products_by_maps_of_the_host() {
    let [m, n, k] = [144, 136, 208];
    product_with("gemm_host", [m, n, k], Type::F16, Type::F16, true, None, |addresses| {
        let mut arguments = Vec::new();
        for (address, [rows, columns]) in addresses.into_iter().zip([[m, k], [n, k], [m, n]]) {
            let mut map = TensorMap::tiled(address, &[columns as u64, rows as u64], &[columns as u64 * 2], &[64, 64]);
            map.swizzle = Swizzle::Bytes128;
            arguments.push(map.to_bytes().to_vec());
            // The shape and the strides, which the program does not read.
            arguments.extend([rows, columns, columns, 1].map(|v| (v as u64).to_le_bytes().to_vec()));
        }
        arguments.extend([m, n, k].map(|v| (v as u64).to_le_bytes().to_vec()));
        arguments
    });
    product("gemm_atomic", [m, n, k], Type::F16, Type::F32, true, None, sized([m, n, k]));
}

/// Warps of different roles; each block has several tiles.
#[test]
fn persistent_products() {
    let size = [256, 192, 192];
    product("gemm_persistent", size, Type::F16, Type::F16, true, Some(2), |addresses| {
        let mut arguments = sized(size)(addresses);
        arguments.push(2);
        arguments
    });
}

#[test]
fn attention() {
    let (heads, tokens, dim) = (2usize, 128usize, 64usize);
    let scale = std::f32::consts::LOG2_E / 8.0;
    for name in ["attention_sm80", "attention_sm90", "attention_tma", "attention_tma_roles"] {
        let program = Program::new(name);
        let inputs = [11, 12, 13].map(|seed| random(heads * tokens * dim, Type::F16, seed));
        for schedule in SCHEDULES {
            let memory = GlobalMemory::new();
            let [q, k, v] = [0, 1, 2].map(|i| upload(&memory, inputs[i].1.iter().map(|b| [*b])));
            let out = memory.alloc((heads * tokens * dim * 2) as u64);
            let mut arguments = vec![q, k, v, out, tokens as u64, scale.to_bits().into()];
            if name.contains("tma") {
                arguments.insert(4, heads as u64);
            }
            program.run(
                &memory,
                [(tokens / program.numbers["BM"] as usize) as u32, heads as u32, 1],
                &arguments,
                schedule,
            );
            let mut bytes = vec![0; heads * tokens * dim * 2];
            memory.read(out, &mut bytes).unwrap();
            let [q, k, v] = [0, 1, 2].map(|i| &inputs[i].0);
            let mut worst = 0f64;
            for row in 0..heads * tokens {
                let first = row / tokens * tokens;
                let dot = |t: usize| -> f64 { (0..dim).map(|d| q[row * dim + d] * k[(first + t) * dim + d]).sum() };
                let weights: Vec<f64> = (0..tokens).map(|t| (dot(t) * f64::from(scale)).exp2()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..dim {
                    let exact: f64 = (0..tokens).map(|t| weights[t] * v[(first + t) * dim + d]).sum::<f64>() / total;
                    let error = (Type::F16.decode(&bytes[(row * dim + d) * 2..][..2]) - exact).abs();
                    worst = if error <= worst { worst } else { error };
                }
            }
            assert!(worst < 1e-3, "{name} {schedule:?}: {worst}");
        }
    }
}
