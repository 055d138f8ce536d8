"""Braid beside diffusers, DiffSynth and OpenVINO: the same files, size, steps, threads and type, alternately, and each pair's ratio.

    python compare.py --diffusers A/bin/python --diffsynth B/bin/python                 # small models, 128x128
    python compare.py --diffusers A/bin/python --model DIR --size 512 --steps 3 -r 1    # full size, files of `braid synth`
    python compare.py --diffusers A/bin/python --openvino C/bin/python --dtype f32,bf16 --variants eager,compile

Each side of a pair is a process of its own that loads, draws once, warms up and is measured: A B A C A B A C ..., Braid being A.
The ratio is Braid's time by the peer's; the table has the median over the pairs and their range. Braid's image is made first, and
each peer's is compared with it. Needs no packages.
"""
import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import row as rows
from case import HERE, Case, Failed, OpenVino, Work, run_text
from report import notes, summary, table

ROOT = HERE.parents[1]
EXPLAINED = """\
No peer is named: only Braid is measured. The peers need environments of their own (about 10 GB of packages):
  python3.11 -m venv a && a/bin/pip install -r tools/goldens/requirements-diffusers.txt
  python3.11 -m venv b && b/bin/pip install -r tools/goldens/requirements-diffsynth.txt
  python3.11 -m venv c && c/bin/pip install -r tools/goldens/requirements-openvino.txt
  make peers PEERS_DIFFUSERS=a/bin/python PEERS_DIFFSYNTH=b/bin/python PEERS_OPENVINO=c/bin/python"""
PEERS = ("diffusers", "diffsynth", "openvino")
DTYPES = ("f32", "f16", "bf16")
MODES = {"eager": None, "compile": "default", "reduce-overhead": "reduce-overhead", "max-autotune": "max-autotune"}
DEFAULT = "eager,eager+channels-last,compile"


class Variant(NamedTuple):
    """How diffusers runs."""
    name: str
    options: list[str]


def variant(text: str) -> Variant:
    """`MODE` or `MODE+channels-last`."""
    mode, plus, memory = text.partition("+")
    if mode not in MODES or (plus and memory != "channels-last"):
        raise argparse.ArgumentTypeError(f"{text!r}: a variant is one of {', '.join(MODES)}, with +channels-last if wanted")
    options = (["--compile", MODES[mode]] if MODES[mode] else []) + (["--memory-format", memory] if plus else [])
    return Variant(text, options)


def variants(text: str) -> list[Variant]:
    return [variant(part) for part in text.split(",")]


