/* Frame header encoding. Layout (offset: field): 0 magic u32, 4 version u8, 5 flags u8, 6 kind u16, 8 request id u64,
 * 16 pb_len u32, 20 data_len u32, 24 reserved u32 (0), 28 crc32c u32 of bytes 0..27. */
#include "proto/frame.h"
#include <endian.h>
#include <string.h>
#include "base/crc32c.h"

struct wire {
    uint32_t magic;
    uint8_t version, flags;
    uint16_t kind;
    uint64_t id;
    uint32_t pb_len, data_len, reserved, crc;
};
_Static_assert(sizeof(struct wire) == FRAME_SIZE, "frame layout");

void frame_encode(const struct frame *f, uint8_t ret_bytes[FRAME_SIZE])
{
    struct wire w = {
        .magic = htole32(FRAME_MAGIC),
        .version = FRAME_VERSION,
        .flags = f->flags,
        .kind = htole16(f->kind),
        .id = htole64(f->id),
        .pb_len = htole32(f->pb_len),
        .data_len = htole32(f->data_len),
    };
    w.crc = htole32(crc32c(0, &w, FRAME_SIZE - sizeof w.crc));
    memcpy(ret_bytes, &w, sizeof w);
}

bool frame_decode(const uint8_t bytes[FRAME_SIZE], struct frame *ret_frame)
{
    struct wire w;
    memcpy(&w, bytes, sizeof w);
    if (le32toh(w.magic) != FRAME_MAGIC || w.version != FRAME_VERSION || w.reserved != 0 ||
        (w.flags & ~(FRAME_REPLY | FRAME_ERROR)) || le32toh(w.crc) != crc32c(0, &w, FRAME_SIZE - sizeof w.crc))
        return false;
    *ret_frame = (struct frame){w.flags, le16toh(w.kind), le64toh(w.id), le32toh(w.pb_len), le32toh(w.data_len)};
    return true;
}
