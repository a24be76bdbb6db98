#!/bin/sh
# The NBD server judged by other people's clients: libnbd (nbdinfo, nbdcopy), QEMU (qemu-img, qemu-io), fio.
# usage: test_front_nbd.sh SERVER      Exit status 77 with the reason when a client is missing.
set -eu
SERVER=$1
for tool in nbdinfo nbdcopy qemu-img qemu-io fio; do
    command -v $tool >/dev/null || { echo "skipped: $tool is not installed"; exit 77; }
done
DIR=$(mktemp -d /tmp/cohort-front-XXXXXX)
PID=
stop() {
    [ -n "$PID" ] || return 0
    kill -TERM "$PID" && wait "$PID" || { echo "server ended badly"; cat "$DIR/server.log"; return 1; }
    PID=
}
finish() {
    status=$?
    [ -z "$PID" ] || kill -KILL "$PID" 2>/dev/null || :
    [ $status -eq 0 ] || cat "$DIR/server.log" || :
    rm -rf "$DIR"
    exit $status
}
trap finish EXIT
trap 'exit 1' INT TERM
fail() { echo "FAILED: $*"; exit 1; }
start() { # start SERVER-OPTIONS...
    : > "$DIR/server.log" # of the last one "ready" is not meant
    "$SERVER" --file "$DIR/disk" --size $((64 << 20)) "$@" > "$DIR/server.log" 2>&1 &
    PID=$!
    n=0
    until grep -q ready "$DIR/server.log"; do
        n=$((n + 1)); [ $n -lt 200 ] || fail "server not ready"
        kill -0 $PID 2>/dev/null || fail "server ended"
        sleep 0.05
    done
}
URI="nbd+unix:///vol?socket=$DIR/s"

start --nbd "$DIR/s" --tcp
PORT=$(sed -n 's/^ready \([0-9]*\)$/\1/p' "$DIR/server.log")
nbdinfo --list "nbd+unix://?socket=$DIR/s" | grep -q 'export="vol"' || fail "list"
nbdinfo --can multi-conn "$URI" && nbdinfo --can trim "$URI" && nbdinfo --can fua "$URI" && nbdinfo --can df "$URI" ||
    fail "transmission flags"
! nbdinfo --is read-only "$URI" || fail "not read-only"
[ "$(nbdinfo --size "nbd://127.0.0.1:$PORT/vol")" = $((64 << 20)) ] || fail "size over TCP"
! nbdinfo "nbd+unix:///nope?socket=$DIR/s" 2> "$DIR/err" || fail "unknown export"
! nbdinfo --tls-certificates=/nonexistent "nbds+unix:///vol?socket=$DIR/s" 2>/dev/null || fail "TLS"
echo "negotiation: ok"

dd if=/dev/urandom of="$DIR/src" bs=1M count=64 status=none
nbdcopy --connections=4 --request-size=$((4 << 20)) "$DIR/src" "$URI"
cmp "$DIR/src" "$DIR/disk" || fail "nbdcopy in"
nbdcopy --requests=32 --request-size=$((32 << 20)) "$URI" "$DIR/out"
cmp "$DIR/src" "$DIR/out" || fail "nbdcopy out"
echo "nbdcopy: ok"

dd if=/dev/zero of="$DIR/src" bs=1M seek=7 count=9 conv=notrunc status=none
qemu-img convert -n -W -m 8 -f raw -O raw "$DIR/src" "$URI"
qemu-img compare -f raw -F raw "$DIR/src" "$URI" >/dev/null || fail "qemu-img in"
qemu-img convert -f raw -O qcow2 "$URI" "$DIR/out.qcow2"
qemu-img compare -f raw -F qcow2 "$DIR/src" "$DIR/out.qcow2" >/dev/null || fail "qemu-img out"
echo "qemu-img: ok"

# What is there: 9 MiB of zeroes at 7 MiB were written as such above.
nbdinfo --can structured-reply "$URI" && nbdinfo --list "nbd+unix://?socket=$DIR/s" | grep -q base:allocation || fail "meta context"
nbdinfo --map "$URI" | awk '{print $1, $2, $3}' > "$DIR/map"
printf '%s\n' "0 $((7 << 20)) 0" "$((7 << 20)) $((9 << 20)) 3" "$((16 << 20)) $((48 << 20)) 0" | cmp - "$DIR/map" || { cat "$DIR/map"; fail "nbdinfo --map"; }
qemu-img map --output=json -f raw "$URI" | grep -q "\"start\": $((7 << 20)), \"length\": $((9 << 20)),.*\"zero\": true, \"data\": false" ||
    { qemu-img map --output=json -f raw "$URI"; fail "qemu-img map"; }
nbdcopy --allocated "$URI" "$DIR/out" && cmp "$DIR/src" "$DIR/out" || fail "nbdcopy by map"
# /usr/bin/python3: libnbd's module belongs to the distribution's.
cat > "$DIR/status.py" <<'PY'
import nbd, sys
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.add_meta_context("x:unknown")
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION) and not h.can_meta_context("x:unknown")
def status(length, offset, flags=0):
    got = []
    h.block_status(length, offset, lambda name, at, entries, err: got.append((name, at, entries)), flags)
    assert len(got) == 1 and got[0][0] == "base:allocation" and got[0][1] == offset, got
    return got[0][2]
