/* Insides of the vhost-user backend: server (socket) -> session (one front end's connection) -> queue (one virtqueue).
 *
 * Life of a session: current -> dropped (connection gone, requests still at the volume) -> freed (the last came back).
 * Invariants:
 * - A queue starts only when no dropped session has requests in flight: the new front end resubmits those same requests,
 *   and an old read that ended late would write into memory that the guest has meanwhile used for something else.
 * - A dropped session touches no ring any more.
 * - Completions are published in batches, once per turn of the loop (server_flush).
 */
#ifndef COHORT_FRONT_VHOST_SESSION_H
#define COHORT_FRONT_VHOST_SESSION_H

#include <sys/queue.h>
#include <uv.h>
#include "storage/asan/front/sock.h"
#include "storage/asan/front/vhost.h"
#include "storage/asan/front/vhost/blk.h"
#include "storage/asan/front/vhost/mem.h"
#include "storage/asan/front/vhost/msg.h"
#include "storage/asan/front/vhost/vring.h"
#include "storage/asan/front/watch.h"

struct vhost_session;

struct vhost_qreq { /* a request in flight */
    struct blk_req blk;
    struct vhost_queue *q;
    struct vhost_mem *mem; /* reference */
    uint16_t head;
    SLIST_ENTRY(vhost_qreq) entry; /* free list */
};

struct vhost_queue {
    struct vhost_session *s;
    unsigned index;
    struct vq vq;
    struct vhost_vring_addr addr;
    uint16_t base;        /* of SET_VRING_BASE */
    bool have_addr, enabled;
    bool started;         /* between the start (kick, address, size, memory are there) and GET_VRING_BASE */
    bool broken;          /* the guest broke the ring; until it is started anew */
    bool base_wanted;     /* GET_VRING_BASE waits for in_flight == 0 */
    unsigned again;       /* more to take after so many turns */
    bool in_flush;
    struct watch *kick;
    int call_fd, err_fd;  /* -1 = none */
    unsigned in_flight;   /* taken, not completed */
    SLIST_HEAD(, vhost_qreq) idle; /* pool: grows to the queue's depth, so a running queue allocates nothing */
    TAILQ_ENTRY(vhost_queue) flush;
};

struct vhost_session {
    struct vhost_server *srv;
    struct watch *sock;   /* NULL once dropped */
    struct vhost_rx rx;
    uint64_t features, protocol_features;
    struct vhost_mem *mem;
    struct vhost_log log;
    struct { /* the inflight area; map NULL = none */
        void *map;
        size_t map_len;
        uint8_t *at;
        uint16_t queues, queue_size;
    } inflight;
    int backend_fd;       /* our channel to the front end; -1 = none */
    unsigned in_flight;   /* of all queues */
    bool frozen;          /* the volume was closed: take and answer nothing any more */
    struct vhost_queue *queue; /* srv->dev.queues of them */
    TAILQ_ENTRY(vhost_session) entry; /* srv->dropped */
};

struct vhost_server {
    uv_loop_t *loop;
    struct blk_dev dev;
    bool allow_unsealed, closing;
    char *path, *label;
    struct sock_file file;
    struct watch *listener;
    struct vhost_session *session; /* NULL = nobody connected */
    TAILQ_HEAD(, vhost_session) dropped;
    TAILQ_HEAD(, vhost_queue) flush; /* queues with something to publish, to answer or to take */
    /* Active while `flush` or `reap` has work. Started when needed, `prepare` comes before the volume's, which submits I/O. */
    uv_prepare_t prepare;
    uv_idle_t idle; /* keeps the loop from blocking before that */
    bool flushing;
    int handles;
    struct vhost_stat stat;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* server.c */
void server_schedule(struct vhost_server *srv); /* on_prepare() runs before the loop blocks */
/* Makes a connected socket the server's session (owned from then on). Also the entry of tests. */
void server_adopt(struct vhost_server *srv, int sock);
/* A server without a listening socket: for tests. */
struct vhost_server *server_new(uv_loop_t *loop, struct vol *v, const struct vhost_conf *conf, const char *label);

/* session.c */
struct vhost_session *session_new(struct vhost_server *srv, int sock);
/* Disconnects; frees later, in server_flush. Idempotent. `why` is logged by the caller. */
void session_drop(struct vhost_session *s);
void session_free(struct vhost_session *s); /* dropped, nothing in flight */
MUST_CHECK int session_reply(struct vhost_session *s, uint32_t request, const void *payload, uint32_t size, int fd);
/* Starts what can start. E_PROTO with the reason. */
MUST_CHECK int session_start_queues(struct vhost_session *s, struct err *e);

/* queue.c */
void queue_init(struct vhost_queue *q, struct vhost_session *s, unsigned index);
/* Starts the ring if everything is there and it is not running; else nothing. E_PROTO: bad addresses. */
MUST_CHECK int queue_try_start(struct vhost_queue *q, struct err *e);
/* Translates the ring's addresses anew (new memory table, new address or log flag). */
MUST_CHECK int queue_map(struct vhost_queue *q, struct err *e);
/* Takes over a kick descriptor; E_PROTO if it cannot be watched (then still the caller's). */
MUST_CHECK int queue_set_kick(struct vhost_queue *q, int fd);
/* Take over a descriptor; -1 = none. */
void queue_set_call(struct vhost_queue *q, int fd);
void queue_set_err(struct vhost_queue *q, int fd);
void queue_set_enabled(struct vhost_queue *q, bool on);
/* GET_VRING_BASE: takes no more; answers when nothing is in flight. */
void queue_stop(struct vhost_queue *q);
void queue_flush(struct vhost_queue *q); /* called by the server for queues in its list */
/* The session is being dropped: publishes what is complete, lets go of descriptors. */
void queue_detach(struct vhost_queue *q);
void queue_free_pool(struct vhost_queue *q);

#endif
