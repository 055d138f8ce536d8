#!/usr/bin/env bash
# Builds the backend for NVIDIA Triton on an installed C interface: tools/install-triton.sh CAPI FOLDER, where FOLDER is `braid` in the
# server's backend directory. `make triton` does it.
set -euo pipefail
(($# == 2)) || {
    echo "usage: tools/install-triton.sh CAPI FOLDER" >&2
    exit 2
}
capi=$1 folder=$2
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../triton/src" && pwd)

[[ -e $capi/lib/libbraid.so.0 ]] || {
    echo "$capi/lib/libbraid.so.0 is missing: make capi installs it" >&2
    exit 1
}
install -d "$folder"
# The server's functions are found when it loads the library. It may close it, but threads of it may run still: it stays in memory.
"${CC:-cc}" -std=c99 -D_POSIX_C_SOURCE=200809L -O2 -Wall -Wextra -fPIC -shared -fvisibility=hidden -I "$capi/include" \
    -o "$folder/libtriton_braid.so" "$source"/*.c -L "$capi/lib" -lbraid \
    -Wl,-rpath,"\$ORIGIN" -Wl,--enable-new-dtags -Wl,-z,nodelete,-z,relro,-z,now
install -m 755 "$(readlink -f "$capi/lib/libbraid.so.0")" "$folder/libbraid.so.0"
