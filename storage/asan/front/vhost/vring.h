/* A split virtqueue as the device sees it: pure memory, no I/O and no loop.
 *
 * The rings are the guest's: every index read from them is checked, each field is read once, and nothing that the guest
 * writes later can change what was checked. Source: Virtual I/O Device (VIRTIO) 1.1, section 2.6.
 *
 *   vq_next -> vq_walk -> (the request runs) -> vq_complete ... -> vq_publish -> notify the guest?
 *
 * Inflight region (vhost-user, "Inflight I/O tracking"): memory that outlives us and records which heads were taken and
 * not yet published, with a counter for their order. After a crash vq_start() reads it back. */
#ifndef COHORT_FRONT_VHOST_VRING_H
#define COHORT_FRONT_VHOST_VRING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>
#include <linux/virtio_ring.h>
#include "base/err.h"
#include "storage/asan/front/vhost/mem.h"

#define VQ_NUM_MAX 1024u   /* most descriptors of a queue */
#define VQ_CHAIN_MAX 1024u /* most descriptors of a request, indirect ones counted */
/* Data segments we tell the guest to use at most: so many that a request of 1 MiB in single pages comes whole, and fits whole
 * extents. A chain must not be longer than its queue, so machines get queues of this and two more (compute/qemu/args.c). */
#define VQ_SEG_MAX 510u
#define VQ_IOV_MAX 528     /* elements we can take: a segment that crosses two memory regions needs two */

struct vq_inflight_desc { /* wire format of the document's DescStateSplit */
    uint8_t inflight, pad[5];
    uint16_t next;
    uint64_t counter;
};

struct vq_inflight { /* QueueRegionSplit */
    uint64_t features;
    uint16_t version; /* 0: fresh, never used */
    uint16_t desc_num, last_batch_head, used_idx;
    struct vq_inflight_desc desc[];
};
_Static_assert(sizeof(struct vq_inflight_desc) == 16 && sizeof(struct vq_inflight) == 16, "wire");

/* Bytes of one queue's region in an inflight area for `queue_size` descriptors. */
static inline uint64_t vq_inflight_bytes(unsigned queue_size)
{
    return (sizeof(struct vq_inflight) + queue_size * sizeof(struct vq_inflight_desc) + 63) & ~(uint64_t)63;
}

struct vq {
    uint16_t num; /* power of two, 1..VQ_NUM_MAX */
    bool event_idx;
    const struct vring_desc *desc;
    const struct vring_avail *avail;
    struct vring_used *used;
    struct vq_inflight *inflight; /* NULL = not tracked */
    uint16_t inflight_num;        /* descriptors the region has room for, >= num */
    const struct vhost_log *log;  /* NULL = used ring not logged */
    uint64_t log_used_gpa;

    uint16_t last_avail; /* next avail entry to take */
    uint16_t used_idx;   /* published */
    uint16_t staged;     /* completed, not yet published */
    bool signalled;      /* a notification decision was made since vq_start() */
    uint64_t counter;
    uint16_t resubmit[VQ_NUM_MAX]; /* heads to take again after vq_start(), in order */
    uint16_t n_resubmit, at_resubmit;
    uint16_t batch[VQ_NUM_MAX];     /* staged heads */
    uint64_t busy[VQ_NUM_MAX / 64]; /* heads taken and not yet published */
};

/* A request's buffers. */
struct vq_chain {
    struct iovec iov[VQ_IOV_MAX]; /* n_out device-readable elements, then n_in device-writable ones */
    int n_out, n_in;
    uint64_t out_bytes, in_bytes;
    uint8_t *status; /* last writable byte, NULL if there is none in mapped memory */
    bool bad;        /* malformed: iov is not to be used, status may be */
};

/* Begins (or goes on) with the ring: num, pointers, inflight set; `base` is the avail index to start from when there is
 * no earlier state to take from the inflight region. Returns the number of requests to resubmit. */
unsigned vq_start(struct vq *q, uint16_t base);
/* The next head to serve, resubmitted ones first. 1: *ret_head; 0: none; E_PROTO: the ring is broken for good. */
MUST_CHECK int vq_next(struct vq *q, uint16_t *ret_head);
/* Gathers the chain of `head`. Never fails: nonsense is reported in ret_chain->bad. `indirect`: negotiated. */
void vq_walk(const struct vq *q, const struct vhost_mem *mem, uint16_t head, bool indirect, struct vq_chain *ret_chain);
/* The request of `head` is done, with `written` bytes stored in its writable part. Seen by the guest after vq_publish(). */
void vq_complete(struct vq *q, uint16_t head, uint32_t written);
/* Publishes what was completed. True if the guest wants to be notified. */
bool vq_publish(struct vq *q);
/* Asks for a kick at the next request. True if there already is one: then serve on. */
bool vq_want_kick(struct vq *q);

#endif
