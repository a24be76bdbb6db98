/* vhost-user-blk backend: a volume as the virtio disk of a guest (QEMU or any other vhost-user front end).
 *
 * Threading: everything on the volume's loop; callbacks too.
 * Life: a server owns one listening socket and serves one front end at a time; it survives the front end's disconnect
 * and, through the inflight region that the front end keeps (VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD), our own restart:
 * requests that were not answered are carried out again, in their order, when the front end returns.
 * Parking: while the volume parks, requests stay in flight and GET_VRING_BASE (the front end stopping a queue) is not
 * answered; the loop and other messages go on. vhost_server_force_drop() ends such a wait by disconnecting.
 * A volume that answers E_CANCELED was closed under us: the request is left in flight in the inflight region (never
 * failed towards the guest) and the device stands still until the server is closed.
 * Trust: the guest is hostile. The front end is only believed as far as memory goes: shared memory must be sealed
 * against shrinking (QEMU's memory-backend-memfd does so by default), else its truncation would kill us with SIGBUS. */
#ifndef COHORT_FRONT_VHOST_H
#define COHORT_FRONT_VHOST_H

#include <stdbool.h>
#include <sys/types.h>
#include "base/err.h"
#include "storage/asan/vol.h"

#define VHOST_QUEUES_MAX 16

struct vhost_server;

struct vhost_conf {
    const char *serial;    /* what the guest reads as the disk's id, at most 20 bytes count; NULL = the volume's name */
    unsigned queues;       /* 1..VHOST_QUEUES_MAX; 0 = that. The front end chooses how many it uses (QEMU by
                            * default as many as vCPUs, and gives up if that is more than these). */
    mode_t socket_mode;    /* 0 = 0600 */
    bool allow_unsealed;   /* accept memory that can be truncated (files on hugetlbfs) */
};

/* Listens on `socket_path` (a stale socket file is replaced, another live server's too). Front ends are answered from the
 * next turn of the loop on; the volume may park. E_INVAL, E_IO with a message. */
MUST_CHECK int vhost_server_open(struct uv_loop_s *loop, const char *socket_path, struct vol *v,
                                 const struct vhost_conf *conf, struct vhost_server **ret_srv, struct err *e);
/* Disconnects, removes the socket file, and calls `done` once the last request in flight at the volume came back; then
 * the volume may be freed. With a parked volume, cancel its requests (close the volume) to get there. */
void vhost_server_close(struct vhost_server *srv, void (*done)(void *arg), void *arg);
/* Disconnects the present front end, if any; it may connect again. */
void vhost_server_force_drop(struct vhost_server *srv);
/* The volume's size_bytes changed: tells the guest. */
void vhost_server_resized(struct vhost_server *srv);

struct vhost_stat {
    bool connected;
    unsigned in_flight;             /* requests at the volume, those of dropped connections too */
    uint64_t requests, resubmitted; /* since open */
    uint64_t drops;                 /* connections ended by us for a protocol error */
};
void vhost_server_stat(const struct vhost_server *srv, struct vhost_stat *ret_stat);

#endif
