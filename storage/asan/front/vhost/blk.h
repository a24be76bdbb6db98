/* virtio-blk requests: from a chain of guest buffers to volume requests and back to a status byte.
 * Source: VIRTIO 1.1, section 5.2. */
#ifndef COHORT_FRONT_VHOST_BLK_H
#define COHORT_FRONT_VHOST_BLK_H

#include <linux/virtio_blk.h>
#include "storage/asan/front/io.h"
#include "storage/asan/front/vhost/vring.h"

#define BLK_RANGES_MAX 16 /* ranges of one discard or write-zeroes request */
#define BLK_SERIAL_BYTES VIRTIO_BLK_ID_BYTES
#define BLK_STATUS_NONE 0xff /* the volume was closed: the request has no status and stays in flight */

struct blk_dev {
    struct vol *vol;
    unsigned queues;
    char serial[BLK_SERIAL_BYTES];
};

struct blk_req;
typedef void blk_done(struct blk_req *r, uint8_t status); /* VIRTIO_BLK_S_* or BLK_STATUS_NONE */

struct blk_req { /* caller-owned; chain filled by vq_walk() */
    struct vq_chain chain;
    struct front_io io;
    const struct blk_dev *dev;
    blk_done *done;
    uint32_t type;
    bool write_zeroes;
    unsigned n_ranges, at_range;
    struct {
        uint64_t offset, length;
        bool unmap;
    } range[BLK_RANGES_MAX];
    uint32_t data_written; /* bytes stored in the guest's data buffers when the status is OK */
};

/* Starts the request in r->chain. True: started, `done` comes later. False: it is over already, with *ret_status. */
bool blk_start(struct blk_req *r, const struct blk_dev *dev, blk_done *done, uint8_t *ret_status);

/* Device feature bits of virtio-blk that `dev` offers. */
uint64_t blk_features(const struct blk_dev *dev);
void blk_config(const struct blk_dev *dev, struct virtio_blk_config *ret_config);

#endif
