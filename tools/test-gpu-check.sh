#!/usr/bin/env bash
# tools/gpu-check.sh with stand-ins for cargo, what it builds, nvidia-smi and compute-sanitizer: what it makes of what they say.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v python3 >/dev/null || { echo "gpu-check: skipped: no python3"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
tool() { { echo '#!/usr/bin/env bash'; cat; } >"$work/bin/$1" && chmod +x "$work/bin/$1"; }

tool nvidia-smi <<'FAKE'
[[ ${NO_GPU:-} ]] && { echo "No devices were found"; exit 6; }
echo "NVIDIA Stand-In, 570.1, ${CAPABILITY:-9.0}"
FAKE
tool cargo <<'FAKE'
[[ ${BROKEN:-} ]] && { echo "error: could not compile"; exit 101; }
built=$CARGO_TARGET_DIR/release
mkdir -p "$built"
case "$*" in
    *"--bin bench"*) cp "$(dirname "$0")/program" "$built/bench" ;;
    *--no-run*)
        cp "$(dirname "$0")/program" "$built/a-test"
        for source in "unittests src/lib.rs" tests/gpu.rs tests/kernels/main.rs tests/cuda/main.rs tests/ops/main.rs; do
            echo "  Executable $source ($built/a-test)" >&2
        done ;;
    *) exit 1 ;;
esac
FAKE
tool program <<'FAKE'
name=$(basename "$0")
[[ ${RUNS:-} ]] && echo "$name $*" >>"$RUNS"
case "$name $*" in
    "bench "*)
        echo "a warning" >&2
        echo '{"benchmark": "e2e", "seconds": 1}'
        exit 0 ;;
    "kernels timing::kernels_beside"*)
        echo "ceiling: copy 3000 GB/s read and written on NVIDIA Stand-In"
        echo "| kernel | shape | microseconds | GB/s | TFLOP/s | of the ceiling |"
        echo "|---|---|--:|--:|--:|--:|"
        echo "| \`add\` | 4096 x 640 | 9.0 | 1750 | 0.0 | 58 % |" ;;
    "kernels "*)
        # With --nocapture the test's own name may come before what it prints.
        echo "test gemm::products ... compared: gemm_64x64_f16: 1.0e-5 of at most 8e-4, relative difference"
        echo "compared: gemm_64x64_f16: 2.5e-4 of at most 8e-4, relative difference"
        echo "compared: add_f16: 0.0e0 of at most 0e0, bytes differ"
        echo "profile::norms: skipped: what it counts, only the interpreter can"
        [[ ${BRAID_TEST_DRIVER:-} == "${WITHOUT:-}" ]] && echo "norms::softmax: skipped: no CUDA device" ;;
