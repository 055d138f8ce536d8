"""One measurement in the fields of `bench e2e -o json`. Only Python's own library, so that compare.py needs nothing more."""
import datetime
import math
import os
import platform


def mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def deviation(values: list[float]) -> float | None:
    """With n - 1; none for one sample."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - 1))


def percentile(values: list[float], percent: int) -> float:
    """The nearest rank: the smallest sample that at least that many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1] if ordered else math.nan


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def row(host: dict, request: dict, load: float, first: float, samples: list[dict]) -> dict:
    """`host` and `request` are taken as they are. A sample is `{"seconds", "stages": {name: s}, "step_seconds": [s]}`."""
    seconds = [s["seconds"] for s in samples]
    names = sorted({name for s in samples for name in s["stages"]})
    stages = {name: [s["stages"].get(name, 0.0) for s in samples] for name in names}
    middle = mean(seconds)
    return {
        "benchmark": "e2e", **host, "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), **request,
        "repetitions": len(samples), "load_seconds": load, "first_seconds": first, "mean_seconds": middle,
        "sd_seconds": deviation(seconds), "p50_seconds": percentile(seconds, 50), "p90_seconds": percentile(seconds, 90),
        "p99_seconds": percentile(seconds, 99), "pictures_per_second": request["pictures"] / middle,
        "step_mean_seconds": mean([t for s in samples for t in s["step_seconds"]]),
        "stage_share": {name: mean(values) / middle for name, values in stages.items()},
        "seconds": seconds, "stages": stages, "step_seconds": [s["step_seconds"] for s in samples]}
