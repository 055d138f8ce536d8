"""Process start to the first step: `braid generate` beside diffusers' `from_single_file` and `load_ip_adapter`, alternately.

    python start.py --diffusers A/bin/python --model DIR --size 512

Both read the same checkpoint, image encoder and adapter, encode the same prompt and image, and take one step. Before each
process every file is read once, so that both find them in memory. Of diffusers the moments are its own, on the system's
monotonic clock: imported, loaded, first step begun, first step ended; there it stops. Of Braid they are what the whole
process took less what it says came afterwards (decoding, saving), so that its own end counts against it. Needs no packages.
"""
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import compare
from case import HERE, Case, Failed, run_text


def read_once(folder: Path) -> None:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 23):
                pass


def braid(case: Case, out: Path) -> dict:
    begin = time.monotonic()
    report = case.braid_image(out)
    total, seconds = time.monotonic() - begin, report["seconds"]
    end = total - seconds["decode"] - seconds["save"]
    begun = end - report["step_seconds"][0]
    loaded = begun - seconds["text"] - seconds["image"] - seconds["condition"]
    return {"loaded": loaded, "first_step_begin": begun, "first_step_end": end}


def peer(case: Case, config: Path) -> dict:
    begin = time.monotonic()
    marks = json.loads(run_text(case.args, [
        case.python, HERE / case.script, "--model", case.work.model, *case.request(), "--size", case.work.size, "--config", config,
        "--start"]))
    return {name: at - begin for name, at in marks.items()}


def main() -> int:
    args = compare.arguments()
    if not args.diffusers:
        sys.exit("--diffusers: missing; it names the Python of an environment with diffusers 0.42.1")
    args.steps, args.diffsynth, args.variants = 1, None, compare.variants("eager")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = compare.cases(args, folder)[0]
        # diffusers needs configurations beside a single file; a user has them on disk, and so they are made before.
        write = "import sys, pathlib, diffusers_peer as d; d.configure(*map(pathlib.Path, sys.argv[1:]))"
        config = folder / "config"
        config.mkdir()
        subprocess.run([case.python, "-c", write, config, case.work.model.resolve()], cwd=HERE, check=True, capture_output=True)
        pairs = []
        for i in range(args.pairs):
            read_once(case.work.model)
            ours = braid(case, folder / "braid.png")
            read_once(case.work.model)
            pairs.append((ours, peer(case, config)))
            print(f"pair {i + 1} of {args.pairs}: {ours['first_step_end']:.4g} and {pairs[-1][1]['first_step_end']:.4g} s",
                  file=sys.stderr, flush=True)
    if args.output:
        args.output.write_text(json.dumps({"benchmark": "start", "size": case.work.size, "threads": args.threads,
                                           "model": str(case.work.model), "pairs": pairs}, indent=1) + "\n")
    print(f"Seconds from the process's start, {case.work.size}x{case.work.size}, {args.threads} threads, median of {args.pairs}:\n\n"
          "| until | Braid | diffusers | ratio |\n| --- | --- | --- | --- |")
    for name, text in (("imported", "libraries loaded"), ("loaded", "models loaded"), ("first_step_begin", "first step begins"),
                       ("first_step_end", "first step ends")):
        sides = [[p[side].get(name) for p in pairs] for side in (0, 1)]
        values = [f"{statistics.median(s):.4g}" if None not in s else "" for s in sides]
        ratios = [a / b for a, b in zip(*sides)] if values[0] else []
        ratio = f"**{statistics.median(ratios):.3f}** ({min(ratios):.3f} to {max(ratios):.3f})" if ratios else ""
        print(f"| {text} | {values[0]} | {values[1]} | {ratio} |")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failed, subprocess.CalledProcessError) as error:
        sys.exit(str(error))
