/* vhost-user messages on a unix socket: wire format and transfer, nothing about their meaning.
 * Source of numbers and layouts: QEMU's docs/interop/vhost-user.rst. Both sides are the same host: native byte order. */
#ifndef COHORT_FRONT_VHOST_MSG_H
#define COHORT_FRONT_VHOST_MSG_H

#include <stdbool.h>
#include <stdint.h>
#include <linux/vhost_types.h>
#include "base/err.h"

enum vhost_request {
    VHU_GET_FEATURES = 1,
    VHU_SET_FEATURES = 2,
    VHU_SET_OWNER = 3,
    VHU_RESET_OWNER = 4,
    VHU_SET_MEM_TABLE = 5,
    VHU_SET_LOG_BASE = 6,
    VHU_SET_LOG_FD = 7,
    VHU_SET_VRING_NUM = 8,
    VHU_SET_VRING_ADDR = 9,
    VHU_SET_VRING_BASE = 10,
    VHU_GET_VRING_BASE = 11,
    VHU_SET_VRING_KICK = 12,
    VHU_SET_VRING_CALL = 13,
    VHU_SET_VRING_ERR = 14,
    VHU_GET_PROTOCOL_FEATURES = 15,
    VHU_SET_PROTOCOL_FEATURES = 16,
    VHU_GET_QUEUE_NUM = 17,
    VHU_SET_VRING_ENABLE = 18,
    VHU_SET_BACKEND_REQ_FD = 21,
    VHU_GET_CONFIG = 24,
    VHU_SET_CONFIG = 25,
    VHU_GET_INFLIGHT_FD = 31,
    VHU_SET_INFLIGHT_FD = 32,
    VHU_REQUEST_MAX
};
#define VHU_BACKEND_CONFIG_CHANGE 2u /* our own request on the backend channel */

#define VHU_FLAG_VERSION 1u
#define VHU_FLAG_VERSION_MASK 3u
#define VHU_FLAG_REPLY 4u
#define VHU_FLAG_NEED_REPLY 8u

#define VHU_F_PROTOCOL_FEATURES 30 /* virtio feature bit */
#define VHU_PF_MQ 0
#define VHU_PF_LOG_SHMFD 1
#define VHU_PF_REPLY_ACK 3
#define VHU_PF_BACKEND_REQ 5
#define VHU_PF_CONFIG 9
#define VHU_PF_INFLIGHT_SHMFD 12

#define VHU_FDS_MAX 8
#define VHU_REGIONS_MAX 8
#define VHU_CONFIG_MAX 256u
#define VHU_VRING_INDEX_MASK 0xffu
#define VHU_VRING_NOFD 0x100u

struct vhu_msg_region {
    uint64_t gpa, size, uaddr, mmap_offset;
};

struct vhu_msg_mem {
    uint32_t n, pad;
    struct vhu_msg_region r[VHU_REGIONS_MAX];
};

struct vhu_msg_inflight {
    uint64_t mmap_size, mmap_offset;
    uint16_t queues, queue_size, pad[2]; /* QEMU sends the struct with its padding, the document without */
};

struct vhu_msg_config {
    uint32_t offset, size, flags;
    uint8_t data[VHU_CONFIG_MAX];
};

struct vhu_msg_hdr {
    uint32_t request, flags, size;
};

struct vhu_msg {
    struct vhu_msg_hdr hdr;
    union {
        uint64_t u64;
        struct vhost_vring_state state;
        struct vhost_vring_addr addr;
        struct vhu_msg_mem mem;
        struct { uint64_t mmap_size, mmap_offset; } log;
        struct vhu_msg_inflight inflight;
        struct vhu_msg_config config;
    } p;
    int fd[VHU_FDS_MAX]; /* received, close-on-exec; a handler that keeps one sets it to -1 */
    int n_fds;
};
_Static_assert(sizeof(struct vhu_msg_hdr) == 12, "wire");
_Static_assert(sizeof(struct vhu_msg_mem) == 8 + 8 * 32, "wire");
_Static_assert(sizeof(struct vhu_msg_inflight) == 24, "wire");
_Static_assert(sizeof(struct vhost_vring_addr) == 40, "wire");

/* A message on its way in. Zeroed = between messages. */
struct vhost_rx {
    struct vhu_msg msg;
    uint32_t got; /* bytes of header and payload so far */
};

/* Reads on without blocking. 1: rx->msg is complete (and stays until vhost_rx_reset()); 0: nothing more for now;
 * E_DISCONN: the peer left; E_PROTO: not a vhost-user message (version, size, too many descriptors). */
MUST_CHECK int vhost_rx_step(struct vhost_rx *rx, int sock);
/* Forgets the message and closes the descriptors nobody took. */
void vhost_rx_reset(struct vhost_rx *rx);

/* Sends without blocking; `fd` -1 for none. A socket too full for one short message is a broken peer: E_DISCONN. */
MUST_CHECK int vhost_msg_send(int sock, const struct vhu_msg *m, int fd);

const char *vhost_request_name(uint32_t request);

#endif
