#!/usr/bin/env bash
# tools/gpu-check.sh with stand-ins for cargo, nvidia-smi and compute-sanitizer: what it makes of what they say.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v python3 >/dev/null || { echo "gpu-check: skipped: no python3"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
tool() { { echo '#!/usr/bin/env bash'; cat; } >"$work/bin/$1" && chmod +x "$work/bin/$1"; }

tool nvidia-smi <<'FAKE'
[[ ${NO_GPU:-} ]] && { echo "No devices were found"; exit 6; }
echo "NVIDIA Stand-In, 570.1, 9.0"
FAKE
tool cargo <<'FAKE'
[[ ${RUNS:-} ]] && echo "$*" >>"$RUNS"
case "$*" in
    *--no-run*)
        echo "  Executable tests/kernels/main.rs (target/release/deps/kernels-1)"
        echo "  Executable tests/cuda/main.rs (target/release/deps/cuda-2)" ;;
    *"--bin bench"*)
        echo "a warning" >&2
        echo '{"benchmark": "e2e", "seconds": 1}'
        exit 0 ;;
    *timing::kernels_beside*)
        echo "ceiling: copy 3000 GB/s read and written on NVIDIA Stand-In"
        echo "| kernel | shape | microseconds | GB/s | TFLOP/s | of the ceiling |"
        echo "|---|---|--:|--:|--:|--:|"
        echo "| \`add\` | 4096 x 640 | 9.0 | 1750 | 0.0 | 58 % |" ;;
    *"--test kernels"*)
        # With --nocapture the test's own name may come before what it prints.
        echo "test gemm::products ... compared: gemm_64x64_f16: 1.0e-5 of at most 8e-4, relative difference"
        echo "compared: gemm_64x64_f16: ${DIFFERENCE:-2.5e-4} of at most 8e-4, relative difference"
        echo "compared: add_f16: 0.0e0 of at most 0e0, bytes differ"
        echo "profile::norms: skipped: what it counts, only the interpreter can"
        [[ ${BRAID_TEST_DRIVER:-} == "${WITHOUT:-}" ]] && echo "norms::softmax: skipped: no CUDA device" ;;
esac
[[ "$*" == *golden::* && ${NO_TESTS:-} ]] && echo "running 0 tests" || echo "running 7 tests"
[[ "$*" == *"--test gpu -- large"* ]] && exit "${LIBRARY:-0}"
[[ "$*" == *"--test gpu -- two_pipelines"* ]] && sleep "${SLOW:-0}"
exit 0
FAKE
tool compute-sanitizer <<'FAKE'
echo "========= COMPUTE-SANITIZER"
[[ $5 == target/release/deps/* && $BRAID_TEST_DRIVER == cuda ]] || exit 1
[[ $2 == "${SILENT:-}" ]] && exit 0
[[ $2 == "${FINDS:-}" ]] && found=3 || found=0
[[ $2 == racecheck ]] && echo "========= RACECHECK SUMMARY: $found hazards displayed ($found errors, 0 warnings)" ||
    echo "========= ERROR SUMMARY: $found errors"
FAKE

failures=0
# check NAME STATUS [VARIABLE=VALUE...]: runs the script anew with those.
check() {
    local name=$1 want=$2
    shift 2
    [[ ${KEEP:-} ]] || rm -rf "$work/out"
    env PATH="$work/bin:$PATH" BRAID_NVRTC="$work" CARGO_TARGET_DIR="$work" "$@" tools/gpu-check.sh "$work/out" >"$work/log" 2>&1
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

check "all is well" 0
says "device: NVIDIA Stand-In" "driver: 570.1" "command: tools/gpu-check.sh" "commit: " "date: 20" \
    "| \`gemm_64x64_f16\` | 2.5e-04 | 8e-04 | relative difference |" "| \`add_f16\` | 0.0e+00 | 0e+00 | bytes differ |" \
    "| \`add\` | 4096 x 640 | 9.0 | 1750 | 0.0 | 58 % |" "ceiling: copy 3000 GB/s" \
    "profile::norms: skipped: what it counts" "racecheck-model: RACECHECK SUMMARY: 0 hazards" "memcheck-kernels: ERROR SUMMARY: 0"
python3 -c 'import json, sys
report = json.load(open(sys.argv[1]))
report["parts"][1]["part"] == "request" and report["bench"]["e2e"]["seconds"] == 1 or sys.exit(1)' "$work/out/report.json" ||
    { echo "gpu-check: report.json is not what it should be"; failures=1; }
for tool in memcheck racecheck initcheck synccheck; do
    check "$tool without its summary" 1 SILENT="$tool"
    says "FAILED" "$tool-kernels"
    check "$tool with findings" 1 FINDS="$tool"
done
check "a test that fails" 1 LIBRARY=101
says "FAILED     0 s  library" "ok         0 s  models"
# What failed is run again, and nothing else is.
rm -f "$work/runs"
KEEP=1 check "the rest after a failure" 0 RUNS="$work/runs"
says "ok         0 s  library"
[[ $(wc -l <"$work/runs") == 1 ]] || { echo "gpu-check: more than what failed ran again"; cat "$work/runs"; failures=1; }
check "a part that takes the time" 1 SLOW=2 GPU_CHECK_SECONDS=2
says "ok         2 s  two-threads" "no time     0 s  eager" "no time     0 s  racecheck-kernels"
check "the comparison without the GPU" 1 WITHOUT=both
check "a filter that finds no test" 1 NO_TESTS=1
check "no GPU" 2 NO_GPU=1
[[ -e $work/out ]] && { echo "gpu-check: a report without a GPU"; failures=1; }
[[ $failures == 0 ]] && echo "gpu-check: its parts, its report and its refusals are as they should be"
exit "$failures"
