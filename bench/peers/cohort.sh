#!/bin/bash
# cohort.sh: a Cohort cluster of three nodes (deploy/lab: namespaces on this machine, storage traffic over plain cards beside
# the virtual switch, TLS on), volumes with one and with three copies, driven by fio's nbd engine on the owning node's unix
# socket. Every write is acked when it is durable on all copies (O_DIRECT|O_DSYNC journals); a flush adds nothing.
#   BUILD     build directory (build/release if it is there, else build/dev)
#   COPIES    volumes to measure ("3 1")
ROOT=$(cd "$(dirname "$0")/../.." && pwd -P)
BUILD=${BUILD:-$([ -x "$ROOT/build/release/bin/cohortd" ] && echo "$ROOT/build/release" || echo "$ROOT/build/dev")}
COPIES=${COPIES:-3 1}
lab_id() { echo "bench-${WORKDIR##*/}" | tr -c 'a-z0-9\n-' x | cut -c1-24; }
lab() { "$ROOT/deploy/lab" "$1" --id "$(lab_id)" "${@:2}"; }
node_pid() { lab status --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["nodes"][0]["pid"])'; }
up() {
  local n
  lab up --nodes 3 --build "$BUILD" >"$WORKDIR/log/lab" 2>&1 || return
  for n in $COPIES; do
    lab cohort volume create "c$n" --size "${IMG_MB}MiB" --replicas "$n" >>"$WORKDIR/log/lab" 2>&1 || return
  done
}
# The daemons; the virtual switch and the databases are not on the path of storage.
server_pids() {
  local p
  for p in $(pgrep -x cohortd); do
    { tr '\0' '\n' <"/proc/$p/environ"; } 2>/dev/null | grep -qx "COHORT_LAB=$(lab_id)" && echo "$p"
  done
}
bench() {
  local n pid
  pid=$(node_pid)
  for n in $COPIES; do
    prefill --ioengine=nbd --uri="nbd+unix:///c$n?socket=/proc/$pid/root/run/cohort/nbd.sock"
    workloads "cohort$n" --ioengine=nbd --uri="nbd+unix:///c$n?socket=/proc/$pid/root/run/cohort/nbd.sock"
  done
}
down() { lab down >/dev/null; }
. "$(dirname "$0")/../common.sh"
main "$@"
