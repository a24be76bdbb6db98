# Common part of the scripts in peers/: verbs, fio runs, CPU accounting. Sourced by them.
#
#   up     create everything below $WORKDIR and start the servers
#   bench  run the workloads; one line per workload on stdout
#   down   stop the servers (by recorded pid only) and delete $WORKDIR
#   all    up + bench + down
#
# Environment:
#   WORKDIR  where everything lives. `up` makes one with mktemp -d if unset and
#            prints it; give the same WORKDIR to bench and down.
#   IMG_MB   size of the virtual disk (4096), filled before measuring
#   SECS     seconds per workload (8)
#   WL       the workloads to run (all seven)
#   KEEP     1: down keeps $WORKDIR
#
# bench's columns:
#   peer workload iops MBps lat_p50_us lat_p99_us server_cpu_s
#     then, appended:  client_cpu_s cpu_us_per_io other_cores
# server_cpu_s: user+system of the peer's server processes (/proc/PID/stat).
# client_cpu_s: user+system of fio, i.e. of the client library (librbd, gfapi..)
# cpu_us_per_io: (server+client) per completed read or write.
# other_cores: how many cores' worth the machine spent besides, on average over
#   the run (kernel threads, neighbours, steal): large means the line was disturbed.
# For randwrite_qd1_fsync one IO is a write plus a flush; its latencies are the
# write's percentile plus the flush's same percentile.
set -u
IMG_MB=${IMG_MB:-4096}; SECS=${SECS:-8}; KEEP=${KEEP:-0}; WORKDIR=${WORKDIR:-}
WL=${WL:-randwrite_qd1 randwrite_qd32 randread_qd1 randread_qd32 seqwrite_1M_qd8 seqread_1M_qd8 randwrite_qd1_fsync}
HZ=$(getconf CLK_TCK)
SELF=$0
die()  { echo "$SELF: $*" >&2; exit 1; }
note() { echo "# $*" >&2; }

# start NAME CMD...: run CMD in its own session, remember its pid under NAME
start() {
  local name=$1; shift
  setsid "$@" >"$WORKDIR/log/$name.out" 2>&1 </dev/null &
  echo $! >"$WORKDIR/pids/$name"
}
# free_port ADDR PORT WHAT: two runs on one machine must not meet: a client would
# quietly talk to the other one's server
free_port() { ! (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null || die "$1:$2 is taken, set $3"; }
pids() { cat "$WORKDIR"/pids/* 2>/dev/null; }

# a pid is only ours while $WORKDIR is on its command line, as on every server's
ours() { { tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null | grep -qF -- "$WORKDIR"; }

stop_all() {
  local f p i
  for f in "$WORKDIR"/pids/*; do
    [ -f "$f" ] || continue
    p=$(<"$f"); ours "$p" && kill "$p" 2>/dev/null
  done
  for f in "$WORKDIR"/pids/*; do
    [ -f "$f" ] || continue
    p=$(<"$f")
    for ((i = 0; i < 100; i++)); do ours "$p" || break; sleep 0.1; done
    ours "$p" && kill -9 "$p" 2>/dev/null
    rm -f "$f"
  done
}

wait_for() { # wait_for SECONDS CMD...
  local n=$(($1 * 5)); shift
  while ! "$@" >/dev/null 2>&1; do ((n-- > 0)) || return 1; sleep 0.2; done
}

# jiffies used so far by the pids given as arguments
jiffies() {
  local t=0 p s f
  for p in "$@"; do
    s=$(cat "/proc/$p/stat" 2>/dev/null) || continue
    read -ra f <<<"${s##*) }"            # f[0] is field 3 (state)
    t=$((t + f[11] + f[12]))             # utime + stime
  done
  echo $t
}
# jiffies the machine was busy: user nice system irq softirq steal
host_jiffies() { local f; read -ra f </proc/stat; echo $((f[1]+f[2]+f[3]+f[6]+f[7]+f[8])); }

# fio_line PEER WORKLOAD FIO_ARGS...: run fio once, print one line
fio_line() {
  local peer=$1 wl=$2 js s0 s1 h0 h1 ct cli; shift 2
  js=$WORKDIR/log/fio.$peer.$wl
  s0=$(jiffies $(server_pids)); h0=$(host_jiffies)
  TIMEFORMAT='%U %S %R'
  if ! ct=$( { time fio --name="$wl" --output-format=json --output="$js.json" \
        --percentile_list=50:99 --group_reporting=1 --randrepeat=0 --norandommap=1 \
        --time_based=1 --runtime="$SECS" "$@" >"$js.err" 2>&1; } 2>&1 ); then
    echo "$peer $wl FAILED see $js.err"; return 1
  fi
  s1=$(jiffies $(server_pids)); h1=$(host_jiffies)
  cli=$(awk '{print $1 + $2}' <<<"$ct")   # %U + %S
  awk -v peer="$peer" -v wl="$wl" -v sj=$((s1 - s0)) -v hj=$((h1 - h0)) -v hz="$HZ" -v cli="$cli" -v real="${ct##* }" '
    /"jobs" *:/ { on = 1 }
    !on { next }
    match($0, /"(read|write|trim|sync)" *: *\{/) { sect = $1; gsub(/[^a-z]/, "", sect); sub_ = ""; next }
    /"usr_cpu"/ { sect = "" }
    /_ns" *: *\{/ { sub_ = $1; gsub(/[^a-z]/, "", sub_); next }
    sect == "" { next }
    { v = $0; sub(/.*: */, "", v); gsub(/[ ,]/, "", v) }
    /"(iops|bw_bytes|total_ios)" *:/ { k = $1; gsub(/[^a-z_]/, "", k); if (!((sect, k) in a)) a[sect, k] = v }
    /"50\.000000"/ && (sub_ == "clatns" || sect == "sync") { p50[sect] = v }
    /"99\.000000"/ && (sub_ == "clatns" || sect == "sync") { p99[sect] = v }
    END {
      d = a["write", "total_ios"] > 0 ? "write" : "read"
      n = a[d, "total_ios"]; if (n < 1) { print peer, wl, "FAILED no IO"; exit }
      printf "%s %s %.0f %.1f %.0f %.0f %.2f %.2f %.1f %.2f\n", peer, wl, a[d, "iops"], a[d, "bw_bytes"] / 1e6,
        (p50[d] + p50["sync"]) / 1e3, (p99[d] + p99["sync"]) / 1e3, sj / hz, cli,
        (sj / hz + cli) * 1e6 / n, (hj / hz - sj / hz - cli) / (real > 0 ? real : 1)
    }' "$js.json"
}