M = 1 << 20
assert status(2 * M, 6 * M) == [M, 0, M, 3]
assert status(2 * M, 6 * M, nbd.CMD_FLAG_REQ_ONE) == [M, 0]
assert status(1024, 7 * M - 512) == [512, 0, 512, 3]    # sectors at a border of blocks
for bad in ((512, 64 * M), (100, 0), (0, 0)):
    try:
        status(*bad)
        sys.exit(f"status of {bad} was answered")
    except nbd.Error as e:
        assert e.errno == "EINVAL", e
h.shutdown()
PY
/usr/bin/python3 "$DIR/status.py" "$URI" || fail "block status"
echo "block status: ok"

qemu-io -f raw -c "write -P 1 0 1M" -c "write -z 64k 64k" -c "write -z -u 256k 64k" -c "discard 512k 64k" -c "flush" \
    -c "write -f -P 2 768k 4k" -c "read -P 0 64k 64k" -c "read -P 0 256k 64k" -c "read -P 0 512k 64k" \
    -c "read -P 2 768k 4k" -c "read -P 1 772k 252k" "$URI" > "$DIR/io.log" || { cat "$DIR/io.log"; fail "qemu-io"; }
! grep -qi 'fail\|error' "$DIR/io.log" || { cat "$DIR/io.log"; fail "qemu-io"; }
echo "qemu-io: ok"
stop

# TLS over TCP: a certificate of the CA gets in, another one or none does not.
mkdir "$DIR/pki" "$DIR/other"
make_ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=ca -keyout "$1/ca-key.pem" -out "$1/ca-cert.pem" 2>/dev/null; }
make_cert() { # DIR NAME
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$2" -addext subjectAltName=IP:127.0.0.1 \
        -keyout "$1/$2-key.pem" -out "$1/$2.csr" 2>/dev/null
    openssl x509 -req -in "$1/$2.csr" -CA "$1/ca-cert.pem" -CAkey "$1/ca-key.pem" -days 2 -copy_extensions copy -out "$1/$2-cert.pem" 2>/dev/null
}
for d in pki other; do make_ca "$DIR/$d"; make_cert "$DIR/$d" server; make_cert "$DIR/$d" client; done
start --tcp --tls "$DIR/pki"
PORT=$(sed -n 's/^ready \([0-9]*\)$/\1/p' "$DIR/server.log")
TLS="nbds://127.0.0.1:$PORT/vol?tls-certificates=$DIR/pki"
[ "$(nbdinfo --size "$TLS")" = $((64 << 20)) ] || fail "size over TLS"
nbdcopy "$DIR/src" "$TLS" && nbdcopy --connections=2 "$TLS" "$DIR/out" && cmp "$DIR/src" "$DIR/out" || fail "nbdcopy over TLS"
nbdinfo --map "$TLS" | grep -q hole,zero || fail "map over TLS"
qemu-img compare --object "tls-creds-x509,id=t,endpoint=client,dir=$DIR/pki" --image-opts \
    "driver=nbd,host=127.0.0.1,port=$PORT,export=vol,tls-creds=t" "driver=raw,file.driver=file,file.filename=$DIR/src" >/dev/null || fail "qemu over TLS"
