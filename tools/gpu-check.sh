#!/usr/bin/env bash
# What a machine with a GPU can show that others cannot, the most telling first: one request against the CPU; an image alone and in
# a batch; captured work and the same work issued; launches that begin early and none; lazy and eager loading; memory full of NaN;
# algorithms tried and not tried; two pipelines in two threads; the operations and kernels beside the interpreter of PTX;
# compute-sanitizer; the time of each kernel beside what the GPU copies and multiplies in the same run; whole requests, operations and a
# cold start timed.
#
#   tools/gpu-check.sh [FOLDER]     FOLDER: gpu-check in cargo's target folder
#   GPU_CHECK_SECONDS=600           the time for all parts but the build; parts that do not begin within it are left out
#
# After each part that takes time, and at the end, FOLDER/report.txt and FOLDER/report.json are written anew. Parts that have succeeded at this commit, with this
# driver and GPU are not run again, so that a run that was cut off goes on where it was; remove FOLDER to begin anew. Succeeds where
# every part did. 2: no GPU, nothing written.
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
work=$folder/parts
mkdir -p "$work" || stop "cannot make $work"
commit=$(git describe --always --dirty 2>/dev/null || echo unknown)
command="tools/gpu-check.sh $*"
# What was done elsewhere or at another commit counts for nothing.
same="$facts $commit"
[[ $(cat "$work/of" 2>/dev/null) == "$same" ]] || { rm -f "$work"/*.log "$work"/*.part; echo "$same" >"$work/of"; }

[[ -n ${BRAID_NVRTC:-} ]] || tools/get-nvrtc.sh || stop "NVRTC is not the one that is pinned"
failed=0
used=0
names=()

# The report of the parts so far; each file is whole.
report() {
    FACTS=$facts COMMIT=$commit COMMAND=$command python3 - "$work" "$folder" "${names[@]}" <<'PYTHON' ||
import datetime, json, os, pathlib, re, sys

work = pathlib.Path(sys.argv[1])
name, driver, capability = (part.strip() for part in os.environ["FACTS"].splitlines()[0].split(","))
keys = ("part", "outcome", "seconds", "command")
parts = [dict(zip(keys, (work / (name + ".part")).read_text().rstrip("\n").split("\t"))) for name in sys.argv[3:]]
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

def ok(name):
    return any(part["part"] == name and part["outcome"] == "ok" for part in parts)

report = {
    "device": name, "capability": capability, "driver": driver,
    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "commit": os.environ["COMMIT"], "command": os.environ["COMMAND"].strip(), "parts": parts,
    "ceilings": kept("timing", r"ceiling: .*"), "times": kept("timing", r"\| ?[`k-].*\|$"), "compared": compared,
    "errors": kept("operations-on-both", r".* library (true|false) output \d+: .*") + kept("request", r"b?f16 .* on .*"),
    "bench": {name[6:]: json.loads("\n".join(text)) for name, text in lines.items() if name.startswith("bench-") and ok(name)},
    "skipped": sorted(set(kept("kernels-on-both", r"\S+: skipped: .*"))),
    "sanitizer": [f"{name}: {line}" for name in lines for line in kept(name, r"[A-Z]+ SUMMARY: .*")],
}
text = [f"{key}: {value}" for key, value in report.items() if isinstance(value, str)]
text += [f"{part['outcome']:6} {part['seconds']:>5} s  {part['part']}: {part['command']}" for part in parts]
for key in ("skipped", "sanitizer", "ceilings", "times"):
    text += ["", key] + report[key]
text += ["", "compared"] + table + ["", "errors"] + report["errors"]
for name, content in (("report.json", json.dumps(report, indent=1)), ("report.txt", "\n".join(text))):
    new = work / (name + ".new")
    new.write_text(content + "\n")
    new.replace(pathlib.Path(sys.argv[2]) / name)
PYTHON
        { echo "gpu-check: the report could not be written" >&2; exit 1; }
}

# part SECONDS NAME COMMAND...: keeps the output in NAME.log. Longer than SECONDS is a failure.
part() {
    local limit=$1 name=$2 start=$SECONDS outcome=ok log=$work/$2.log took
    shift 2
    names+=("$name")
    if [[ -e $work/$name.part ]] && grep -q "^$name	ok	" "$work/$name.part"; then
        echo "== $name: done before"
        return
    fi
    if [[ $name != build ]] && ((used >= ${GPU_CHECK_SECONDS:-600})); then
        echo "== $name: left out: no time"
        : >"$log"
        printf '%s\t%s\t%s\t%s\n' "$name" "no time" 0 "$*" >"$work/$name.part"
        failed=1
        return
    fi
    echo "== $name: $*"
    timeout "$limit" "$@" >"$log" 2>"$log.errors" || outcome=FAILED
    [[ $name == bench-* ]] || cat "$log.errors" >>"$log"
    # A tool that says nothing has seen nothing: its summary must be there. racecheck words its own.
    case $name in
        racecheck-*) grep -q "RACECHECK SUMMARY: 0 hazards\|ERROR SUMMARY: 0 errors" "$log" || outcome=FAILED ;;
        memcheck-* | initcheck-* | synccheck-*) grep -q "ERROR SUMMARY: 0 errors" "$log" || outcome=FAILED ;;
    esac
    grep "SUMMARY: " "$log" | grep -qv "SUMMARY: 0 " && outcome=FAILED
    # Nor has a test that found no GPU or no kernels, or a filter that found no test.
    grep -q "skipped: no \|^running 0 tests" "$log" && outcome=FAILED
    took=$((SECONDS - start))
    [[ $name == build ]] || used=$((used + took))
    [[ $outcome == ok ]] || { failed=1; tail -n 40 "$log" "$log.errors"; }
    printf '%s\t%s\t%s\t%s\n' "$name" "$outcome" "$took" "$*" >"$work/$name.part"
    ((took == 0)) || report
}
# The GPU's memory is the limit of the largest tests, so one at a time.
one=(--nocapture --test-threads=1)
on_gpu=(env BRAID_TEST_DRIVER=cuda)
# A whole request of the small model: all five executables, against the CPU.
request=(cargo test --release --test cuda -- golden::small_model_f16 "${one[@]}")

part 3600 build cargo test --release --no-run --lib --bins --test gpu --test kernels --test cuda --test ops
part 60 request "${on_gpu[@]}" cargo test --release --test cuda -- golden::small_model "${one[@]}"
part 60 batch-invariance cargo test --release --test gpu -- batch_invariance alone_and_in_a_batch "${one[@]}"
part 60 captured-and-issued cargo test --release --test gpu -- captured_and_issued "${one[@]}"
# Launches that may begin before the last one has ended, and none (BRAID_PDL=0): the same bytes.
part 60 early-launches cargo test --release --test gpu -- early_launches "${one[@]}"
part 60 two-threads cargo test --release --test gpu -- two_pipelines "${one[@]}"
part 40 eager "${on_gpu[@]}" CUDA_MODULE_LOADING=EAGER "${request[@]}"
part 40 lazy "${on_gpu[@]}" CUDA_MODULE_LOADING=LAZY "${request[@]}"
# New memory is full of NaN: what is read before it is written shows in the results.
part 40 poisoned "${on_gpu[@]}" BRAID_POISON=1 "${request[@]}"
part 40 no-trials "${on_gpu[@]}" BRAID_TRIALS=0 "${request[@]}"
part 40 no-cublaslt "${on_gpu[@]}" BRAID_CUBLASLT=none "${request[@]}"
part 60 library cargo test --release --test gpu -- large "${one[@]}"
part 60 driver cargo test --release --lib device::cuda
part 90 operations-on-both env BRAID_TEST_DRIVER=both cargo test --release --test ops -- ::cuda "${one[@]}"
part 60 timing cargo test --release --test kernels -- timing::kernels_beside_ceilings "${one[@]}"
bench=(cargo run --quiet --release --bin bench --)
part 60 bench-e2e "${bench[@]}" e2e --model synthetic:sdxl --device cuda -r 3 -o json
part 60 bench-ops "${bench[@]}" ops --device cuda -o json
part 60 bench-cold "${bench[@]}" cold --model synthetic:small --device cuda -o json
# The tests' own files, so that the summary is theirs and not cargo's. Neither true sizes nor what needs no launch.
file() { sed -n "s/.*Executable tests.$1.main.rs (\(.*\)).*/\1/p" "$work/build.log"; }
kernels=$(file kernels) models=$(file cuda)
few=(--skip large:: --skip profile:: --skip figures:: --skip timing:: --skip second_device:: --skip step_past_the_table)
for tool in memcheck initcheck racecheck synccheck; do
    sanitizer=(env BRAID_TEST_DRIVER=cuda compute-sanitizer --tool "$tool" --error-exitcode 9)
    part 60 "$tool-model" "${sanitizer[@]}" "${models:-no-tests-were-built}" golden::small_model_f16 --test-threads=1
    part 60 "$tool-kernels" "${sanitizer[@]}" "${kernels:-no-tests-were-built}" "${few[@]}" --test-threads=1
done
part 300 kernels-on-both env BRAID_TEST_DRIVER=both cargo test --release --test kernels -- --skip timing:: "${one[@]}"
part 300 models "${on_gpu[@]}" cargo test --release --test cuda -- cases:: demo:: --include-ignored "${one[@]}"

report
cat "$folder/report.txt"
exit "$failed"
