/* See blk.h. What the guest says is copied first and checked in one place per request type (check_*). */
#include <string.h>
#include "base/htab.h"
#include "storage/asan/front/vhost/blk.h"

/* Removes `bytes` from the front of iov[0..*n) (there are that many), keeping a copy when `copy` is not NULL. */
static void take_front(struct iovec *iov, int *n, void *copy, size_t bytes)
{
    int i = 0;
    while (bytes) {
        size_t part = iov[i].iov_len < bytes ? iov[i].iov_len : bytes;
        if (copy) {
            memcpy(copy, iov[i].iov_base, part);
            copy = (uint8_t *)copy + part;
        }
        iov[i].iov_base = (uint8_t *)iov[i].iov_base + part;
        iov[i].iov_len -= part;
        bytes -= part;
        if (!iov[i].iov_len)
            i++;
    }
    memmove(iov, iov + i, (size_t)(*n - i) * sizeof *iov);
    *n -= i;
}

/* Splits header and status byte from the chain: afterwards chain.iov holds data only, of out_bytes and in_bytes. */
static bool split(struct blk_req *r, struct virtio_blk_outhdr *ret_hdr)
{
    struct vq_chain *c = &r->chain;
    if (c->bad || !c->status || c->out_bytes < sizeof *ret_hdr)
        return false;
    int total = c->n_out + c->n_in, before = total;
    take_front(c->iov, &total, ret_hdr, sizeof *ret_hdr);
    c->n_out -= before - total;
    c->out_bytes -= sizeof *ret_hdr;
    c->iov[total - 1].iov_len--; /* the status byte: last of the writable part */
    if (!c->iov[total - 1].iov_len)
        c->n_in--;
    c->in_bytes--;
    return true;
}

static void io_done(struct front_io *io, int status);

static bool start_rw(struct blk_req *r, uint64_t sector, uint8_t *ret_status)
{
    struct vq_chain *c = &r->chain;
    bool write = r->type == VIRTIO_BLK_T_OUT;
    uint64_t bytes = write ? c->out_bytes : c->in_bytes, offset;
    if (bytes % VOL_SECTOR || bytes > UINT32_MAX - 1 || __builtin_mul_overflow(sector, (uint64_t)VOL_SECTOR, &offset) ||
        !front_io_inside(r->dev->vol, offset, bytes) || (write && r->dev->vol->read_only)) {
        *ret_status = VIRTIO_BLK_S_IOERR;
        return false;
    }
    if (!bytes) {
        *ret_status = VIRTIO_BLK_S_OK;
        return false;
    }
    r->data_written = write ? 0 : (uint32_t)bytes;
    front_io_rw(&r->io, r->dev->vol, write ? VOL_WRITE : VOL_READ, offset, bytes, c->iov + (write ? 0 : c->n_out),
                io_done);
    return true;
}

static bool get_id(struct blk_req *r, uint8_t *ret_status)
{
    struct vq_chain *c = &r->chain;
    size_t left = sizeof r->dev->serial;
    const char *from = r->dev->serial;
    for (int i = c->n_out; i < c->n_out + c->n_in && left; i++) {
        size_t part = c->iov[i].iov_len < left ? c->iov[i].iov_len : left;
        memcpy(c->iov[i].iov_base, from, part);
        from += part;
        left -= part;
    }
    r->data_written = (uint32_t)(sizeof r->dev->serial - left);
    *ret_status = VIRTIO_BLK_S_OK;
    return false;
}

