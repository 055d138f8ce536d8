#!/usr/bin/env bash
# Puts NVRTC, which compiles the CUDA kernels, into the build's folder, so that their tests can run.
#
#   tools/get-nvrtc.sh [FOLDER]     FOLDER: CARGO_TARGET_DIR/nvrtc, or target/nvrtc
#
# The wheel and its hashes are in tools/nvrtc.txt; pip takes it from the index that it is configured with. What is there already
# is kept. Where there is no pip, no network or no wheel for the machine it says so and succeeds: the tests that need the kernels
# say "skipped" then. A wheel with another hash is an error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:-${CARGO_TARGET_DIR:-target}/nvrtc}
wanted=$(cksum < tools/nvrtc.txt)

skip() {
    echo "nvrtc: $*; the CUDA kernels are not compiled and their tests are skipped"
    exit 0
}

if [[ -e $folder ]]; then
    # A folder without the mark is someone's own, which is left alone.
    [[ ! -e $folder/.pinned || $(cat "$folder/.pinned") == "$wanted" ]] && exit 0
fi
case "$(uname -s) $(uname -m)" in
    "Linux x86_64" | "Linux aarch64") ;;
    *) skip "no wheel is pinned for $(uname -s) on $(uname -m)" ;;
esac
python3 -m pip --version >/dev/null 2>&1 || skip "no pip to get it with (python3 -m pip; set BRAID_NVRTC where you have NVRTC)"

mkdir -p "$(dirname "$folder")"
new=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$new" "$new.log"' EXIT
if ! PIP_USER=0 python3 -m pip --disable-pip-version-check --no-input install --quiet --no-deps --only-binary=:all: \
    --require-hashes --no-compile --retries 1 --timeout 20 --target "$new" -r tools/nvrtc.txt >"$new.log" 2>&1; then
    cat "$new.log" >&2
    if grep -q "DO NOT MATCH THE HASHES" "$new.log"; then
        echo "nvrtc: the wheel that the index gives is not the one that tools/nvrtc.txt pins" >&2
        exit 1
    fi
    skip "pip could not get the wheel"
fi
compgen -G "$new/nvidia/cuda_nvrtc/lib/libnvrtc.so.*" >/dev/null || skip "the wheel holds no libnvrtc"
echo "$wanted" >"$new/.pinned"
chmod 755 "$new"
# Whole or not at all. An older one goes first; where another run has put one there meanwhile, that one stays.
[[ ! -e $folder ]] || rm -rf "$folder"
mv -T "$new" "$folder" 2>/dev/null || [[ -e $folder/.pinned ]]
echo "nvrtc: $folder"
