#!/usr/bin/env bash
# What a machine with a GPU can show that others cannot: the kernels' tests on it, and beside the interpreter of PTX, kernel by
# kernel; the operations and a small model through the launch layer; all four tools of compute-sanitizer over both; the time
# of each kernel beside what the GPU copies and multiplies in the same run.
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
    local name=$1 start=$SECONDS outcome=ok log=$work/$1.log
    shift
    echo "== $name: $*"
    "$@" >"$log" 2>&1 || outcome=FAILED
    # A tool that says nothing has seen nothing: its summary must be there. racecheck words its own.
    case $name in
        racecheck-*) grep -q "RACECHECK SUMMARY: 0 hazards\|ERROR SUMMARY: 0 errors" "$log" || outcome=FAILED ;;
        memcheck-* | initcheck-* | synccheck-*) grep -q "ERROR SUMMARY: 0 errors" "$log" || outcome=FAILED ;;
    esac
    grep "SUMMARY: " "$log" | grep -qv "SUMMARY: 0 " && outcome=FAILED
    # Nor has a test that found no GPU or no kernels, or a filter that found no test.
    grep -q "skipped: no \|^running 0 tests" "$log" && outcome=FAILED
    [[ $outcome == ok ]] || { failed=1; tail -n 40 "$log"; }
    printf '%s\t%s\t%s\t%s\n' "$name" "$outcome" "$((SECONDS - start))" "$*" >>"$work/parts"
}
# The GPU's memory is the limit of the largest tests, so one at a time.
one=(--nocapture --test-threads=1)

part build cargo test --release --no-run --lib --test gpu --test kernels --test cuda --test ops
part driver cargo test --release --lib device::cuda
part library cargo test --release --test gpu -- "${one[@]}"
part kernels env BRAID_TEST_DRIVER=cuda cargo test --release --test kernels -- --skip timing:: "${one[@]}"
part kernels-on-both env BRAID_TEST_DRIVER=both cargo test --release --test kernels -- --skip timing:: "${one[@]}"
part operations-on-both env BRAID_TEST_DRIVER=both cargo test --release --test ops -- ::cuda "${one[@]}"
part models env BRAID_TEST_DRIVER=cuda cargo test --release --test cuda -- golden::small_model cases:: demo:: --include-ignored "${one[@]}"
part timing cargo test --release --test kernels -- timing::kernels_beside_ceilings "${one[@]}"
# The tests' own files, so that the summary is theirs and not cargo's. Neither true sizes nor what needs no launch.
file() { sed -n "s/.*Executable tests.$1.main.rs (\(.*\)).*/\1/p" "$work/build.log"; }
kernels=$(file kernels) models=$(file cuda)
few=(--skip large:: --skip profile:: --skip figures:: --skip timing:: --skip second_device:: --skip step_past_the_table)
for tool in memcheck racecheck initcheck synccheck; do
    sanitizer=(env BRAID_TEST_DRIVER=cuda compute-sanitizer --tool "$tool" --error-exitcode 9)
    part "$tool-kernels" "${sanitizer[@]}" "${kernels:-no-tests-were-built}" "${few[@]}" --test-threads=1
    part "$tool-model" "${sanitizer[@]}" "${models:-no-tests-were-built}" golden::small_model_f16 --test-threads=1
done

FACTS=$facts COMMIT=$(git describe --always --dirty 2>/dev/null || echo unknown) COMMAND="tools/gpu-check.sh $*" \
    python3 - "$work" <<'PYTHON' || { echo "gpu-check: the report could not be written" >&2; exit 1; }
import datetime, json, os, pathlib, re, sys

work = pathlib.Path(sys.argv[1])
name, driver, capability = (part.strip() for part in os.environ["FACTS"].splitlines()[0].split(","))
parts = [dict(zip(("part", "outcome", "seconds", "command"), line.split("\t"))) for line in (work / "parts").read_text().splitlines()]
lines = {part["part"]: (work / (part["part"] + ".log")).read_text(errors="replace").splitlines() for part in parts}

# The worst of each kernel: a line is printed whenever it has grown.
compared = {}
for line in lines.get("kernels-on-both", []):
    found = re.search(r"compared: (\S+): (\S+) of at most (\S+), (.*)", line)
    if found:
        kernel, difference, bound, unit = found.groups()
        if float(difference) >= float(compared.get(kernel, {"difference": -1})["difference"]):
            compared[kernel] = {"difference": float(difference), "bound": float(bound), "unit": unit}
table = ["| kernel | worst difference | at most | of |", "|---|--:|--:|---|"]
table += [f"| `{k}` | {c['difference']:.1e} | {c['bound']:.0e} | {c['unit']} |" for k, c in sorted(compared.items())]

def kept(part, pattern):
    return [found.group(0) for line in lines.get(part, []) if (found := re.search(pattern, line))]

report = {
    "device": name, "capability": capability, "driver": driver,
    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "commit": os.environ["COMMIT"], "command": os.environ["COMMAND"].strip(), "parts": parts,
    "ceilings": kept("timing", r"ceiling: .*"), "times": kept("timing", r"\| ?[`k-].*\|$"), "compared": compared,
    "errors": kept("operations-on-both", r".* library (true|false) output \d+: .*") + kept("models", r"b?f16 .* on .*"),
    "skipped": sorted({line for name in ("kernels", "kernels-on-both") for line in kept(name, r"\S+: skipped: .*")}),
    "sanitizer": [f"{name}: {line}" for name in lines for line in kept(name, r"[A-Z]+ SUMMARY: .*")],
}
text = [f"{key}: {value}" for key, value in report.items() if isinstance(value, str)]
text += [f"{part['outcome']:6} {part['seconds']:>5} s  {part['part']}: {part['command']}" for part in parts]
for key in ("skipped", "sanitizer", "ceilings", "times"):
    text += ["", key] + report[key]
text += ["", "compared"] + table + ["", "errors"] + report["errors"]
(work / "report.json").write_text(json.dumps(report, indent=1) + "\n")
(work / "report.txt").write_text("\n".join(text) + "\n")
PYTHON
mv "$work/report.json" "$work/report.txt" "$folder"/ || exit 1
cat "$folder/report.txt"
exit "$failed"