# workloads PEER FIO_ENGINE_ARGS...: every workload of $WL on one engine
workloads() {
  local peer=$1 w; shift
  for w in $WL; do
    case $w in
      randwrite_qd1)       fio_line "$peer" $w "$@" --rw=randwrite --bs=4k --iodepth=1 ;;
      randwrite_qd32)      fio_line "$peer" $w "$@" --rw=randwrite --bs=4k --iodepth=32 ;;
      randread_qd1)        fio_line "$peer" $w "$@" --rw=randread  --bs=4k --iodepth=1 ;;
      randread_qd32)       fio_line "$peer" $w "$@" --rw=randread  --bs=4k --iodepth=32 ;;
      seqwrite_1M_qd8)     fio_line "$peer" $w "$@" --rw=write     --bs=1M --iodepth=8 ;;
      seqread_1M_qd8)      fio_line "$peer" $w "$@" --rw=read      --bs=1M --iodepth=8 ;;
      randwrite_qd1_fsync) fio_line "$peer" $w "$@" --rw=randwrite --bs=4k --iodepth=1 --fsync=1 ;;
      *) die "no workload $w" ;;
    esac
  done
}

# prefill FIO_ENGINE_ARGS...: write the whole disk once
prefill() {
  local t0=$SECONDS
  fio --name=prefill --rw=write --bs=1M --iodepth=8 --end_fsync=1 --output="$WORKDIR/log/prefill" "$@" \
    >"$WORKDIR/log/prefill.err" 2>&1 || { cat "$WORKDIR/log/prefill.err" >&2; die "prefill failed"; }
  note "prefilled ${IMG_MB} MiB in $((SECONDS - t0)) s"
}

need_workdir() { [ -n "$WORKDIR" ] && [ -d "$WORKDIR/pids" ] || die "set WORKDIR to what 'up' printed"; }
main() {
  case ${1:-} in
    up)    : "${WORKDIR:=$(mktemp -d)}"; mkdir -p "$WORKDIR/pids" "$WORKDIR/log" "$WORKDIR/data"
           WORKDIR=$(cd "$WORKDIR" && pwd -P); up || { stop_all; die "up failed, see $WORKDIR/log"; }; echo "WORKDIR=$WORKDIR" ;;
    bench) need_workdir; bench ;;
    down)  need_workdir; down
           # only what we made: never a plain rm -rf of a caller's directory
           [ "$KEEP" = 1 ] || { rm -rf "$WORKDIR/pids" "$WORKDIR/log" "$WORKDIR/data"; rmdir "$WORKDIR" 2>/dev/null || :; } ;;
    all)   main up && { bench; main down; } ;;
    *)     die "usage: [WORKDIR=dir] $SELF up|bench|down|all" ;;
  esac
}
