#!/usr/bin/env bash
# What a machine with a GPU can show that others cannot: the tests that need one, each operation's kernels on the CUDA driver
# and on the interpreter of PTX against the CPU, all four tools of compute-sanitizer, and the speed of a large copy and a large
# product, the ceilings of this very run.
#
#   tools/gpu-check.sh [FOLDER]     FOLDER: gpu-check in cargo's target folder
#
# Writes FOLDER/report.txt and FOLDER/report.json, whole or not at all. Succeeds where every part did. 2: no GPU, nothing written.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stop() {
    echo "gpu-check: $*; nothing was written" >&2
    exit 2
}
command -v nvidia-smi >/dev/null || stop "no CUDA device: nvidia-smi is not there, so neither is NVIDIA's driver"
facts=$(nvidia-smi --id=0 --query-gpu=name,driver_version,compute_cap --format=csv,noheader 2>&1) || stop "no CUDA device: $facts"
command -v compute-sanitizer >/dev/null || stop "compute-sanitizer, which comes with the CUDA toolkit, is not in PATH"
command -v python3 >/dev/null || stop "python3 writes the report and is not there"

target=${CARGO_TARGET_DIR:-target}
folder=${1:-$target/gpu-check}
mkdir -p "$folder" || stop "cannot make $folder"
work=$(mktemp -d "$folder/.new.XXXXXX") || stop "cannot write to $folder"
trap 'rm -rf "$work"' EXIT

[[ -n ${BRAID_NVRTC:-} ]] || tools/get-nvrtc.sh || stop "NVRTC is not the one that is pinned"
failed=0
: >"$work/parts"
# part NAME COMMAND...: keeps the output in NAME.log.
part() {
    local name=$1 start=$SECONDS outcome=ok
    shift
    echo "== $name: $*"
    "$@" >"$work/$name.log" 2>&1 || outcome=FAILED
    # racecheck words its last line in its own way.
    case $name in
        sanitizer-racecheck) grep -q "RACECHECK SUMMARY: 0 hazards\|ERROR SUMMARY: 0 errors" "$work/$name.log" || outcome=FAILED ;;
        sanitizer-*) grep -q "ERROR SUMMARY: 0 errors" "$work/$name.log" || outcome=FAILED ;;
    esac
    # A test that found no GPU has shown nothing.
    grep -q "skipped: " "$work/$name.log" && outcome=FAILED
    [[ $outcome == ok ]] || { failed=1; tail -n 40 "$work/$name.log"; }
    printf '%s\t%s\t%s\t%s\n' "$name" "$outcome" "$((SECONDS - start))" "$*" >>"$work/parts"
}

part build cargo test --release --no-run --lib --test gpu --test cuda
part ceilings cargo test --release --test gpu -- --nocapture --test-threads=1
part driver cargo test --release --lib device::cuda
part both-drivers env BRAID_TEST_DRIVER=both cargo test --release --test cuda ops:: -- --nocapture --test-threads=1
# The tests' own file, so that the summary is theirs and not cargo's.
tests=$(sed -n 's/.*Executable tests.cuda.main.rs (\(.*\)).*/\1/p' "$work/build.log")
for tool in memcheck racecheck initcheck synccheck; do
    part "sanitizer-$tool" env BRAID_TEST_DRIVER=cuda compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "${tests:-no-tests-were-built}" ops:: --test-threads=1
done

FACTS=$facts COMMIT=$(git describe --always --dirty 2>/dev/null || echo unknown) COMMAND="tools/gpu-check.sh $*" \
    python3 - "$work" <<'PYTHON' || { echo "gpu-check: the report could not be written" >&2; exit 1; }
import datetime, json, os, pathlib, re, sys

work = pathlib.Path(sys.argv[1])
name, driver, capability = (part.strip() for part in os.environ["FACTS"].splitlines()[0].split(","))
parts = [dict(zip(("part", "outcome", "seconds", "command"), line.split("\t"))) for line in (work / "parts").read_text().splitlines()]
lines = {part["part"]: (work / (part["part"] + ".log")).read_text(errors="replace").splitlines() for part in parts}
report = {
    "device": name, "capability": capability, "driver": driver,
    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "commit": os.environ["COMMIT"], "command": os.environ["COMMAND"].strip(), "parts": parts,
    "ceilings": [line for line in lines.get("ceilings", []) if line.startswith("ceiling: ")],
    "errors": [line for line in lines.get("both-drivers", []) if re.search(r" library (true|false) output \d+: ", line)],
    "sanitizer": [line for part in parts if part["part"].startswith("sanitizer-") for line in lines[part["part"]] if "SUMMARY" in line],
}
text = [f"{key}: {value}" for key, value in report.items() if isinstance(value, str)]
text += [f"{part['outcome']:6} {part['seconds']:>5} s  {part['part']}: {part['command']}" for part in parts]
text += report["ceilings"] + report["sanitizer"] + report["errors"]
(work / "report.json").write_text(json.dumps(report, indent=1) + "\n")
(work / "report.txt").write_text("\n".join(text) + "\n")
PYTHON
mv "$work/report.json" "$work/report.txt" "$folder"/ || exit 1
cat "$folder/report.txt"
exit "$failed"
