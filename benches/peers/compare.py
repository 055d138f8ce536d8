"""Braid beside diffusers and DiffSynth: the same files, size, steps, threads and type, alternately, and the ratio of each pair.

    python compare.py --diffusers A/bin/python --diffsynth B/bin/python                 # small models, 128x128
    python compare.py --diffusers A/bin/python --model DIR --size 512 --steps 3 -r 1    # full size, files of `braid synth`

Each side of a pair is a process of its own that loads, draws once, warms up and is measured: A B A B ... The ratio is
Braid's time by the peer's; the table has the median over the pairs and their range. Braid's image is made first, and
each peer's is compared with it. Needs no packages.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import row as rows

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXPLAINED = """\
No peer is named: only Braid is measured. The peers need environments of their own (about 10 GB of packages):
  python3.11 -m venv a && a/bin/pip install -r tools/goldens/requirements-diffusers.txt
  python3.11 -m venv b && b/bin/pip install -r tools/goldens/requirements-diffsynth.txt
  make peers PEERS_DIFFUSERS=a/bin/python PEERS_DIFFSYNTH=b/bin/python"""


class Failed(Exception):
    """A process that ended badly."""


class Case:
    """One peer, its model, and the request that both sides get."""

    def __init__(self, args, name: str, python: str, script: str, model: Path, size: int, steps: int, guidance: float,
                 reference: Path, compat: str, extra=()):
        self.args, self.name, self.python, self.script, self.model = args, name, python, script, model
        self.size, self.steps, self.guidance = args.size or size, args.steps or steps, args.cfg_scale or guidance
        self.reference, self.compat, self.extra = args.ip_adapter_image or reference, compat, list(extra)

    def request(self) -> list[str]:
        """What both understand."""
        return ["--ip-adapter-image", str(self.reference), "-p", self.args.prompt, "--steps", str(self.steps), "--cfg-scale",
                str(self.guidance), "-t", str(self.args.threads), *self.args.device]

    def files(self) -> list[str]:
        adapter = next(p for p in self.model.iterdir() if p.name.startswith("ip-adapter"))
        config = ["--config", str(self.model / "config")] if (self.model / "config").is_dir() else []
        return ["--model", str(self.model / "sdxl.safetensors"), *config, "--clip-vision", str(self.model / "image_encoder"),
                "--ip-adapter", str(adapter)]

    def braid_image(self, out: Path) -> dict:
        side = str(self.size)
        return run(self.args, [self.args.bin / "braid", "generate", *self.files(), *self.request(), "-W", side, "-H", side,
                               "--compat", self.compat, "--json", "-o", str(out)])

    def compat_option(self) -> list[str]:
        """Empty where `bench` does not know it."""
        known = "--compat" in run_text(self.args, [self.args.bin / "bench", "--help"])
        return ["--compat", self.compat] if known else []

    def braid_row(self) -> dict:
        compat = self.compat_option()
        return run(self.args, [self.args.bin / "bench", "e2e", *self.files(), *self.request(), *self.measured(), *compat,
                               "-o", "json"])[0]

    def measured(self) -> list[str]:
        return ["--size", str(self.size), "-r", str(self.args.repetitions), "--warmup", str(self.args.warmup)]

    def peer_row(self, image: Path) -> dict:
        return run(self.args, [self.python, str(HERE / self.script), "--model", str(self.model), *self.request(),
                               *self.measured(), "--against", str(image), *self.extra])


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


def within(row: dict, outside: list[str]) -> float:
    """Median seconds of a request without the stages that the other side does once before."""
    return statistics.median(
        total - sum(row["stages"].get(stage, [0.0] * len(row["seconds"]))[i] for stage in outside)
        for i, total in enumerate(row["seconds"])) / row["pictures"]


def summary(pairs: list[tuple[dict, dict]]) -> dict:
    """Medians of each side, and median, least and greatest of the pairs' ratios."""
    out = {}
    for name, of in (("step", lambda row, _: row["step_mean_seconds"]), ("picture", within)):
        values = [(of(braid, peer["outside"]), of(peer, [])) for braid, peer in pairs]
        ratios = [a / b for a, b in values]
        out[name] = {"braid": statistics.median(a for a, _ in values), "peer": statistics.median(b for _, b in values),
                     "ratio": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}
    return out