def dtypes(text: str) -> list[str]:
    unknown = [part for part in text.split(",") if part not in DTYPES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: a type is one of {', '.join(DTYPES)}")
    return text.split(",")


def arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--diffusers", metavar="PYTHON", help="of an environment with diffusers 0.42.1")
    parser.add_argument("--diffsynth", metavar="PYTHON", help="of an environment with DiffSynth 1.1.9")
    parser.add_argument("--openvino", metavar="PYTHON", help="of an environment with OpenVINO 2026.4.0 and diffusers 0.42.1")
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
    parser.add_argument("--dtype", type=dtypes, metavar="LIST", help="f32, f16, bf16; several are compared one by one; default: f32 "
                        "on the CPU, f16 on a GPU")
    parser.add_argument("--quantize", choices=("int8",), help="Braid's products alone; the peers have nothing like it")
    parser.add_argument("--variants", type=variants, metavar="LIST", help="of diffusers: eager, compile (torch.compile), "
                        "reduce-overhead, max-autotune, each with +channels-last if wanted; default: "
                        f"{DEFAULT}, the last where a compiler is")
    parser.add_argument("--openvino-export", type=Path, metavar="DIR", help="where exported UNets are kept (5.1 GB at full size); "
                        "default: made anew in a temporary folder")
    parser.add_argument("-o", "--output", type=Path, help="writes every row and the summary as JSON")
    args = parser.parse_args(words)
    for name in PEERS:
        python = getattr(args, name)
        if python and not shutil.which(python):
            parser.error(f"--{name}: {python} is not a program that can be run")
        setattr(args, name, python and os.path.abspath(shutil.which(python)))  # not resolved: an environment's is a link
    if args.device == "cpu" and args.dtype and "f16" in args.dtype:
        parser.error("--dtype f16: on the CPU Braid computes it in f32; compare in f32 or bf16")
    args.dtype = args.dtype or [None]
    return args


def works(args, folder: Path) -> dict[str, Work]:
    """By profile: the model, 1024x1024 and 50 steps, or small models at 128x128; the bundled one is no model for DiffSynth."""
    shell = ROOT / "tests/goldens/diffsynth/pictures/shell.png"
    demo, reference = ROOT / "assets/demo", ROOT / "assets/demo/references/1.png"
    if args.model:
        return {compat: Work(args.model, 1024, 50, 5.0, shell, compat) for compat in ("diffusers", "diffsynth")}
    return {"diffusers": Work(demo, 128, 16, 3.0, reference), "diffsynth": Work(folder / "small", 128, 16, 5.0, shell, "diffsynth")}


def cases(args, folder: Path) -> list[Case]:
    out, of = [], works(args, folder)
    if args.diffsynth and not args.model:
        run_text(args, [args.diffsynth, HERE / "small.py", folder / "small"])
    for dtype in args.dtype:
        work = of["diffusers"]._replace(dtype=dtype)
        if args.diffusers:
            wanted = args.variants or [v for v in variants(DEFAULT) if v.name != "compile" or has_compiler(args)]
            out += [Case(args, f"diffusers {v.name}", args.diffusers, "diffusers_peer.py", work, v.options) for v in wanted]
        if args.diffsynth:
            out.append(Case(args, "diffsynth", args.diffsynth, "diffsynth_peer.py", of["diffsynth"]._replace(dtype=dtype)))
        if args.openvino:
            out.append(OpenVino(args, args.openvino, work))
    return out


def has_compiler(args) -> bool:
    """What torch.compile needs: on a GPU its own, on the CPU one of C++."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name) or has_cuda(args)


def has_cuda(args) -> bool:
    if args.device == "cpu":
        return False
    return run_text(args, [args.diffusers, "-c", "import torch; print(torch.cuda.is_available())"]).strip() == "True"


def alternate(among: list[Case], pairs: int, folder: Path, keep=lambda results: None) -> tuple[list[dict], bool]:
    """Rounds of a pair of each case, so that the variants of a peer meet the same machine, too; and whether one failed. A case that
    fails is left out of later rounds and keeps its pairs."""
    taken, failed = {case: [] for case in among}, set()
    results = lambda: [{"peer": case.name, "same_profile": case.same, "summary": summary(done), "pairs": done}
                       for case, done in taken.items() if done]
    for turn in range(pairs + 1):
        for case in [case for case in among if case not in failed]:
            try:
                if turn == 0:
                    case.prepare(folder)
                    case.same = case.same_profile()
                    continue
                taken[case].append((case.braid_row(), case.peer_row()))
            except Failed as error:
                failed.add(case)
                print(f"{case.name}: {error}", file=sys.stderr, flush=True)
                continue
            steps = [row["step_mean_seconds"] * 1000 for row in taken[case][-1]]
            print(f"{case.name}: pair {turn} of {pairs}: {steps[0]:.4g} and {steps[1]:.4g} ms/step, {steps[0] / steps[1]:.3f}",
                  file=sys.stderr, flush=True)
        keep(results())
    return results(), bool(failed)


def alone(args, folder: Path) -> None:
    print(EXPLAINED, file=sys.stderr)
    for dtype in args.dtype:
        row = Case(args, "braid", "", "", works(args, folder)["diffusers"]._replace(dtype=dtype)).braid_row()
        print(f"Braid alone, {row['width']}x{row['height']}, {row['steps']} steps, {row['dtype']}: "
              f"{row['step_mean_seconds'] * 1000:.4g} ms/step, {row['p50_seconds']:.4g} s/image")


def main() -> int:
    args = arguments()
    with tempfile.TemporaryDirectory() as name:
        if not any(getattr(args, peer) for peer in PEERS):
            alone(args, Path(name))
            return 0
        keep = lambda results: args.output and args.output.write_text(json.dumps(results, indent=1) + "\n")
        results, failed = alternate(cases(args, Path(name)), args.pairs, Path(name), keep)
    if results:
        print(table(results), *notes(results), sep="\n")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(str(error))
