"""The cluster RPC as an outsider would write it (proto/rpc.h, proto/frame.c, proto/*.proto), for tests that must send what our
own code never sends: damaged frames, and a late write of an owner that was fenced off."""

import ssl
import struct

FRAME = struct.Struct("<IBBHQIII")  # magic, version, flags, kind, request id, pb_len, data_len, reserved; then crc32c
MAGIC, VERSION, SIZE = 0x54524843, 3, 32
FLAG_REPLY, FLAG_ERROR = 1, 2
PING, STORE_FENCE, STORE_WRITE = 1, 64, 65
E_STALE = -10

_TABLE = []
for _i in range(256):
    for _ in range(8):
        _i = (_i >> 1) ^ (0x82F63B78 if _i & 1 else 0)
    _TABLE.append(_i)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def header(kind, request_id, pb_len, data_len, flags=0, magic=MAGIC, version=VERSION):
    head = FRAME.pack(magic, version, flags, kind, request_id, pb_len, data_len, 0)
    return head + struct.pack("<I", crc32c(head))


# ---- protobuf: just varints, fixed32 and length-delimited fields ----

def varint(n):
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def message(*fields):
    """fields: (number, int | bytes | str | ("fixed32", int))."""
    out = b""
    for number, value in fields:
        if isinstance(value, tuple):
            out += varint(number << 3 | 5) + struct.pack("<I", value[1])
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def parse(data):
    """{field number: last value} of a flat message."""
    fields, at = {}, 0

    def take():
        nonlocal at
        n = shift = 0
        while True:
            byte = data[at]
            at += 1
            n |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return n

    while at < len(data):
        key = take()
        if key & 7 == 0:
            fields[key >> 3] = take()
        elif key & 7 == 2:
            length = take()
            fields[key >> 3] = data[at:at + length]
            at += length
        elif key & 7 == 5:
            fields[key >> 3] = struct.unpack_from("<I", data, at)[0]
            at += 4
        else:
            raise ValueError(f"wire type {key & 7}")
    return fields


def zigzag(n):
    return (n >> 1) ^ -(n & 1)


class Refused(Exception):
    def __init__(self, code, detail, text):
        self.code, self.detail, self.text = code, detail, text
        super().__init__(f"{text} (code {code}, detail {detail})")


class Connection:
    """To `raw` (a connected socket), with the certificate of a member."""

    def __init__(self, raw, cert, key):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(cert, key)
        self.sock = context.wrap_socket(raw)
        self.sock.settimeout(10)
        self.next_id = 1

    def close(self):
        self.sock.close()

    def read(self, n):
        data = b""
        while len(data) < n:
            more = self.sock.recv(n - len(data))
            if not more:
                raise OSError("the peer hung up")
            data += more
        return data

    def call(self, kind, body, data=b""):
        """The reply's (protobuf, raw data); Refused for an error reply."""
        request_id, self.next_id = self.next_id, self.next_id + 1
        self.sock.sendall(header(kind, request_id, len(body), len(data)) + body + data)
        while True:
            head = self.read(SIZE)
            _, _, flags, _, answered, pb_len, data_len, _ = FRAME.unpack(head[:SIZE - 4])
            pb, raw = self.read(pb_len), self.read(data_len)
            if not flags & FLAG_REPLY:
                continue  # the peer's own request; a test has no answer
            if answered != request_id:
                raise OSError(f"reply to request {answered}, expected {request_id}")
            if flags & FLAG_ERROR:
                f = parse(pb)
                raise Refused(zigzag(f.get(1, 0)), f.get(2, 0), f.get(3, b"").decode(errors="replace"))
            return pb, raw


def write_request(volume, shard, disk, incarnation, epoch, seq, data):
    """A WriteReq (proto/storage.proto) for offset 0 of a shard."""
    return message((1, message((1, volume), (2, shard), (3, disk), (4, incarnation))), (2, epoch), (3, seq), (4, seq - 1), (5, 0),
                   (6, 0), (7, len(data)), (9, ("fixed32", crc32c(data))), (10, 1))