def table(results: list[dict]) -> str:
    titles = ["peer", "size", "steps", "threads", "type", "Braid ms/step", "peer ms/step", "ratio", "Braid s/image",
              "peer s/image", "ratio", "pairs", "images differ by"]
    lines = [titles, ["---"] * len(titles)]
    for result in results:
        (braid, peer), s = result["pairs"][0], result["summary"]
        cells = [f"{peer['engine']} {peer['version']}", f"{peer['width']}x{peer['height']}", str(peer["steps"]),
                 str(peer["threads"]), peer["dtype"]]
        for name, unit in (("step", 1000), ("picture", 1)):
            v = s[name]
            cells += [f"{v['braid'] * unit:.4g}", f"{v['peer'] * unit:.4g}",
                      f"**{v['ratio']:.3f}** ({v['least']:.3f} to {v['greatest']:.3f})"]
        worst = max((p["against"] for _, p in result["pairs"]), key=lambda a: a["relative"])
        cells += [str(len(result["pairs"])), f"{worst['relative']:.1e}, at most {worst['largest']} of 255"]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def notes(results: list[dict]) -> list[str]:
    out = []
    for result in results:
        braid, peer = result["pairs"][0]
        if peer["outside"]:
            out.append(f"{peer['engine']}: {', '.join(peer['outside'])} was encoded once before, because not all of its models "
                       "fit into memory at once; Braid's s/image is without that stage, too.")
        if braid.get("build") == "debug":
            out.append(f"{peer['engine']}: Braid is a debug build.")
        if braid["threads"] != peer["threads"] or braid.get("dtype", peer["dtype"]) != peer["dtype"]:
            out.append(f"{peer['engine']}: threads or types differ: the ratio compares different work.")
        checksum = peer["against"]["checksum"]
        if result["same_profile"] and any(b.get("checksum", checksum) != checksum for b, _ in result["pairs"]):
            out.append(f"{peer['engine']}: Braid's measured image is not the one that was compared.")
        if not result["same_profile"]:
            out.append(f"{peer['engine']}: Braid was timed in its default profile (Euler in place of DDIM, the negative text as "
                       "zeros), its image compared in the peer's.")
        if max(p["against"]["relative"] for _, p in result["pairs"]) > 0.02:
            out.append(f"{peer['engine']}: the images differ by more than 2 %: the ratio compares different work.")
    return out


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--diffusers", metavar="PYTHON", help="of an environment with diffusers 0.42.1")
    parser.add_argument("--diffsynth", metavar="PYTHON", help="of an environment with DiffSynth 1.1.9")
    parser.add_argument("--bin", type=Path, default=ROOT / "target/release", help="where braid and bench are")
    parser.add_argument("--model", type=Path, help="the folder of `braid synth sdxl`; default: small models")
    parser.add_argument("--ip-adapter-image", type=Path)
    parser.add_argument("--prompt", default="a red fox in the snow")
    parser.add_argument("--size", type=int, help="default: 128, with --model 1024")
    parser.add_argument("--steps", type=int, help="default: 16, with --model 50")
    parser.add_argument("--cfg-scale", type=float, help="default: 5, of the bundled model 3")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("-r", "--repetitions", type=int, default=3, help="samples of each process")
    parser.add_argument("--warmup", type=int, default=1, help="requests between a process's first and its samples")
    parser.add_argument("-t", "--threads", type=int, default=rows.cores())
    parser.add_argument("--device", help="cpu or cuda; default: what each finds")
    parser.add_argument("--compile", action="append", metavar="MODE", default=[],
                        help="also diffusers with torch.compile in this mode; on a GPU `default` is added by itself")
    parser.add_argument("-o", "--output", type=Path, help="writes every row and the summary as JSON")
    args = parser.parse_args()
    for name in ("diffusers", "diffsynth"):
        python = getattr(args, name)
        if python and not shutil.which(python):
            parser.error(f"--{name}: {python} is not a program that can be run")
        setattr(args, name, python and os.path.abspath(shutil.which(python)))  # not resolved: an environment's is a link
    args.device = ["--device", args.device] if args.device else []
    return args


def cases(args, folder: Path) -> list[Case]:
    shell = ROOT / "tests/goldens/diffsynth/pictures/shell.png"
    demo, reference = ROOT / "assets/demo", ROOT / "assets/demo/references/1.png"
    out = []
    if args.diffusers:
        what = (args.model, 1024, 50, 5.0, shell) if args.model else (demo, 128, 16, 3.0, reference)
        out.append(Case(args, "diffusers", args.diffusers, "diffusers_peer.py", *what, "diffusers"))
        modes = args.compile or (["default"] if has_cuda(args) else [])
        out += [Case(args, f"diffusers compile {mode}", args.diffusers, "diffusers_peer.py", *what, "diffusers",
                     ["--compile", mode]) for mode in modes]
    if args.diffsynth:
        if not args.model:
            run_text(args, [args.diffsynth, HERE / "small.py", folder / "small"])
        what = (args.model, 1024, 50, 5.0, shell) if args.model else (folder / "small", 128, 16, 5.0, shell)
        out.append(Case(args, "diffsynth", args.diffsynth, "diffsynth_peer.py", *what, "diffsynth"))
    return out


def has_cuda(args) -> bool:
    if args.device == ["--device", "cpu"]:
        return False
    return run_text(args, [args.diffusers, "-c", "import torch; print(torch.cuda.is_available())"]).strip() == "True"


def compare(case: Case, folder: Path) -> dict:
    say = lambda text: print(f"{case.name}: {text}", file=sys.stderr, flush=True)
    image = folder / "braid.png"
    case.braid_image(image)
    pairs = []
    for i in range(case.args.pairs):
        pairs.append((case.braid_row(), case.peer_row(image)))
        steps = [row["step_mean_seconds"] * 1000 for row in pairs[-1]]
        say(f"pair {i + 1} of {case.args.pairs}: {steps[0]:.4g} and {steps[1]:.4g} ms/step, {steps[0] / steps[1]:.3f}")
    same = case.compat == "diffusers" or bool(case.compat_option())
    return {"peer": case.name, "same_profile": same, "summary": summary(pairs), "pairs": pairs}


def main() -> int:
    args, results, failed = arguments(), [], False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not (args.diffusers or args.diffsynth):
            print(EXPLAINED, file=sys.stderr)
            what = (args.model, 1024, 50, 5.0) if args.model else (ROOT / "assets/demo", 128, 16, 3.0)
            alone = Case(args, "braid", "", "", *what, ROOT / "assets/demo/references/1.png", "diffusers")
            row = alone.braid_row()
            print(f"Braid alone, {row['width']}x{row['height']}, {row['steps']} steps: {row['step_mean_seconds'] * 1000:.4g} "
                  f"ms/step, {row['p50_seconds']:.4g} s/image")
            return 0
        for case in cases(args, folder):
            try:
                results.append(compare(case, folder))
            except Failed as error:
                failed = True
                print(f"{case.name}: {error}", file=sys.stderr)
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    if results:
        print(table(results), *notes(results), sep="\n")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(str(error))
