"""Times OpenVINO's evaluation of the UNet that openvino_export.py has written, and prints its row as JSON.

    python openvino_peer.py --exported FOLDER --steps 4 -r 3 --dtype bf16

OpenVINO has no IP-Adapter: the row is the UNet alone, two rows of the batch as with guidance, `steps` evaluations a sample. The first
evaluation's output is compared with diffusers' in f32. Needs openvino and numpy.
"""
import argparse
import json
import resource
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import openvino as ov

import row as rows

TYPES = {"f32": ov.Type.f32, "bf16": ov.Type.bf16}


def difference(wanted: np.ndarray, got: np.ndarray) -> dict:
    """Relative L2 and the largest difference of two outputs."""
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    return {"relative": float(np.linalg.norm(a - b) / np.linalg.norm(a)), "largest": float(np.abs(a - b).max()),
            "differing": float((a != b).mean()), "checksum": f"{zlib.crc32(wanted.tobytes()):08x}"}


def compiled(args):
    """In the type that was asked for; the plugin takes another without a word where the processor has not got it."""
    settings = {"INFERENCE_PRECISION_HINT": TYPES[args.dtype], "INFERENCE_NUM_THREADS": args.threads,
                "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    model = ov.Core().compile_model(args.exported / "unet.xml", "CPU", settings)
    taken = model.get_property("INFERENCE_PRECISION_HINT")
    if taken != TYPES[args.dtype]:
        sys.exit(f"--dtype {args.dtype}: this processor runs OpenVINO in {taken.get_type_name()}")
    return model


def main(args) -> dict:
    with np.load(args.exported / "check.npz") as file:
        given = {name: file[name] for name in file.files}
    expected, bf16 = given.pop("expected"), float(given.pop("bf16_distance"))
    side = given["sample"].shape[-1] * 8
    if side != args.size:
        sys.exit(f"--size {args.size}: {args.exported} was exported for {side}")
    begin = time.perf_counter()
    model = compiled(args)
    request = model.create_infer_request()
    load = time.perf_counter() - begin

    def evaluate():
        begin = time.perf_counter()
        request.infer(given)
        return time.perf_counter() - begin, np.array(request.get_output_tensor(0).data, dtype=np.float32)

    first, output = evaluate()
    if not np.isfinite(output).all():
        sys.exit("a result is not finite; nothing is reported")
    samples = []
    for run in range(args.warmup + args.repetitions):
        steps = []
        for _ in range(args.steps):
            seconds, again = evaluate()
            if not np.array_equal(output, again):
                sys.exit("two evaluations of the same inputs gave different outputs; nothing is reported")
            steps.append(seconds)
        if run >= args.warmup:
            samples.append({"seconds": sum(steps), "stages": {"denoise": sum(steps)}, "step_seconds": steps})
    host = {"engine": "openvino, UNet alone", "version": ov.__version__.split("-")[0], "build": ov.__version__, "commit": None,
            "device": "cpu", "device_name": rows.processor(), "driver": "none", "dtype": args.dtype, "vae_dtype": None,
            "threads": model.get_property("INFERENCE_NUM_THREADS"), "instructions": None}
    asked = {"model": str(args.exported), "scenario": None, "adapters": 0, "width": side, "height": side, "steps": args.steps,
             "cfg_scale": None, "pictures": 1, "warmup": args.warmup, "checksum": f"{zlib.crc32(output.tobytes()):08x}"}
    out = rows.row(host, asked, load, first, samples)
    return out | {"part": "unet", "outside": [], "skipped": None, "against": difference(expected, output) | {"peer_bf16": bf16},
                  "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exported", type=Path, required=True, help="a folder that openvino_export.py has written")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("-n", "--steps", type=int, default=4, help="evaluations of a sample")
    parser.add_argument("-t", "--threads", type=int, default=rows.cores())
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--dtype", choices=TYPES, default="f32")
    print(json.dumps(main(parser.parse_args())))
