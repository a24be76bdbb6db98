#!/bin/bash
# raw.sh: the physical limit. fio io_uring with direct=1 on plain files on the
# disk under $WORKDIR; no server at all.
#   raw           one file, sync=dsync: every write is flushed before it is acked
#   raw3          three files at once, sync=dsync: iops and MBps are the SUM of the
#                 three, so a three-way replicated write can do at most a third
#   raw-nodsync   one file, no dsync: acked once in the disk's own write cache
#                 (what gluster and qemu ack without a flush)
#   raw3-nodsync  the same, three files
# The flush workload always runs without dsync (write + fsync instead).
up() {
  local i
  for i in 0 1 2; do
    # written, not just allocated: the first write to an unwritten ext4 extent
    # costs a journal commit
    prefill --ioengine=io_uring --direct=1 --filename="$WORKDIR/data/f$i" --size="${IMG_MB}M"
  done
}
server_pids() { :; }
three() { # three PEER ARGS...
  local peer=$1; shift
  # numjobs=3: job k takes its own file f$jobnum
  workloads "$peer" --ioengine=io_uring --direct=1 --numjobs=3 --filename_format="$WORKDIR/data/f\$jobnum" --size="${IMG_MB}M" --thread=1 "$@"
}
one() {
  local peer=$1; shift
  workloads "$peer" --ioengine=io_uring --direct=1 --filename="$WORKDIR/data/f0" --size="${IMG_MB}M" --thread=1 "$@"
}
bench() {
  local all=$WL writes="" w
  WL=${all//randwrite_qd1_fsync/}
  one raw --sync=dsync; three raw3 --sync=dsync
  for w in $all; do [[ $w == *write* ]] && writes+="$w "; done
  WL=$writes; one raw-nodsync; three raw3-nodsync
  WL=$all
}
down() { :; }
. "$(dirname "$0")/../common.sh"
main "$@"