! nbdinfo "nbd://127.0.0.1:$PORT/vol" 2>/dev/null || fail "a client without TLS got in"
! nbdinfo --list "nbd://127.0.0.1:$PORT" 2>/dev/null | grep -q vol || fail "names told without TLS"
mkdir "$DIR/bad" && cp "$DIR/other"/client* "$DIR/bad" && cp "$DIR/pki/ca-cert.pem" "$DIR/bad"
! nbdinfo --size "nbds://127.0.0.1:$PORT/vol?tls-certificates=$DIR/bad" 2>/dev/null || fail "a certificate of another CA got in"
[ "$(nbdinfo --size "$TLS")" = $((64 << 20)) ] || fail "size over TLS after refusals"
stop

# A certificate that is not the CA's gets in if the server knows it, with what is allowed to it. bad/ as above; QEMU and libnbd
# check their own files: ca-cert.pem must have both CAs.
cat "$DIR/other/ca-cert.pem" >> "$DIR/bad/ca-cert.pem"
HEX=$(openssl x509 -in "$DIR/bad/client-cert.pem" -outform DER | sha256sum | cut -d' ' -f1)
for mode in none ro rw; do
    start --tcp --tls "$DIR/pki" --client "$HEX=$mode"
    PORT=$(sed -n 's/^ready \([0-9]*\)$/\1/p' "$DIR/server.log")
    TLS="nbds://127.0.0.1:$PORT/vol?tls-certificates=$DIR"
    [ "$(nbdinfo --size "$TLS/pki")" = $((64 << 20)) ] || fail "the CA's own client, $mode"
    nbdinfo --list "nbds://127.0.0.1:$PORT?tls-certificates=$DIR/bad" > "$DIR/list" 2>&1 || [ $mode = none ] || fail "list, $mode"
    qemu-io --object "tls-creds-x509,id=t,endpoint=client,dir=$DIR/bad" -c "write 0 4k" --image-opts \
        "driver=nbd,host=127.0.0.1,port=$PORT,export=vol,tls-creds=t" > "$DIR/io.log" 2>&1 && wrote=yes || wrote=no
    case $mode in
    none)
        ! LIBNBD_DEBUG=1 nbdinfo "$TLS/bad" 2> "$DIR/err" || fail "an export without access"
        grep -q "no access" "$DIR/err" || { cat "$DIR/err"; fail "the refusal's text"; }
        ! grep -q 'export="vol"' "$DIR/list" || fail "a name told without access" ;;
    *)
        grep -q 'export="vol"' "$DIR/list" || { cat "$DIR/list"; fail "list, $mode"; }
        ! LIBNBD_DEBUG=1 nbdinfo "nbds://127.0.0.1:$PORT/nope?tls-certificates=$DIR/bad" 2> "$DIR/err" || fail "unknown export"
        grep -q "no access" "$DIR/err" || { cat "$DIR/err"; fail "an unknown export has another text"; } ;;
    esac
    case $mode in
    rw) [ $wrote = yes ] || { cat "$DIR/io.log"; fail "write"; } ;;
    *) [ $wrote = no ] || fail "write, $mode" ;;
    esac
    [ $mode != ro ] || nbdinfo --is read-only "$TLS/bad" || fail "read-only flag for a client"
    stop
done
echo "TLS: ok"

start --nbd "$DIR/s" --delay 1
# Not randrw with several loops: fio 3.33 then compares against headers of another loop, on a local file too.
for mode in "--rw=randwrite --loops=5" "--rw=randrw"; do
    fio --name=verify --ioengine=nbd --uri="$URI" $mode --bsrange=4k-1m --blockalign=4k --iodepth=32 --size=64m \
        --verify=crc32c --verify_fatal=1 --randseed=5 --output="$DIR/fio.log" --aux-path="$DIR" ||
        { cat "$DIR/fio.log"; fail "fio verify $mode"; }
    grep -q 'err= 0' "$DIR/fio.log" || { cat "$DIR/fio.log"; fail "fio $mode"; }
done
echo "fio: ok"
stop

start --nbd "$DIR/s" --read-only
nbdinfo --is read-only "$URI" || fail "read-only flag"
! qemu-io -f raw -c "write 0 4k" "$URI" > "$DIR/io.log" 2>&1 || fail "write to a read-only export"
stop
[ ! -e "$DIR/s" ] || fail "socket file left behind"
echo "read-only: ok"
