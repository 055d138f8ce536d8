"""One peer beside Braid: the commands of both sides. Needs no packages."""
import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


class Failed(Exception):
    """A process that ended badly."""


class Work(NamedTuple):
    """What both sides compute."""
    model: Path
    size: int
    steps: int
    guidance: float
    reference: Path
    compat: str = "diffusers"
    dtype: str | None = None  # None: f32 on the CPU, f16 on CUDA

    def asked(self, args) -> "Work":
        """With what the command line says in place of these."""
        return self._replace(size=args.size or self.size, steps=args.steps or self.steps,
                             guidance=self.guidance if args.cfg_scale is None else args.cfg_scale,
                             reference=args.ip_adapter_image or self.reference)


class Case:
    """A peer that draws whole images."""

    def __init__(self, args, name: str, python: str, script: str, work: Work, extra=()):
        self.args, self.python, self.script, self.work, self.extra = args, python, script, work.asked(args), list(extra)
        self.name = f"{name} {work.dtype}" if work.dtype else name
        self.device = ["--device", args.device] if args.device else []

    def request(self) -> list[str]:
        """What both understand."""
        image = ["--ip-adapter-image", str(self.work.reference), "-p", self.args.prompt]
        return [*image, *self.settings()]

    def settings(self) -> list[str]:
        dtype = ["--dtype", self.work.dtype] if self.work.dtype else []
        return ["--steps", str(self.work.steps), "-t", str(self.args.threads), *self.device, *dtype, *self.guidance()]

    def guidance(self) -> list[str]:
        return ["--cfg-scale", str(self.work.guidance)]

    def quantize(self) -> list[str]:
        """Braid's alone: no peer quantizes."""
        return ["--quantize", self.args.quantize] if self.args.quantize else []

    def checkpoint(self) -> list[str]:
        model = self.work.model
        config = ["--config", str(model / "config")] if (model / "config").is_dir() else []
        return ["--model", str(model / "sdxl.safetensors"), *config]

    def files(self) -> list[str]:
        model = self.work.model
        adapter = next(p for p in (model / "ip-adapter_sdxl.bin", model / "ip-adapter.safetensors") if p.exists())
        return [*self.checkpoint(), "--clip-vision", str(model / "image_encoder"), "--ip-adapter", str(adapter)]

    def braid_image(self, out: Path) -> dict:
        side = str(self.work.size)
        return run(self.args, [self.args.bin / "braid", "generate", *self.files(), *self.request(), *self.quantize(), "-W", side,
                               "-H", side, "--compat", self.work.compat, "--json", "-o", str(out)])

    def prepare(self, folder: Path) -> None:
        """Draws the image that the peer's is compared with; once for all variants of a peer."""
        self.image = folder / f"braid-{self.work.compat}-{self.work.dtype}.png"
        if not self.image.exists():
            self.braid_image(self.image)

    def compat_option(self) -> list[str]:
        """Empty where `bench` does not know it."""
        known = "--compat" in run_text(self.args, [self.args.bin / "bench", "--help"])
        return ["--compat", self.work.compat] if known else []

    def same_profile(self) -> bool:
        return self.work.compat == "diffusers" or bool(self.compat_option())

    def braid_row(self) -> dict:
        return self.bench([*self.files(), *self.request()])

    def bench(self, options: list[str]) -> dict:
        return run(self.args, [self.args.bin / "bench", "e2e", *options, *self.measured(), *self.quantize(),
                               *self.compat_option(), "-o", "json"])[0]

    def measured(self) -> list[str]:
        return ["--size", str(self.work.size), "-r", str(self.args.repetitions), "--warmup", str(self.args.warmup)]

    def peer_row(self) -> dict:
        return run(self.args, [self.python, str(HERE / self.script), "--model", str(self.work.model), *self.request(),
                               *self.measured(), "--against", str(self.image), *self.extra])


class OpenVino(Case):
    """The UNet alone, in two rows; beside it a guided step of Braid's without an adapter."""

    def __init__(self, args, python: str, work: Work):
        super().__init__(args, "openvino", python, "openvino_peer.py", work)
        self.device = ["--device", "cpu"]  # its only one here

    def guidance(self) -> list[str]:
        """Two rows in any case, as the UNet was exported; by how much the rows differ changes no time."""
        return ["--cfg-scale", str(self.work.guidance if self.work.guidance > 1 else 5.0)]

    def prepare(self, folder: Path) -> None:
        """Exports the UNet, unless an earlier run has."""
        self.exported = (self.args.openvino_export or folder / "openvino") / str(self.work.size)
        if not is_exported(self.exported, self.work):
            self.exported.mkdir(parents=True, exist_ok=True)
            run_text(self.args, [self.python, HERE / "openvino_export.py", "--model", self.work.model, "--size", self.work.size,
                                 "-t", self.args.threads, "--out", self.exported])

    def braid_row(self) -> dict:
        return self.bench([*self.checkpoint(), *self.settings()])

    def peer_row(self) -> dict:
        dtype = ["--dtype", self.work.dtype or "f32"]
        return run(self.args, [self.python, str(HERE / self.script), "--exported", str(self.exported), "--steps",
                               str(self.work.steps), "-t", str(self.args.threads), *dtype, *self.measured()])


def export_stamp(work: Work) -> dict:
    """What an exported UNet is of: another file or size needs another."""
    file = (work.model / "sdxl.safetensors").resolve()
    return {"file": str(file), "bytes": file.stat().st_size, "modified": file.stat().st_mtime_ns, "size": work.size}


def is_exported(folder: Path, work: Work) -> bool:
    """By the stamp, which is written last."""
    stamp = folder / "export.json"
    return stamp.exists() and json.loads(stamp.read_text()) == export_stamp(work)


def run_text(args, command: list) -> str:
    """Standard output of a process that computes with as many threads as the others."""
    threads = {name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=os.environ | threads | offline)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Failed(f"{' '.join(str(c) for c in command[:3])}: status {done.returncode}: {last}")
    return done.stdout


def run(args, command: list):
    return json.loads(run_text(args, command))
