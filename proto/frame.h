/* The RPC frame header: 32 bytes, little-endian. Private to proto/. Pure. */
#ifndef COHORT_PROTO_FRAME_H
#define COHORT_PROTO_FRAME_H

#include <stdbool.h>
#include <stdint.h>

#define FRAME_MAGIC 0x54524843u /* "CHRT" */
#define FRAME_VERSION 3
#define FRAME_SIZE 32

enum { FRAME_REPLY = 1, FRAME_ERROR = 2 };

struct frame {
    uint8_t flags;
    uint16_t kind;
    uint64_t id;
    uint32_t pb_len, data_len;
};

void frame_encode(const struct frame *f, uint8_t ret_bytes[FRAME_SIZE]);
/* False: not a frame of ours (magic, version, crc or unknown flags). The lengths are not judged here. */
bool frame_decode(const uint8_t bytes[FRAME_SIZE], struct frame *ret_frame);

#endif
