/* The other side of vhost-user for tests and fuzzing: a front end with one guest memory and one split virtqueue, in the
 * same thread as the server under test (sending runs the loop as needed). */
#ifndef COHORT_TEST_FRONT_PEER_H
#define COHORT_TEST_FRONT_PEER_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>
#include "storage/asan/front/vhost/session.h"

#define PEER_NUM 64u
#define PEER_MEM (8u << 20)
#define PEER_UADDR 0x7f0000000000ull /* where the front end claims to have mapped it */
/* Guest-physical places. */
#define PEER_DESC 0x1000u
#define PEER_AVAIL 0x2000u
#define PEER_USED 0x3000u
#define PEER_HDR 0x4000u    /* one 16-byte header per head, at + 64 * head */
#define PEER_STATUS 0x8000u /* one status byte per head, at + 64 * head */
#define PEER_DATA 0x100000u

struct peer {
    uv_loop_t *loop;
    struct vhost_server *srv;
    int sock, mem_fd, kick, call, inflight_fd, log_fd;
    uint8_t *mem;
    uint8_t *log;
    struct vhu_msg_inflight inflight;
    uint16_t avail_idx, used_seen;
};

/* Guest memory and notifiers; not connected. */
void peer_init(struct peer *p, uv_loop_t *loop, struct vhost_server *srv);
void peer_fini(struct peer *p);
void peer_connect(struct peer *p);    /* a socket pair, one end given to the server */
void peer_disconnect(struct peer *p); /* and lets the server notice */

/* Sends a message; does not run the loop. */
void peer_send(struct peer *p, uint32_t request, uint32_t flags, const void *payload, uint32_t size, const int *fds,
               int n_fds);
/* Runs the loop until a message comes or the server hangs up (false). */
bool peer_recv(struct peer *p, struct vhu_msg *ret_msg, int *ret_fd);
/* Sends and waits for the acknowledgement (needs REPLY_ACK); its value, or UINT64_MAX when the server hung up. */
uint64_t peer_ack(struct peer *p, uint32_t request, const void *payload, uint32_t size, const int *fds, int n_fds);
/* Is a message or hang-up there without waiting (a few turns of the loop)? */
bool peer_readable(struct peer *p);

/* The usual conversation up to the memory table, with an inflight area (the one of before if there is one). */
void peer_handshake(struct peer *p);
/* NUM, BASE, ADDR, KICK, CALL, ENABLE of queue 0. */
void peer_start_queue(struct peer *p, uint16_t base);
uint16_t peer_stop_queue(struct peer *p); /* GET_VRING_BASE */
/* Maps a dirty log of the whole memory and turns logging on. */
void peer_start_log(struct peer *p);

struct vring_desc *peer_desc(struct peer *p, unsigned i);
struct vring_avail *peer_avail(struct peer *p);
struct vring_used *peer_used(struct peer *p);
/* Fills the chain header -> data -> status at descriptors head, head+1, head+2 (head a multiple of 3). len 0: no data. */
void peer_request(struct peer *p, uint16_t head, uint32_t type, uint64_t sector, uint32_t gpa, uint32_t len, bool in);
void peer_offer(struct peer *p, uint16_t head); /* into the avail ring, without a kick */
void peer_kick(struct peer *p);
uint8_t peer_status(const struct peer *p, uint16_t head);
/* Runs the loop until `n` more requests are in the used ring; false if that does not happen. */
bool peer_wait_used(struct peer *p, unsigned n);
void peer_turns(struct peer *p, int n);

#endif
