#!/bin/bash
# gluster.sh: GlusterFS on one machine, started by hand: one glusterd, a
# replica 3 volume of three bricks, the options of the "virt" group (the ones
# for disk images; sharding included), self-heal daemon as by default, loopback
# only, glusterd's state under $WORKDIR (not /var/lib/glusterd). The disk is one
# file on the volume, driven by fio's gfapi_async engine, opened O_DIRECT.
# Replication is done by the client: gfapi writes to all three bricks.
# Debian: apt-get install --no-install-recommends glusterfs-server fio
#
# Not movable: the fio engine connects to port 24007 and logs to
# /tmp/fio_gfapi.log; the bricks log to /var/log/glusterfs/bricks and have their
# sockets in /var/run/gluster. down removes what is this run's.
#   ADDR   loopback address. Not 127.0.0.1: the CLI refuses it for bricks
ADDR=${ADDR:-127.0.1.1}
G() { gluster --mode=script --glusterd-sock="$D/glusterd.sock" --log-file="$WORKDIR/log/cli.log" "$@"; }
up() {
  local i o
  free_port $ADDR 24007 "ADDR to another 127.x.y.z, for up and bench"
  D=$WORKDIR/data
  mkdir -p "$D/glusterd" "$D/run"
  [ -e /tmp/fio_gfapi.log ] || : >"$D/rm_gfapi_log"
  cat >"$D/glusterd.vol" <<EOC
volume management
    type mgmt/glusterd
    option working-directory $D/glusterd
    option run-directory $D/run
    option glusterd-sockfile $D/glusterd.sock
    option transport-type socket
    option transport.address-family inet
    option transport.socket.bind-address $ADDR
    option transport.socket.listen-port 24007
    option ping-timeout 0
    option event-threads 1
    option max-port 60999
end-volume
EOC
  start glusterd glusterd -N -f "$D/glusterd.vol" -p "$D/run/glusterd.pid" --log-file="$WORKDIR/log/glusterd.log"
  wait_for 30 G volume list || return
  for i in 0 1 2; do mkdir -p "$D/brick$i/b"; done
  # "force": bricks on the root file system, several replicas on one machine
  G volume create vol replica 3 $ADDR:"$D"/brick{0,1,2}/b force >"$WORKDIR/log/create" 2>&1 || return
  for o in $(virt_options); do G volume set vol "${o%%=*}" "${o#*=}" >>"$WORKDIR/log/create" 2>&1 || note "not set: $o"; done
  G volume start vol >>"$WORKDIR/log/create" 2>&1 || return
  wait_for 30 bricks_online || return
  brick_pids
  note "$(glusterd --version | head -1)"
}
# /var/lib/glusterd/groups/virt of 10.3, less server.tcp-user-timeout etc. that
# only matter when a peer dies
virt_options() { cat <<EOC
performance.quick-read=off
performance.read-ahead=off
performance.io-cache=off
performance.low-prio-threads=32
network.remote-dio=disable
performance.strict-o-direct=on
cluster.eager-lock=enable
cluster.quorum-type=auto
cluster.data-self-heal-algorithm=full
cluster.locking-scheme=granular
cluster.shd-max-threads=8
cluster.shd-wait-qlength=10000
features.shard=on
user.cifs=off
cluster.choose-local=off
client.event-threads=4
server.event-threads=4
performance.client-io-threads=on
cluster.lookup-optimize=off
EOC
}
bricks_online() { [ "$(G volume status vol --xml | grep -c '<status>1</status>')" -ge 3 ]; }
# glusterd starts the bricks and the self-heal daemon itself; each one's command
# line has our $WORKDIR in it (its volfile id, socket or pid file)
brick_pids() {
  local f i=0
  for f in $(find "$D/run" "$D/glusterd" -name '*.pid' 2>/dev/null); do
    [ -s "$f" ] && [ "$(<"$f")" != "$(<"$WORKDIR/pids/glusterd")" ] && cp "$f" "$WORKDIR/pids/z.$((i++)).$(basename "$f" .pid | tail -c 40)"
  done
}
server_pids() { pids; }
bench() {
  local eng
  D=$WORKDIR/data
  eng="--ioengine=gfapi_async --volume=vol --brick=$ADDR --filename=disk.img --size=${IMG_MB}M --direct=1 --thread=1"
  prefill $eng
  workloads gluster3 $eng
}
down() {
  local o
  D=$WORKDIR/data
  brick_pids
  # glusterd puts its children's sockets into /var/run/gluster whatever its
  # run-directory is; they name themselves after "-S"
  for o in $(pids); do ours "$o" && tr '\0' '\n' <"/proc/$o/cmdline" | sed -n '/^-S$/{n;p}'; done >"$D/sockets"
  G volume stop vol force >/dev/null 2>&1
  stop_all
  while read -r o; do [[ $o == /var/run/gluster/*.socket ]] && rm -f "$o"; done <"$D/sockets"
  o=${D#/}; rm -f /var/log/glusterfs/bricks/"${o//\//-}"-brick[012]-b.log
  [ -e "$D/rm_gfapi_log" ] && rm -f /tmp/fio_gfapi.log
}
. "$(dirname "$0")/../common.sh"
main "$@"
