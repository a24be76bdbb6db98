#!/bin/sh
# No global name of the libopenvswitch we link may also be one of ours or of another library: the linker would let one serve
# the other's callers without a word. usage: cluster_ovs_names.sh LIBOPENVSWITCH.A OUR-LIBRARY…
set -eu
ovs=$1
shift
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
nm -g --defined-only "$ovs" 2>/dev/null | awk 'NF == 3 {print $3}' | sort -u >"$tmp/ovs"
for l in "$@"; do
    case $l in
    *.a) nm -g --defined-only "$l" 2>/dev/null | awk 'NF == 3 {print $3}' ;;
    *) nm -D --defined-only "$l" | awk 'NF == 3 {sub(/@.*/, "", $3); print $3}' ;;
    esac
done | sort -u >"$tmp/ours"
[ "$(wc -l <"$tmp/ovs")" -gt 1000 ] && [ "$(wc -l <"$tmp/ours")" -gt 1000 ] || { echo "no symbols read"; exit 1; }
if [ -n "$(comm -12 "$tmp/ovs" "$tmp/ours")" ]; then
    echo "defined twice (add to COHORT_OVS_CLASHES in cmake/deps.cmake):"
    comm -12 "$tmp/ovs" "$tmp/ours"
    exit 1
fi
