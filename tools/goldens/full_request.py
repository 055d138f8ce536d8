"""The request of full_diffusers.py and full_diffsynth.py, which is DiffSynth's published sample, and the line they print."""
import argparse
import json
import resource
import statistics
from pathlib import Path

import torch

PROMPT = "A super man"
NEGATIVE = "text, watermark, lowres, low quality, worst quality, deformed, glitch, low contrast, noisy, saturation, blurry"


def options(about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--negative-prompt", default=NEGATIVE)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cfg-scale", type=float, default=5.0)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--image-resize", type=int, nargs=2, default=[1024, 1024], metavar=("W", "H"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def tell(peer: str, args, seconds: list[float]) -> None:
    """One JSON line: seconds of each guided step, their median without the first, and the peak of resident memory."""
    print(json.dumps({
        "peer": peer, "torch": torch.__version__, "threads": args.threads, "width": args.width, "height": args.height,
        "seconds_per_step": [round(s, 4) for s in seconds], "median_warm": round(statistics.median(seconds[1:] or seconds), 4),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
