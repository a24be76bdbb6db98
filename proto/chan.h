/* Channel: one TLS connection that carries frames, for either side. Private to proto/.
 *
 * Life: chan_new -> (chan_accept | chan_connect) -> ready -> frames … -> chan_fail or the peer's end -> on->closed, once,
 * from the loop -> chan_unref frees. After chan_fail nothing of `on` but closed is called. */
#ifndef COHORT_PROTO_CHAN_H
#define COHORT_PROTO_CHAN_H

#include <openssl/ssl.h>
#include <sys/queue.h>
#include "proto/frame.h"
#include "proto/pipe.h"
#include "proto/rpc.h"

#define CHAN_QUEUE_MAX (64u << 20)  /* unsent bytes beyond which the peer counts as failed */
#define CHAN_HANDSHAKE_MS 3000
#define CHAN_RECORD 16384u          /* a TLS record holds so much */

struct chan;

struct chan_handler {
    /* Handshake done, the peer's certificate names `node`. False refuses it. */
    bool (*ready)(struct chan *c, const char *node);
    /* Header checked. Says how many data bytes this frame may have; a longer one ends the channel. */
    uint32_t (*max_data)(struct chan *c, const struct frame *f);
    /* A whole frame; `pb` is valid during the call, `data` (NULL if none) is handed over with one reference. */
    void (*frame)(struct chan *c, const struct frame *f, const uint8_t *pb, struct iobuf *data);
    void (*closed)(struct chan *c);
};

struct chan {
    struct rpc_env *env;
    const struct chan_handler *on;
    void *owner; /* the server connection or the peer behind this channel */
    unsigned refs;
    uv_tcp_t tcp;
    uv_timer_t timer; /* handshake limit */
    uv_connect_t connecting;
    SSL *ssl;
    struct pipe pipe; /* ciphertext from and to the socket */
    size_t plain_len; /* frames that have gathered in `plain` and become one TLS record */
    uint8_t plain[CHAN_RECORD];
    bool ready, failed, flushing, paused, pumping;
    int handles;      /* uv handles not closed yet */
    uint64_t heard_ms; /* uv_now() of the last bytes received */
    char why[160];    /* reason of the end, for the log */
    char address[64];

    /* receiving */
    uint8_t head[FRAME_SIZE];
    size_t got;       /* bytes of the current part */
    enum { CHAN_HEAD, CHAN_PB, CHAN_DATA } part;
    struct frame frame;
    uint8_t *pb;
    size_t pb_cap;
    struct iobuf *data;

    LIST_ENTRY(chan) entry;       /* env's channels */
    TAILQ_ENTRY(chan) flush_entry; /* env's list of channels with something to send */
};

struct chan *chan_new(struct rpc_env *env, const struct chan_handler *on, void *owner);
void chan_unref(struct chan *c);
MUST_CHECK int chan_accept(struct chan *c, uv_stream_t *listener);
MUST_CHECK int chan_connect(struct chan *c, const struct sockaddr *addr);
/* Queues a frame (f.pb_len is set here) with `msg` (NULL: empty) and f.data_len bytes of `data`; all is copied or encrypted
 * before this returns, sent before the loop polls next. */
void chan_send(struct chan *c, struct frame f, const ProtobufCMessage *msg, struct iobuf *data, size_t data_off);
void chan_fail(struct chan *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void chan_pause(struct chan *c, bool paused); /* stop or resume reading */
void chan_flush(struct chan *c);              /* called by the env before polling */

#endif
