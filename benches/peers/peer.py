"""What both peers share: options, files, clocks, and a measurement that checks the image before it counts."""
import argparse
import json
import resource
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools/goldens"))  # the peers' loaders are those of the golden values

import row as rows  # noqa: E402

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def options(about: str) -> argparse.ArgumentParser:
    """The options of `bench e2e` under its names, and what only a peer needs."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("-m", "--model", type=Path, required=True,
                        help="the folder that `braid synth sdxl` writes, or one with the same files")
    parser.add_argument("--ip-adapter-image", type=Path, required=True)
    parser.add_argument("-p", "--prompt", default="a red fox in the snow")
    parser.add_argument("-n", "--steps", type=int, default=50)
    parser.add_argument("--cfg-scale", type=float, default=5.0)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("-s", "--seed", type=int, default=0)
    parser.add_argument("-t", "--threads", type=int, default=rows.cores())
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=DTYPES, help="default: f32 on the CPU, f16 on CUDA")
    parser.add_argument("--image-before", choices=("auto", "yes", "no"), default="auto",
                        help="encode the reference once, before the other models are loaded, so that its encoder need not "
                             "stay; auto does it where all models together would not fit")
    parser.add_argument("--against", type=Path, help="a PNG of the same request, which the image is compared with")
    parser.add_argument("--picture", type=Path, help="writes the picture")
    return parser


def settle(args) -> None:
    """Fills in what was left to the machine, and tells torch."""
    args.device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    args.dtype = args.dtype or ("f32" if args.device == "cpu" else "f16")
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    if args.image_before == "auto":
        args.image_before = "no" if resident_bytes(args) < 0.9 * free_bytes(args.device) else "yes"


def adapter_file(folder: Path) -> Path:
    """The one adapter of a folder, as `braid synth` or the bundled model names it."""
    found = [p for p in (folder / "ip-adapter_sdxl.bin", folder / "ip-adapter.safetensors") if p.exists()]
    if len(found) != 1:
        sys.exit(f"{folder}: ip-adapter_sdxl.bin or ip-adapter.safetensors is needed, one of the two")
    return found[0]


def resident_bytes(args) -> int:
    """The weights in the type of the run, and a picture's activations: 6 GB for f32 at 1024x1024, most of them the VAE's."""
    values = 0
    for name in ("sdxl.safetensors", "image_encoder/model.safetensors"):
        with open(args.model / name, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        shapes = [tensor["shape"] for key, tensor in header.items() if key != "__metadata__"]
        values += sum(int(np.prod(shape)) for shape in shapes)
    values += adapter_file(args.model).stat().st_size // 2
    return values * (4 if args.dtype == "f32" else 2) + int(6e9 * (args.size / 1024) ** 2)


def free_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo", encoding="utf-8") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


class Clock:
    """Seconds of the stages and steps of one request, under the names of `bench e2e`."""

    def __init__(self, device: str):
        self.device = device
        self.clear()

    def clear(self):
        self.stages, self.marks = {}, []

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def add(self, stage: str, seconds: float):
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    def timed(self, stage: str, work):
        def call(*args, **kwargs):
            begin = self.now()
            out = work(*args, **kwargs)
            self.add(stage, self.now() - begin)
            return out
        return call

    def mark(self):
        """The first call begins the first step, each further one ends a step."""
        self.marks.append(self.now())

    def steps(self) -> list[float]:
        return [b - a for a, b in zip(self.marks, self.marks[1:])]


def measure(args, clock: Clock, draw, host: dict, load: float, outside: list[str]) -> dict:
    """Runs `draw() -> (PIL image, tensors that must be finite)`: a first time, then warm-up, then the samples, each checked
    against the first. `outside` names the stages that were done once before and are in no sample.
    """
    def sample():
        clock.clear()
        begin = clock.now()
        image, tensors = draw()
        seconds = clock.now() - begin
        clock.add("denoise", sum(clock.steps()))
        if not all(torch.isfinite(t).all() for t in tensors):
            sys.exit("a result is not finite; nothing is reported")
        return np.asarray(image), {"seconds": seconds, "stages": clock.stages, "step_seconds": clock.steps()}

    image, first = sample()
    if image.std() < 1:
        sys.exit("the image has one colour; nothing is reported")
    samples = []
    for run in range(args.warmup + args.repetitions):
        again, taken = sample()
        # On the CPU two runs are the same bit for bit; on a GPU libraries may choose another order of sums.
        if difference(image, again)["largest"] > (0 if args.device == "cpu" else 2):
            sys.exit("two runs of the same request gave different images; nothing is reported")
        if run >= args.warmup:
            samples.append(taken)
    request = {
        "model": str(args.model), "scenario": None, "adapters": 1, "width": image.shape[1], "height": image.shape[0],
        "steps": args.steps, "cfg_scale": args.cfg_scale, "pictures": 1, "warmup": args.warmup,
        "checksum": checksum(image)}
    out = rows.row(host | machine(args), request, load, first["seconds"], samples)
    out |= {"outside": outside, "picture_deviation": float(image.std()), "skipped": None}
    out["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if args.picture:
        Image.fromarray(image).save(args.picture)
    if args.against:
        wanted = np.asarray(Image.open(args.against).convert("RGB"))
        out["against"] = difference(wanted, image) | {"checksum": checksum(wanted)}
    return out


def checksum(image: np.ndarray) -> str:
    """As `bench` writes it: CRC-32 of width and height in 64 bits and of the pixels."""
    return f"{zlib.crc32(struct.pack('<QQ', image.shape[1], image.shape[0]) + image.tobytes()):08x}"


def machine(args) -> dict:
    """What `bench` says of the device."""
    cuda, driver = args.device == "cuda", Path("/sys/module/nvidia/version")
    return {
        "device": "cuda:0" if cuda else "cpu", "device_name": torch.cuda.get_device_name() if cuda else rows.processor(),
        "driver": (driver.read_text().strip() if driver.exists() else "unknown") if cuda else "none", "dtype": args.dtype,
        "vae_dtype": vae_dtype(args), "threads": args.threads, "instructions": torch.backends.cpu.get_cpu_capability().lower()}


def vae_dtype(args) -> str:
    """As Braid chooses it: plain f16 overflows in SDXL's VAE."""
    return "bf16" if args.dtype == "f16" else args.dtype


def difference(wanted: np.ndarray, got: np.ndarray) -> dict:
    """Relative L2, the largest difference in levels of 256, and how many values differ; of images of 8 bits a channel."""
    if wanted.shape != got.shape:
        sys.exit(f"the images have different sizes: {wanted.shape} and {got.shape}")
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    return {"relative": float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-9)), "largest": int(np.abs(a - b).max()),
            "differing": float((a != b).mean())}
