#!/bin/bash
# qemu-quorum.sh: replication from QEMU's own blocks. Three
# qemu-storage-daemons each export a raw file (O_DIRECT, io_uring) over NBD on
# loopback TCP or a unix socket; a fourth opens the three as NBD clients under a quorum node and
# exports that over NBD on a unix socket, driven by fio's nbd engine.
# vote-threshold=2: a write succeeds when two children wrote it, but is acked
# only after all three answered. Peers:
#   qemu-quorum-TRANSPORT  read-pattern=quorum: a read asks all three and compares
#   qemu-fifo-TRANSPORT    read-pattern=fifo: a read asks the first child only
# A write is acked when it is in the three files (O_DIRECT, the disk's cache);
# only a flush makes it durable. There is no resync whatsoever.
# Debian: apt-get install qemu-system-common qemu-utils fio libnbd0
#   TRANSPORT  how the quorum reaches the replicas, given at up and at bench:
#          tcp (loopback) or unix. QEMU before 8.1 does not set TCP_NODELAY on the
#          NBD server's side, and with more than one request in flight every
#          answer then waits out the 40 ms delayed ACK: unix shows it without that.
#          It is part of the peer's name.
#   PORT   first of three TCP ports on 127.0.0.1 (10820)
#   AIO    io_uring or native, the replicas' file access
TRANSPORT=${TRANSPORT:-tcp}; PORT=${PORT:-10820}; AIO=${AIO:-io_uring}
address() { # address PREFIX REPLICA: QEMU's options for a replica's socket
  if [ "$TRANSPORT" = unix ]; then echo "$1type=unix,$1path=$WORKDIR/data/r$2.sock"
  else echo "$1type=inet,$1host=127.0.0.1,$1port=$((PORT + $2))"; fi
}
front() { # front PATTERN: the quorum and its export
  local i args=() kids=""
  for i in 0 1 2; do
    args+=(--blockdev "driver=nbd,node-name=c$i,$(address server. $i),export=disk")
    kids+=",children.$i=c$i"
  done
  start front-$1 qemu-storage-daemon "${args[@]}" \
    --blockdev "driver=quorum,node-name=q,vote-threshold=2,read-pattern=$1$kids" \
    --nbd-server "addr.type=unix,addr.path=$WORKDIR/data/$1.sock" \
    --export "type=nbd,id=e,node-name=q,name=disk,writable=on" --pidfile "$WORKDIR/data/$1.pid"
  wait_for 10 test -S "$WORKDIR/data/$1.sock" && wait_for 10 test -s "$WORKDIR/data/$1.pid"
}
unfront() { local p; p=$(<"$WORKDIR/pids/front-$1"); ours "$p" && kill "$p"; wait_for 10 test ! -d "/proc/$p"; rm -f "$WORKDIR/pids/front-$1" "$WORKDIR/data/$1.sock" "$WORKDIR/data/$1.pid"; }
up() {
  local i
  qemu-img --help | grep -q '^Supported formats:.* quorum ' || die "this QEMU has no quorum driver"
  for i in 0 1 2; do
    [ "$TRANSPORT" = unix ] || free_port 127.0.0.1 $((PORT + i)) PORT
    truncate -s "${IMG_MB}M" "$WORKDIR/data/r$i.raw"
    start replica$i qemu-storage-daemon \
      --blockdev "driver=file,node-name=f,filename=$WORKDIR/data/r$i.raw,cache.direct=on,aio=$AIO,discard=unmap" \
      --blockdev "driver=raw,node-name=d,file=f,cache.direct=on" \
      --nbd-server "$(address addr. $i)" \
      --export "type=nbd,id=e,node-name=d,name=disk,writable=on" --pidfile "$WORKDIR/data/r$i.pid"
    wait_for 10 test -s "$WORKDIR/data/r$i.pid" || return
  done
  note "$(qemu-storage-daemon --version | head -1)"
}
server_pids() { pids; }
uri() { echo "nbd+unix:///disk?socket=$WORKDIR/data/$1.sock"; }
bench() {
  local all=$WL reads="" w
  front quorum || die "front"
  prefill --ioengine=nbd --uri="$(uri quorum)"
  workloads qemu-quorum-$TRANSPORT --ioengine=nbd --uri="$(uri quorum)"
  unfront quorum
  for w in $all; do [[ $w == *read* ]] && reads+="$w "; done
  [ -n "$reads" ] && { front fifo || die "front"; WL=$reads; workloads qemu-fifo-$TRANSPORT --ioengine=nbd --uri="$(uri fifo)"; WL=$all; unfront fifo; }
}
down() { stop_all; }
. "$(dirname "$0")/../common.sh"
main "$@"