esac
[[ "$*" == *golden::* && ${NO_TESTS:-} ]] && echo "running 0 tests" || echo "running 7 tests"
[[ "$name $*" == "gpu large"* && ${LIBRARY:-} ]] && { echo "what failed"; exit "$LIBRARY"; }
[[ "$name $*" == "gpu two_pipelines"* ]] && sleep "${SLOW:-0}"
exit 0
FAKE
tool compute-sanitizer <<'FAKE'
echo "========= COMPUTE-SANITIZER"
[[ $5 == */gpu-check/bin/* && $BRAID_TEST_DRIVER == cuda ]] || exit 1
[[ ${SILENT:-} ]] && exit 0
found=${FINDS:-0}
[[ $2 == racecheck ]] && echo "========= RACECHECK SUMMARY: $found hazards displayed ($found errors, 0 warnings)" ||
    echo "========= ERROR SUMMARY: $found errors"
FAKE

failures=0
# script [VARIABLE=VALUE...] [--build]: runs it with those.
script() {
    local build=()
    [[ ${*: -1} == --build ]] && { build=(--build); set -- "${@:1:$#-1}"; }
    env PATH="$work/bin:$PATH" BRAID_NVRTC="$work" CARGO_TARGET_DIR="$work" CARGO=cargo "$@" \
        tools/gpu-check.sh "${build[@]:-$work/out}" >"$work/log" 2>&1
}
# check NAME STATUS [VARIABLE=VALUE...]: runs the script anew with those.
check() {
    local name=$1 want=$2
    shift 2
    [[ ${KEEP:-} ]] || rm -rf "$work/out" "$work/gpu-check"
    script "$@"
    local got=$?
    [[ $got == "$want" ]] || { echo "gpu-check: $name: status $got, $want expected"; cat "$work/log"; failures=1; }
}
# says TEXT...: the report of the last run has each of them.
says() {
    local text
    for text; do
        grep -qF -- "$text" "$work/out/report.txt" || { echo "gpu-check: no \`$text\` in the report"; failures=1; }
    done
}
# parts OUTCOME NAME...: each of these parts ended so.
parts() {
    local outcome=$1 name
    shift
    for name; do
        grep -qE "^$outcome +[0-9]+ s  $name: " "$work/out/report.txt" || { echo "gpu-check: $name is not $outcome"; failures=1; }
    done
}
# json EXPRESSION: it holds of the report as `report`.
json() {
    python3 -c 'import json, sys
report = json.load(open(sys.argv[1]))
eval(sys.argv[2]) or sys.exit(sys.argv[2])' "$work/out/report.json" "$1" || failures=1
}

check "all is well" 0
says "device: NVIDIA Stand-In" "driver: 570.1" "command: tools/gpu-check.sh" "commit: " "date: 20" \
    "| \`gemm_64x64_f16\` | 2.5e-04 | 8e-04 | relative difference |" "| \`add_f16\` | 0.0e+00 | 0e+00 | bytes differ |" \
    "| \`add\` | 4096 x 640 | 9.0 | 1750 | 0.0 | 58 % |" "ceiling: copy 3000 GB/s" \
    "profile::norms: skipped: what it counts" "racecheck-model: RACECHECK SUMMARY: 0 hazards" "memcheck-kernels: ERROR SUMMARY: 0"
parts ok build request hopper engine bench-fp8 memcheck-hopper models
json 'report["parts"][1]["part"] == "request" and report["bench"]["e2e"]["seconds"] == 1 and report["failures"] == {}'
check "another GPU" 0 CAPABILITY=8.0
says "capability: 8.0"
json 'not any("hopper" in part["part"] or "fp8" in part["part"] for part in report["parts"])'
tools=({memcheck,racecheck,initcheck,synccheck}-{model,hopper,kernels})
check "sanitizers without a summary" 1 SILENT=1
parts FAILED "${tools[@]}"
check "sanitizers with findings" 1 FINDS=3
parts FAILED "${tools[@]}"
parts ok request models
check "a test that fails" 1 LIBRARY=101
parts FAILED library
parts ok models
json '"what failed" in report["failures"]["library"]'
# What failed is run again, and nothing else is.
rm -f "$work/runs"
KEEP=1 check "the rest after a failure" 0 RUNS="$work/runs"
parts ok library
[[ $(wc -l <"$work/runs") == 1 ]] || { echo "gpu-check: more than what failed ran again"; cat "$work/runs"; failures=1; }
check "a part that takes the time" 1 SLOW=60 GPU_CHECK_SECONDS=2
parts "no time" two-threads eager racecheck-kernels
json 'report["failures"] == {}'
check "the comparison without the GPU" 1 WITHOUT=both
check "a filter that finds no test" 1 NO_TESTS=1
# Nothing is run that an earlier build left.
KEEP=1 check "a build that fails" 1 BROKEN=1
parts FAILED build request
check "no cargo and nothing built" 2 CARGO=no-cargo
[[ -e $work/out ]] && { echo "gpu-check: a report without programs"; failures=1; }
script --build || { echo "gpu-check: the programs were not built"; cat "$work/log"; failures=1; }
rm -rf "$work/gpu-check/bin"
KEEP=1 check "no cargo, and programs of another machine" 0 CARGO=no-cargo
parts ok request models
json '"build" not in {part["part"] for part in report["parts"]} and report["commit"] != "unknown"'
check "no GPU" 2 NO_GPU=1
[[ -e $work/out ]] && { echo "gpu-check: a report without a GPU"; failures=1; }
[[ $failures == 0 ]] && echo "gpu-check: its parts, its report and its refusals are as they should be"
exit "$failures"
