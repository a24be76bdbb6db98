#!/bin/bash
# ceph.sh: a Ceph cluster on one machine, started by hand: 1 mon, 1 mgr, 3 OSDs
# (bluestore, each on its own file), failure domain "osd", no cephx, loopback
# only, nothing outside $WORKDIR (no /etc/ceph, no /var/lib/ceph). The disk is
# an RBD image, first in a pool with size 3 (peer ceph3), then, after that image
# was removed, in one with size 2 (peer ceph2), driven by fio's rbd engine.
# Debian: apt-get install --no-install-recommends ceph-mon ceph-osd ceph-mgr ceph-common fio
#
#   OSD_MB      size of each OSD's file (6144)
#   OSD_MEM_MB  osd_memory_target of each OSD (1024; Ceph's default is 4096)
#   RBD_CACHE   false: a write is acked when all replicas have committed it, as
#               with QEMU's cache=none. true: librbd's writearound cache acks first
#   SIZES       pool sizes to measure ("3 2")
#   MON_PORT    the mon's v2 port on 127.0.0.1 (3300)
#   TUNE        ssd (default): make bluestore and the OSD take their SSD defaults,
#               also where the disk says rotational=1, as virtio disks do; none: detect
OSD_MB=${OSD_MB:-6144}; OSD_MEM_MB=${OSD_MEM_MB:-1024}; RBD_CACHE=${RBD_CACHE:-false}
SIZES=${SIZES:-3 2}; MON_PORT=${MON_PORT:-3300}; TUNE=${TUNE:-ssd}
ADDR=127.0.0.1

conf() {
  cat <<EOC
[global]
fsid = $1
mon_host = [v2:$ADDR:$MON_PORT/0]
mon_initial_members = a
public_addr = $ADDR
cluster_addr = $ADDR
ms_bind_ipv6 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = $D
admin_socket = $D/\$name.asok
log_file = $WORKDIR/log/\$name.log
log_to_stderr = false
crash_dir = $D
keyring = $D/keyring
# one machine: replicas go to different OSDs, not to different hosts
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 3
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_delete = true
mon_warn_on_insecure_global_id_reclaim_allowed = false
mon_data_avail_crit = 1
mon_data_avail_warn = 1
[mon]
mon_data = $D/mon.a
[mgr]
mgr_data = $D/mgr.\$id
[osd]
osd_data = $D/osd\$id
osd_objectstore = bluestore
bluestore_block_size = $((OSD_MB * 1048576))
osd_memory_target = $((OSD_MEM_MB * 1048576))
osd_delete_sleep = 0
EOC
  [ "$TUNE" = ssd ] && cat <<EOC
bluestore_debug_enforce_settings = ssd
osd_op_num_shards = 8
osd_op_num_threads_per_shard = 2
EOC
  cat <<EOC
[client]
rbd_cache = $RBD_CACHE
admin_socket =
log_file =
EOC
}

up() {
  local i u fsid
  free_port $ADDR $MON_PORT MON_PORT
  D=$WORKDIR/data; export CEPH_CONF=$D/ceph.conf
  fsid=$(</proc/sys/kernel/random/uuid)
  conf "$fsid" >"$CEPH_CONF"; : >"$D/keyring"
  mkdir -p "$D/mon.a" "$D/mgr.x"
  monmaptool --create --clobber --fsid "$fsid" --addv a "[v2:$ADDR:$MON_PORT]" "$D/monmap" >"$WORKDIR/log/monmaptool" || return
  ceph-mon --mkfs -i a --monmap "$D/monmap" -c "$CEPH_CONF" >"$WORKDIR/log/mon.mkfs" 2>&1 || return
  start mon ceph-mon -f -i a -c "$CEPH_CONF"
  wait_for 30 timeout 5 ceph mon stat || return
  [ "$(timeout 5 ceph fsid)" = "$fsid" ] || return      # ours answered, nobody else's
  start mgr ceph-mgr -f -i x -c "$CEPH_CONF"
  ceph config set mgr mgr/devicehealth/enable_monitoring false 2>/dev/null  # no extra pool
  for i in 0 1 2; do
    u=$(</proc/sys/kernel/random/uuid)
    ceph osd new "$u" $i >>"$WORKDIR/log/osd.mkfs" 2>&1 || return
    mkdir -p "$D/osd$i"
    # a file whose blocks have been written once behaves like a disk; a sparse
    # or fallocated one pays an ext4 journal commit per new extent
    fio --name=z --filename="$D/osd$i/block" --size="${OSD_MB}M" --rw=write --bs=1M --zero_buffers=1 \
        --ioengine=io_uring --iodepth=8 --direct=1 --end_fsync=1 >"$WORKDIR/log/zero$i" 2>&1 || return
    ceph-osd -i $i --mkfs --osd-uuid "$u" -c "$CEPH_CONF" >>"$WORKDIR/log/osd.mkfs" 2>&1 || return
    start osd$i ceph-osd -f -i $i -c "$CEPH_CONF"
  done
  wait_for 60 sh -c 'ceph osd stat | grep -q "3 up"' || return
  note "$(ceph --version)"
}
server_pids() { pids; }
# the pool is usable when every one of its PGs is active+clean
clean() { local s; s=$(timeout 10 ceph pg stat 2>/dev/null) || return 1
          [[ $s =~ ([0-9]+)\ pgs:\ ([0-9]+)\ active\+clean\; ]] && [ "${BASH_REMATCH[1]}" = "${BASH_REMATCH[2]}" ] && [ "${BASH_REMATCH[1]}" -ge 32 ]; }
bench() {
  local n eng
  D=$WORKDIR/data; export CEPH_CONF=$D/ceph.conf
  for n in $SIZES; do
    { ceph osd pool create rbd$n 32 32 replicated && ceph osd pool set rbd$n size $n --yes-i-really-mean-it &&
      rbd pool init rbd$n && rbd create rbd$n/img --size "${IMG_MB}M"; } >"$WORKDIR/log/pool$n" 2>&1 || die "pool: $(tail -2 "$WORKDIR/log/pool$n")"
    wait_for 60 clean || die "pool rbd$n does not become clean"
    eng="--ioengine=rbd --clientname=admin --pool=rbd$n --rbdname=img"
    prefill $eng
    sleep 3                       # let bluestore's deferred work and rocksdb settle
    workloads ceph$n $eng
    ceph osd df >"$WORKDIR/log/osd.df.$n" 2>&1
    # room for the next one
    rbd rm --no-progress rbd$n/img >/dev/null 2>&1
    ceph osd pool rm rbd$n rbd$n --yes-i-really-really-mean-it >/dev/null 2>&1
    sleep 5
  done
}
down() { stop_all; }
. "$(dirname "$0")/../common.sh"
main "$@"
