"""Compiles Triton's kernels to PTX: python3 make.py, with triton 3.6.0 of PyPI. No GPU is needed.

The programs are an outside truth for the interpreter: nobody here decides which instructions they use. kernels.json holds, for each
file, the entry, threads, bytes of shared memory and the tile that tests need.
"""

import json
import pathlib

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HERE = pathlib.Path(__file__).parent


@triton.jit
def gemm(a, b, c, m, n, k, sam, sak, sbk, sbn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """C = A B by pointers, with strides of any order."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    pa = a + rows[:, None] * sam + depth[None, :] * sak
    pb = b + depth[:, None] * sbk + columns[None, :] * sbn
    sums = tl.zeros((BM, BN), tl.float32)
    for i in range(0, k, BK):
        x = tl.load(pa, mask=(rows[:, None] < m) & (depth[None, :] + i < k), other=0.0)
        y = tl.load(pb, mask=(depth[:, None] + i < k) & (columns[None, :] < n), other=0.0)
        sums = tl.dot(x, y, sums)
        pa += BK * sak
        pb += BK * sbk
    tl.store(c + rows[:, None] * n + columns[None, :], sums, mask=(rows[:, None] < m) & (columns[None, :] < n))


@triton.jit
def gemm_half(a, b, c, m, n, k, sam, sak, sbk, sbn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """The same with sums in halves, which are taken apart before they are waited for."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    pa = a + rows[:, None] * sam + depth[None, :] * sak
    pb = b + depth[:, None] * sbk + columns[None, :] * sbn
    sums = tl.zeros((BM, BN), tl.float16)
    for i in range(0, k, BK):
        x = tl.load(pa, mask=(rows[:, None] < m) & (depth[None, :] + i < k), other=0.0)
        y = tl.load(pb, mask=(depth[:, None] + i < k) & (columns[None, :] < n), other=0.0)
        sums = tl.dot(x, y, sums, out_dtype=tl.float16)
        pa += BK * sak
        pb += BK * sbk
    tl.store(c + rows[:, None] * n + columns[None, :], sums, mask=(rows[:, None] < m) & (columns[None, :] < n))


@triton.jit
def gemm_tma(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TB: tl.constexpr):
    """C = A B (or A B^T) with tensor maps made on the device."""
    da = tl.make_tensor_descriptor(a, [m, k], [k, 1], [BM, BK])
    if TB:
        db = tl.make_tensor_descriptor(b, [n, k], [k, 1], [BN, BK])
    else:
        db = tl.make_tensor_descriptor(b, [k, n], [n, 1], [BK, BN])
    dc = tl.make_tensor_descriptor(c, [m, n], [n, 1], [BM, BN])
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    sums = tl.zeros((BM, BN), tl.float32)
    for i in range(0, k, BK):
        x = da.load([row, i])
        if TB:
            sums = tl.dot(x, db.load([column, i]).T, sums)
        else:
            sums = tl.dot(x, db.load([i, column]), sums)
    dc.store([row, column], sums.to(c.dtype.element_ty))


@triton.jit
def gemm_host(da, db, dc, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """C = A B^T with tensor maps that the host makes."""
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    sums = tl.zeros((BM, BN), tl.float32)
    for i in range(0, k, BK):
        sums = tl.dot(da.load([row, i]), db.load([column, i]).T, sums)
    dc.store([row, column], sums.to(tl.float16))

@triton.jit
def gemm_atomic(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """C += A B^T, each step of K added to memory by a copy."""
    da = tl.make_tensor_descriptor(a, [m, k], [k, 1], [BM, BK])
    db = tl.make_tensor_descriptor(b, [n, k], [k, 1], [BN, BK])
    dc = tl.make_tensor_descriptor(c, [m, n], [n, 1], [BM, BN])
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    for i in range(0, k, BK):
        dc.atomic_add([row, column], tl.dot(da.load([row, i]), db.load([column, i]).T))


@triton.jit
def gemm_persistent(a, b, c, m, n, k, blocks, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """C = A B^T, each block several tiles, by warps of different roles."""
    da = tl.make_tensor_descriptor(a, [m, k], [k, 1], [BM, BK])
    db = tl.make_tensor_descriptor(b, [n, k], [k, 1], [BN, BK])
    dc = tl.make_tensor_descriptor(c, [m, n], [n, 1], [BM, BN])
    down = tl.cdiv(m, BM)
    for tile in tl.range(tl.program_id(0), down * tl.cdiv(n, BN), blocks, warp_specialize=True):
        row, column = tile % down * BM, tile // down * BN
        sums = tl.zeros((BM, BN), tl.float32)
        for i in range(0, k, BK):
            sums = tl.dot(da.load([row, i]), db.load([column, i]).T, sums)
        dc.store([row, column], sums.to(c.dtype.element_ty))


@triton.jit
def attention(q, k, v, out, tokens, scale, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr):
    """softmax(q k^T scale) v of one head of size D in each row of the grid."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.arange(0, D)
    base = tl.program_id(1) * tokens * D
    x = tl.load(q + base + rows[:, None] * D + d[None, :])
    most = tl.full((BM,), -float("inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    sums = tl.zeros((BM, D), tl.float32)
    for i in range(0, tokens, BN):
        keys = i + tl.arange(0, BN)
        y = tl.load(k + base + keys[:, None] * D + d[None, :])
        scores = tl.dot(x, y.T) * scale
        new = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - new[:, None])
        decay = tl.exp2(most - new)
        total = total * decay + tl.sum(weights, 1)
        z = tl.load(v + base + keys[:, None] * D + d[None, :])
        sums = tl.dot(weights.to(z.dtype), z, sums * decay[:, None])
        most = new
    sums = sums / total[:, None]
    tl.store(out + base + rows[:, None] * D + d[None, :], sums.to(out.dtype.element_ty))


@triton.jit
def attention_tma(q, k, v, out, heads, tokens, scale, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, WS: tl.constexpr):
    """The same with tensor maps, and warps of different roles where WS."""
    dq = tl.make_tensor_descriptor(q, [heads * tokens, D], [D, 1], [BM, D])
    dk = tl.make_tensor_descriptor(k, [heads * tokens, D], [D, 1], [BN, D])
    dv = tl.make_tensor_descriptor(v, [heads * tokens, D], [D, 1], [BN, D])
    do = tl.make_tensor_descriptor(out, [heads * tokens, D], [D, 1], [BM, D])
    base = tl.program_id(1) * tokens
    row = base + tl.program_id(0) * BM
    x = dq.load([row, 0])
    most = tl.full((BM,), -float("inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    sums = tl.zeros((BM, D), tl.float32)
    for i in tl.range(0, tokens, BN, warp_specialize=WS):
        scores = tl.dot(x, dk.load([base + i, 0]).T) * scale
        new = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - new[:, None])
        decay = tl.exp2(most - new)
        total = total * decay + tl.sum(weights, 1)
        z = dv.load([base + i, 0])
        sums = tl.dot(weights.to(z.dtype), z, sums * decay[:, None])
        most = new
    do.store([row, 0], (sums / total[:, None]).to(out.dtype.element_ty))


def compile(name, fn, capability, types, constants, warps=4, stages=3, blocks=1):
    signature = {}
    for arg in fn.arg_names:
        signature[arg] = "constexpr" if arg in constants else types.get(arg, "i32")
    pointers = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(fn.arg_names) if str(signature[arg]).startswith("*")}
    # Sizes and strides are multiples of 16, but for those that are 1.
    sizes = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(fn.arg_names) if arg in ("m", "n", "k", "tokens") and (i,) not in pointers}
    source = ASTSource(fn, signature, constants, {**pointers, **sizes})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages, "num_ctas": blocks})
    useless = (".file", ".loc", "//")
    lines = [line for line in made.asm["ptx"].splitlines() if line.strip() and not line.strip().startswith(useless)]
    text = "\n".join(lines)
    # Debug sections name folders, and are of no use here.
    text = text[: text.index("\t.section")] if "\t.section" in text else text
    (HERE / f"{name}.ptx").write_text(text.rstrip() + "\n")
    entry = made.metadata.name
    threads = warps * 32
    for line in lines:
        if line.strip().startswith(".reqntid"):
            threads = int(line.split()[1].rstrip(","))
    scratch = made.metadata.global_scratch_size
    return {"entry": entry, "threads": threads, "shared": made.metadata.shared, "scratch": scratch, "cluster": blocks, **{k: int(v) for k, v in constants.items()}}


def main():
    f16 = {"a": "*fp16", "b": "*fp16", "c": "*fp32"}
    halves = {**f16, "c": "*fp16"}
    fp8 = {"a": "*fp8e4nv", "b": "*fp8e4nv", "c": "*fp32"}
    out = {}

    def add(name, *args, **kwargs):
        try:
            out[name] = compile(name, *args, **kwargs)
        except Exception as error:  # noqa: BLE001, the cause is printed
            print(name, "refused:", repr(error)[:300])

    for capability in (80, 90):
        for bm, bn, bk, warps in ((128, 128, 32, 4), (64, 64, 64, 4), (128, 64, 64, 8)):
            tile = {"BM": bm, "BN": bn, "BK": bk}
            add(f"gemm_sm{capability}_{bm}x{bn}x{bk}", gemm, capability, {**f16}, tile, warps=warps)
        heads = {"q": "*fp16", "k": "*fp16", "v": "*fp16", "out": "*fp16", "scale": "fp32"}
        add(f"attention_sm{capability}", attention, capability, heads, {"BM": 64, "BN": 64, "D": 64})
    add("gemm_half", gemm_half, 90, halves, {"BM": 256, "BN": 32, "BK": 16}, stages=1)
    add("gemm_sm90_e4m3", gemm, 90, fp8, {"BM": 64, "BN": 64, "BK": 64})
    add("gemm_tma_128x128x64", gemm_tma, 90, halves, {"BM": 128, "BN": 128, "BK": 64, "TB": True}, warps=8)
    add("gemm_tma_64x64x64_mn", gemm_tma, 90, halves, {"BM": 64, "BN": 64, "BK": 64, "TB": False})
    add("gemm_tma_e4m3", gemm_tma, 90, {**fp8, "c": "*fp16"}, {"BM": 64, "BN": 64, "BK": 128, "TB": True})
    add("gemm_tma_e4m3_out", gemm_tma, 90, {**fp8, "c": "*fp8e4nv"}, {"BM": 64, "BN": 64, "BK": 64, "TB": True})
    bf16 = {"a": "*bf16", "b": "*bf16", "c": "*fp32"}
    add("gemm_tma_bf16_128x256x64", gemm_tma, 90, bf16, {"BM": 128, "BN": 256, "BK": 64, "TB": True}, warps=8, stages=2)
    single = {"a": "*fp32", "b": "*fp32", "c": "*fp32"}
    for capability in (80, 90):
        add(f"gemm_sm{capability}_tf32", gemm, capability, single, {"BM": 64, "BN": 32, "BK": 32})
    add("gemm_tma_two_blocks", gemm_tma, 90, halves, {"BM": 128, "BN": 128, "BK": 64, "TB": True}, blocks=2)
    add("gemm_atomic", gemm_atomic, 90, f16, {"BM": 64, "BN": 64, "BK": 64})
    maps = {d: "tensordesc<fp16[64,64]>" for d in ("da", "db", "dc")}
    add("gemm_host", gemm_host, 90, maps, {"BM": 64, "BN": 64, "BK": 64})
    for ws in (False, True):
        name = "attention_tma_roles" if ws else "attention_tma"
        add(name, attention_tma, 90, heads, {"BM": 128, "BN": 64, "D": 64, "WS": ws}, warps=4 if ws else 8, stages=2)
    add("gemm_persistent", gemm_persistent, 90, halves, {"BM": 128, "BN": 64, "BK": 64}, warps=4)
    (HERE / "kernels.json").write_text(json.dumps(out, indent=1) + "\n")


main()