static uint8_t check_ranges(struct blk_req *r)
{
    struct virtio_blk_discard_write_zeroes range[BLK_RANGES_MAX];
    struct vq_chain *c = &r->chain;
    size_t bytes = c->out_bytes;
    if (!bytes || bytes % sizeof range[0] || bytes > sizeof range || r->dev->vol->read_only)
        return VIRTIO_BLK_S_IOERR;
    int total = c->n_out + c->n_in;
    take_front(c->iov, &total, range, bytes);
    c->n_out = 0;
    r->n_ranges = (unsigned)(bytes / sizeof range[0]);
    for (unsigned i = 0; i < r->n_ranges; i++) {
        uint32_t allowed = r->write_zeroes ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;
        if (range[i].flags & ~allowed)
            return VIRTIO_BLK_S_UNSUPP; /* 5.2.6.2 */
        if (__builtin_mul_overflow(range[i].sector, (uint64_t)VOL_SECTOR, &r->range[i].offset))
            return VIRTIO_BLK_S_IOERR;
        r->range[i].length = (uint64_t)range[i].num_sectors * VOL_SECTOR;
        r->range[i].unmap = !r->write_zeroes || range[i].flags;
        if (!front_io_inside(r->dev->vol, r->range[i].offset, r->range[i].length))
            return VIRTIO_BLK_S_IOERR;
    }
    return VIRTIO_BLK_S_OK;
}

/* Starts the next range that is not empty; false when there is none. */
static bool next_range(struct blk_req *r)
{
    while (r->at_range < r->n_ranges) {
        unsigned i = r->at_range++;
        if (!r->range[i].length)
            continue;
        front_io_plain(&r->io, r->dev->vol, r->range[i].unmap ? VOL_DISCARD : VOL_ZERO, r->range[i].offset,
                       r->range[i].length, io_done);
        return true;
    }
    return false;
}

static void io_done(struct front_io *io, int status)
{
    struct blk_req *r = container_of(io, struct blk_req, io);
    if (status == E_CANCELED) {
        r->done(r, BLK_STATUS_NONE);
        return;
    }
    if (status) {
        r->data_written = 0;
        r->done(r, VIRTIO_BLK_S_IOERR);
    } else if (!next_range(r)) {
        r->done(r, VIRTIO_BLK_S_OK);
    }
}

bool blk_start(struct blk_req *r, const struct blk_dev *dev, blk_done *done, uint8_t *ret_status)
{
    struct virtio_blk_outhdr hdr;
    r->dev = dev;
    r->done = done;
    r->data_written = 0;
    r->n_ranges = r->at_range = 0;
    if (!split(r, &hdr)) {
        *ret_status = VIRTIO_BLK_S_IOERR;
        return false;
    }
    r->type = hdr.type;
    switch (hdr.type) {
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT:
        return start_rw(r, hdr.sector, ret_status);
    case VIRTIO_BLK_T_FLUSH:
        front_io_plain(&r->io, dev->vol, VOL_FLUSH, 0, 0, io_done);
        return true;
    case VIRTIO_BLK_T_GET_ID:
        return get_id(r, ret_status);
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
        r->write_zeroes = hdr.type == VIRTIO_BLK_T_WRITE_ZEROES;
        *ret_status = check_ranges(r);
        return *ret_status == VIRTIO_BLK_S_OK && next_range(r);
    default:
        *ret_status = VIRTIO_BLK_S_UNSUPP;
        return false;
    }
}

uint64_t blk_features(const struct blk_dev *dev)
{
    uint64_t f = 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE | 1ull << VIRTIO_BLK_F_TOPOLOGY |
                 1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_BLK_F_MQ | 1ull << VIRTIO_BLK_F_DISCARD |
                 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
    return dev->vol->read_only ? f | 1ull << VIRTIO_BLK_F_RO : f;
}

void blk_config(const struct blk_dev *dev, struct virtio_blk_config *ret_config)
{
    /* Any length in one range: the volume takes it, and 32 bits of sectors is all the format has. */
    *ret_config = (struct virtio_blk_config){
        .capacity = dev->vol->size_bytes / VOL_SECTOR,
        .seg_max = VQ_SEG_MAX,
        .blk_size = VOL_SECTOR, /* SeaBIOS refuses others */
        .physical_block_exp = 3, /* 4096 */
        .min_io_size = 8,
        .opt_io_size = 0,
        .num_queues = (uint16_t)dev->queues,
        .max_discard_sectors = UINT32_MAX / 2,
        .max_discard_seg = BLK_RANGES_MAX,
        .discard_sector_alignment = 8,
        .max_write_zeroes_sectors = UINT32_MAX / 2,
        .max_write_zeroes_seg = BLK_RANGES_MAX,
        .write_zeroes_may_unmap = 1,
    };
}
