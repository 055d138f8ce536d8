#!/usr/bin/env bash
# What a machine with a GPU can show that others cannot, the most telling first: one request against the CPU; the kernels of sm_90a in f16,
# bf16 and FP8 where the GPU has them; an image alone and in a batch; captured work and the same work issued; launches that begin early and
# none; an engine and a cancelled request; two pipelines in two threads; the time of each kernel beside what the GPU copies and multiplies
# in the same run; whole requests, operations and a cold start timed; lazy and eager loading; memory full of NaN; algorithms tried, not
# tried and absent; the kernels and operations beside the interpreter of PTX; compute-sanitizer.
#
#   tools/gpu-check.sh [FOLDER]     FOLDER, for the report: gpu-check in cargo's target folder
#   tools/gpu-check.sh --build      only builds the programs, into gpu-check/programs.tar.xz there: for a machine with a GPU, this
#                                   checkout and no cargo, which takes them from the same place
#   GPU_CHECK_SECONDS=540           the time for all parts but the build; parts that do not end within it are left out
#
# After each part that takes time, and at the end, FOLDER/report.txt and FOLDER/report.json are written anew. Parts that have succeeded
# at this commit, with this driver and GPU are not run again, so that a run that was cut off goes on where it was; their output is in
# gpu-check/parts in cargo's target folder: remove it to begin anew. Succeeds where every part did. 2: no GPU, nothing written.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stop() {
    echo "gpu-check: $*; nothing was written" >&2
    exit 2
}
target=${CARGO_TARGET_DIR:-target}
cargo=${CARGO:-cargo}
bin=$target/gpu-check/bin
programs=$target/gpu-check/programs.tar.xz

