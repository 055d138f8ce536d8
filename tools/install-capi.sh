#!/usr/bin/env bash
# Installs the C interface that cargo has built in a folder: tools/install-capi.sh BUILT PREFIX. `make capi` does both.
set -euo pipefail
(($# == 2)) || {
    echo "usage: tools/install-capi.sh BUILT PREFIX" >&2
    exit 2
}
built=$1 prefix=$2
capi=$(cd "$(dirname "${BASH_SOURCE[0]}")/../capi" && pwd)
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$capi/Cargo.toml" | head -1)

[[ -f $built/libbraid_c.so ]] || {
    echo "$built/libbraid_c.so is missing: build it with cargo build --package braid-c; only Linux has this script" >&2
    exit 1
}
install -d "$prefix/lib/pkgconfig"
install -m 755 "$built/libbraid_c.so" "$prefix/lib/libbraid.so.$version"
ln -sf "libbraid.so.$version" "$prefix/lib/libbraid.so.0"
ln -sf libbraid.so.0 "$prefix/lib/libbraid.so"
install -m 644 "$built/libbraid_c.a" "$prefix/lib/libbraid.a"
install -D -m 644 "$capi/../include/braid.h" "$prefix/include/braid.h"
sed "s/@VERSION@/$version/" "$capi/braid.pc.in" >"$prefix/lib/pkgconfig/braid.pc"
install -D -m 644 -t "$prefix/share/braid/cmake" "$capi"/cmake/*.cmake
