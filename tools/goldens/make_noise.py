"""Makes tests/data/noise.json: streams of torch's CPU generator (torch 2.11).

Each stream is one generator with draws that follow each other; a long draw keeps every `step`-th number.
"""
import json
from pathlib import Path

import torch

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SIZES = [16, 1, 5, 17, 15, 31, 32, 64 * 64 * 4, 1, 4]


def stream(seed: int, draws) -> dict:
    g = torch.Generator().manual_seed(seed)
    out = []
    for n, dtype in draws:
        step = 1 if n <= 64 else 331
        values = torch.randn(n, dtype=DTYPES[dtype], generator=g)[::step]
        # Nine digits tell every f32 from its neighbours.
        out.append({"n": n, "dtype": dtype, "step": step, "values": [float(f"{v:.9g}") for v in values.tolist()]})
    return {"seed": str(seed), "draws": out}


torch.set_num_threads(1)
streams = [stream(s, [(n, d) for n in SIZES]) for d in DTYPES for s in (0, 42, 2**32 + 7, 2**63)]
# The f64 number kept by a short draw passes from dtype to dtype; a long draw between does not touch it.
streams.append(stream(3, [(3, "f32"), (20, "f16"), (3, "f16"), (16, "bf16"), (1, "bf16"), (15, "f32"), (33, "f32")]))
# n of the catalogue, each from a fresh generator.
streams += [stream(0, [(n, d)]) for d in DTYPES for n in (1, 5, 15, 17, 31)]
path = Path(__file__).resolve().parents[2] / "tests/data/noise.json"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text("[\n" + ",\n".join(json.dumps(s, separators=(",", ":")) for s in streams) + "\n]\n")