# The programs by the lines with which cargo names them, without what only a debugger reads, and of which commit and from where they are.
build() {
    set -o pipefail
    local name path log=$target/gpu-check/build.log
    # Where this fails no earlier ones run.
    rm -rf "$bin" && mkdir -p "$bin" || return 1
    [[ -n ${BRAID_NVRTC:-} ]] || tools/get-nvrtc.sh || return 1
    "$cargo" build --release --bin bench || return 1
    "$cargo" test --release --no-run --lib --test gpu --test kernels --test cuda --test ops 2>&1 | tee "$log" || return 1
    cp "$target/release/bench" "$bin/bench" || return 1
    for name in lib gpu kernels cuda ops; do
        path=$(sed -n "s:.*Executable .*\(src\|tests\)/$name\(/main\)\?\.rs (\(.*\)).*:\3:p" "$log")
        cp "$path" "$bin/$name" || return 1
    done
    strip "$bin"/* 2>/dev/null
    { git describe --always --dirty 2>/dev/null || echo unknown; pwd; } >"$bin/of"
}
if [[ ${1:-} == --build ]]; then
    build && tar -cJf "$programs" -C "$bin" . && ls -l "$programs"
    exit
fi

command -v nvidia-smi >/dev/null || stop "no CUDA device: nvidia-smi is not there, so neither is NVIDIA's driver"
facts=$(nvidia-smi --id=0 --query-gpu=name,driver_version,compute_cap --format=csv,noheader 2>&1) || stop "no CUDA device: $facts"
command -v python3 >/dev/null || stop "python3 writes the report and is not there"
if command -v "$cargo" >/dev/null; then
    commit=$(git describe --always --dirty 2>/dev/null || echo unknown)
else
    [[ ! -e $programs ]] || { mkdir -p "$bin" && python3 -m tarfile -e "$programs" "$bin"; } || stop "cannot unpack $programs"
    [[ -e $bin/of ]] || stop "no cargo, and no $programs: tools/gpu-check.sh --build makes it elsewhere"
    { read -r commit && read -r built_in; } <"$bin/of"
    # The programs look for their data where they were built.
    [[ -e $built_in ]] || { mkdir -p "$(dirname "$built_in")" && ln -s "$PWD" "$built_in"; } ||
        stop "cannot make $built_in, where the programs look for their data"
fi
# Where the CUDA toolkit puts it. Without it, its parts fail, and the others run.
command -v compute-sanitizer >/dev/null || PATH=$PATH:/usr/local/cuda/bin

folder=${1:-$target/gpu-check}
work=$target/gpu-check/parts
mkdir -p "$work" "$folder" || stop "cannot make $work and $folder"
command="tools/gpu-check.sh $*"
seconds=${GPU_CHECK_SECONDS:-540}
# What was done elsewhere or at another commit counts for nothing.
same="$facts $commit"
[[ $(cat "$work/of" 2>/dev/null) == "$same" ]] || { rm -f "$work"/*.log "$work"/*.part; echo "$same" >"$work/of"; }

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
for line in lines.get("hopper-kernels-on-both", []) + lines.get("kernels-on-both", []):
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
    "errors": kept("operations-on-both", r".* library (true|false) output \d+: .*") + kept("request", r"b?f16 .* on .*")
    + kept("hopper", r".*(output \d+: \S+|latents \S+ of .*)") + kept("models", r"(b?f16|fp8) .*(dB|fp8 \S+)"),
    "bench": {name[6:]: json.loads("\n".join(text)) for name, text in lines.items() if name.startswith("bench-") and ok(name)},
    "skipped": sorted({line for name in lines for line in kept(name, r"\S+: skipped: .*")}),
    "sanitizer": [f"{name}: {line}" for name in lines for line in kept(name, r"[A-Z]+ SUMMARY: .*")],
    # What else there is of a part that failed stays on that machine.
    "failures": {part["part"]: lines[part["part"]][-60:] for part in parts if part["outcome"] == "FAILED"},
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
    local limit=$1 name=$2 start=$SECONDS outcome=ok log=$work/$2.log left took status
    shift 2
    names+=("$name")
    # Cargo knows better what is built.
    if [[ $name != build && -e $work/$name.part ]] && grep -q "^$name	ok	" "$work/$name.part"; then
        echo "== $name: done before"
        return
    fi
    left=$((seconds - used))
    [[ $name == build ]] && left=$limit
    if ((left <= 0)); then
        echo "== $name: left out: no time"
        : >"$log"
        printf '%s\t%s\t%s\t%s\n' "$name" "no time" 0 "$*" >"$work/$name.part"
        failed=1
        return
    fi
    echo "== $name: $*"
    timeout -k 5 "$((left < limit ? left : limit))" "$@" >"$log" 2>"$log.errors"
    status=$?
    ((status == 0)) || outcome=FAILED
    [[ $name == bench-* ]] || cat "$log.errors" >>"$log"
    # A tool that says nothing has seen nothing: its summary must be there. racecheck words its own.
    case $name in
        racecheck-*) grep -q "RACECHECK SUMMARY: 0 hazards\|ERROR SUMMARY: 0 errors" "$log" || outcome=FAILED ;;
        memcheck-* | initcheck-* | synccheck-*) grep -q "ERROR SUMMARY: 0 errors" "$log" || outcome=FAILED ;;
    esac
    grep "SUMMARY: " "$log" | grep -qv "SUMMARY: 0 " && outcome=FAILED
    # Nor has a test that found no GPU or no kernels, or a filter that found no test.
    grep -q "skipped: no \|^running 0 tests" "$log" && outcome=FAILED
    # Cut off by the end of all the time, not by its own.
    ((status == 124 || status == 137)) && ((left < limit)) && outcome="no time"
    took=$((SECONDS - start))
    [[ $name == build ]] || used=$((used + took))
    [[ $outcome == ok ]] || { failed=1; tail -n 40 "$log" "$log.errors"; }
    printf '%s\t%s\t%s\t%s\n' "$name" "$outcome" "$took" "$*" >"$work/$name.part"
    ((took == 0)) || report
}
export -f build
export cargo target bin
# The GPU's memory is the limit of the largest tests, so one at a time.
one=(--nocapture --test-threads=1)
on_gpu=(env BRAID_TEST_DRIVER=cuda)
on_both=(env BRAID_TEST_DRIVER=both)
# A whole request of the small model: all five executables, against the CPU.
request=("$bin/cuda" golden::small_model_f16 "${one[@]}")
# The same with products by cuBLASLt: several images, and what was captured.
library=("$bin/gpu" alone_and_in_a_batch captured_and_issued "${one[@]}")

command -v "$cargo" >/dev/null && part 3600 build bash -c build
part 60 request "${on_gpu[@]}" "$bin/cuda" golden::small_model "${one[@]}"
[[ $facts == *", 9.0"* ]] && part 60 hopper "${on_gpu[@]}" "$bin/cuda" sm90:: fp8::block euler_by_wgmma "${one[@]}"
part 60 batch-invariance "$bin/gpu" batch_invariance alone_and_in_a_batch "${one[@]}"
part 60 captured-and-issued "$bin/gpu" captured_and_issued "${one[@]}"
# Launches that may begin before the last one has ended, and none (BRAID_PDL=0).
part 60 early-launches "$bin/gpu" early_launches "${one[@]}"
part 60 engine "$bin/gpu" engine_and_cancellation "${one[@]}"
part 60 two-threads "$bin/gpu" two_pipelines "${one[@]}"
[[ $facts == *", 9.0"* ]] && part 90 hopper-kernels-on-both "${on_both[@]}" "$bin/kernels" sm90:: fp8:: "${one[@]}"
part 60 timing "$bin/kernels" timing::kernels_beside_ceilings "${one[@]}"
# A step and an image alone, and images a second.
sdxl=(e2e --model synthetic:sdxl --device cuda -n 20 -b 1,4 -r 3 -o json)
part 120 bench-e2e "$bin/bench" "${sdxl[@]}"
part 90 bench-ops "$bin/bench" ops --device cuda -o json
[[ $facts == *", 9.0"* ]] && part 120 bench-fp8 "$bin/bench" "${sdxl[@]}" --quantize fp8
part 60 bench-cold "$bin/bench" cold --model synthetic:small --device cuda -o json
part 40 eager "${on_gpu[@]}" CUDA_MODULE_LOADING=EAGER "${request[@]}"
part 40 lazy "${on_gpu[@]}" CUDA_MODULE_LOADING=LAZY "${request[@]}"
# New memory is full of NaN: what is read before it is written shows in the results.
part 40 poisoned "${on_gpu[@]}" BRAID_POISON=1 "${request[@]}"
part 40 no-trials env BRAID_TRIALS=0 "${library[@]}"
part 40 no-cublaslt env BRAID_CUBLASLT=none "${library[@]}"
part 60 library "$bin/gpu" large "${one[@]}"
part 60 driver "$bin/lib" device::cuda
part 90 operations-on-both "${on_both[@]}" "$bin/ops" ::cuda "${one[@]}"
# Neither true sizes nor what needs no launch.
few=(--skip large:: --skip profile:: --skip figures:: --skip timing:: --skip second_device:: --skip step_past_the_table)
for tool in memcheck initcheck racecheck synccheck; do
    sanitizer=("${on_gpu[@]}" compute-sanitizer --tool "$tool" --error-exitcode 9)
    part 60 "$tool-model" "${sanitizer[@]}" "$bin/cuda" golden::small_model_f16 --test-threads=1
    [[ $facts == *", 9.0"* ]] && part 60 "$tool-hopper" "${sanitizer[@]}" "$bin/cuda" sm90::block fp8::block --test-threads=1
    part 60 "$tool-kernels" "${sanitizer[@]}" "$bin/kernels" "${few[@]}" --test-threads=1
done
part 300 kernels-on-both "${on_both[@]}" "$bin/kernels" --skip timing:: --skip sm90:: --skip fp8:: "${one[@]}"
part 300 models "${on_gpu[@]}" "$bin/cuda" cases:: demo:: fp8::unet --include-ignored "${one[@]}"

report
cat "$folder/report.txt"
exit "$failed"
