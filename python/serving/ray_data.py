"""Many requests over many workers with Ray Data, one pipeline each.

    python ray_data.py requests.jsonl images/ --workers 2 --options '{"model": "sdxl.safetensors", "ip_adapter": "ip-adapter.bin"}'

Each line of the file has the arguments of `braid.Pipeline.__call__` for one prompt, images as paths that every worker can read. A line
without `seed` has its own number as seed, so that a request that is drawn again, because its worker died, gives the same bytes. Workers
take a GPU each where there are any, else the CPU.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray

import braid


class Worker:
    """Draws batches: a column `request` of JSON becomes columns `images` (PNG files), `seeds` and `error`."""

    def __init__(self, options: dict[str, Any]):
        self.pipe = braid.Pipeline.from_files(**options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        results = self.pipe.generate_batch([json.loads(text) for text in batch["request"]], return_exceptions=True)
        columns: dict[str, list[Any]] = {"line": list(batch["line"]), "images": [], "seeds": [], "error": []}
        for result in results:
            failed = isinstance(result, Exception)
            columns["images"].append([] if failed else [png(image) for image in result.images])
            columns["seeds"].append([] if failed else result.seeds)
            columns["error"].append(str(result) if failed else "")
        return {name: column if name in ("line", "error") else objects(column) for name, column in columns.items()}


def objects(values: list[Any]) -> np.ndarray:
    """A column of lists, which may differ in length."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def rows(lines: list[str]) -> list[dict[str, Any]]:
    """A row for each line that is not empty: its number, from 1, and its request."""
    result = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                request = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(request, dict):
                raise ValueError(f"line {number}: an object with arguments is expected")
            result.append({"line": number, "request": json.dumps({"seed": number, **request})})
    return result


def draw(requests: list[dict[str, Any]], options: dict[str, Any], *, workers: int, batch_size: int = 8) -> ray.data.Dataset:
    """The dataset of results; nothing is drawn before it is read. One replica a GPU, or a CPU where the cluster has none."""
    gpus = ray.cluster_resources().get("GPU", 0)
    resources = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    device = {} if gpus or "device" in options else {"device": "cpu"}
    blocks = max(1, len(requests) // batch_size)
    return ray.data.from_items(requests, override_num_blocks=blocks).map_batches(
        Worker, fn_constructor_args=({**options, **device},), batch_size=batch_size, concurrency=workers, **resources)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("requests", type=Path)
    parser.add_argument("out", type=Path, help="a folder; images are called LINE-NUMBER.png")
    parser.add_argument("--options", type=json.loads, required=True, help="arguments of braid.Pipeline.from_files, as JSON")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8, help="requests that are given to a worker at once")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ray.init(log_to_driver=False)
    failed = 0
    results = draw(rows(args.requests.read_text().splitlines()), args.options, workers=args.workers, batch_size=args.batch_size)
    for row in results.iter_rows():
        if row["error"]:
            failed += 1
            print(f"{args.requests}: line {row['line']}: {row['error']}", file=sys.stderr)
        for number, image in enumerate(row["images"]):
            path = args.out / f"{row['line']}-{number}.png"
            partial = path.with_suffix(".partial")
            partial.write_bytes(image)
            partial.replace(path)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
