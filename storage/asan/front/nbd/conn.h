/* One NBD client.
 *
 *   flags -> options <-> lookup -> transmission -> ending -> (closed)
 *
 * - flags, options: handshake.c. One option at a time; while a lookup is out nothing more is read.
 * - transmission: transmit.c. ending: NBD_CMD_DISC came; what is in flight is still answered.
 * - closed: conn_close() may come in any state. The handles go at once, the rest when the last request came back from the
 *   volume and the lookup was answered; only then is the volume released. */
#ifndef COHORT_FRONT_NBD_CONN_H
#define COHORT_FRONT_NBD_CONN_H

#include <sys/queue.h>
#include <uv.h>
#include "base/buf.h"
#include "base/id.h"
#include "base/sm.h"
#include "storage/asan/front/io.h"
#include "storage/asan/front/nbd.h"
#include "storage/asan/front/sock.h"

#define NBD_RBUF_BYTES (64u << 10)
#define NBD_HANDSHAKE_MS 30000u

enum nbd_state { NBD_FLAGS, NBD_OPTIONS, NBD_LOOKUP, NBD_TRANSMISSION, NBD_ENDING, NBD_CLOSED };

struct nbd_req { /* a request in flight, from its header to its written reply */
    struct front_io io;
    uv_write_t write;
    struct nbd_conn *c;
    char *cipher;        /* with TLS: the reply as it is sent */
    struct iobuf *data;  /* payload; NULL if the command has none */
    bool lent;           /* the volume may have references to it: not to be used again */
    struct iovec iov;
    uint64_t handle, offset;
    uint32_t length;     /* of the command */
    uint32_t held;       /* bytes counted against NBD_BYTES_MAX */
    uint16_t cmd, flags;
    uint32_t contexts;   /* block status: contexts still to be answered, a bit each */
    uint32_t status_bytes; /* of the chunk behind the head */
    uint8_t head[32];    /* of the reply */
    uv_buf_t buf[2];     /* the reply, what of it is not sent yet */
    unsigned bufs;
    union {
        SLIST_ENTRY(nbd_req) entry; /* pool */
        STAILQ_ENTRY(nbd_req) out;  /* answered, not sent */
    };
};

SLIST_HEAD(nbd_pool, nbd_req);

struct nbd_conn {
    struct nbd_server *srv;
    union {
        uv_stream_t stream;
        uv_pipe_t pipe;
        uv_tcp_t tcp;
    } h;
    uv_timer_t timer; /* limits the handshake */
    int handles;
    struct sm sm;
    bool no_zeroes, structured, reading, processing;
    bool tcp;          /* options but STARTTLS wait for TLS if the server has it */
    struct ssl_st *ssl; /* NULL: plain */
    char client[NBD_CLIENT_HEX + 1]; /* "": may do everything */
    bool read_only;    /* it may only read `vol` */
    uint8_t *cipher;   /* with TLS: NBD_RBUF_BYTES as they came from the socket */
    struct vol *vol;  /* NULL until an export is chosen */
    uint32_t contexts; /* metadata contexts chosen, a bit each (meta.c) */
    char since[NBD_SINCE_MAX][ID_LEN + 1]; /* snapshots of those that tell changes */
    char *meta_export; /* the export they were chosen for */
    struct nbd_lookup *lookup;
    unsigned reqs;    /* in flight */
    uint64_t held;
    STAILQ_HEAD(, nbd_req) out; /* answers that go out together before the loop polls */
    bool in_flush;
    TAILQ_ENTRY(nbd_conn) flush; /* srv->flush */
    struct nbd_req *filling; /* a write whose payload is arriving */
    uint32_t filled;
    uint64_t skip;    /* bytes of input to throw away */
    struct nbd_pool pool[2]; /* idle requests with a small, a medium buffer */
    unsigned pooled[2];
    size_t rpos, rlen; /* unread input: rbuf[rpos .. rpos+rlen) */
    uint8_t rbuf[NBD_RBUF_BYTES];
    LIST_ENTRY(nbd_conn) entry;
};

struct nbd_queries { uint32_t n, len; uint8_t *data; }; /* of a list or choice of contexts, well-formed: n * (u32 length, text) */

struct nbd_lookup {
    struct nbd_conn *c; /* NULL: the client left meanwhile */
    struct nbd_server *srv;
    uint32_t opt;       /* who asked: EXPORT_NAME, INFO, GO, LIST_META_CONTEXT, SET_META_CONTEXT */
    struct nbd_queries queries; /* the last two */
    bool want_name;
    bool in_find, answered;
    LIST_ENTRY(nbd_lookup) entry;
    char name[NBD_NAME_MAX + 1];
};

struct nbd_listener {
    union {
        uv_stream_t stream;
        uv_pipe_t pipe;
        uv_tcp_t tcp;
    } h;
    struct nbd_server *srv;
};

struct nbd_server {
    uv_loop_t *loop;
    struct nbd_exports exports;
    struct nbd_listener *unix_listener, *tcp_listener; /* NULL = none */
    char *unix_path;
    struct sock_file unix_file;
    struct ssl_ctx_st *tls; /* NULL = none */
    unsigned conns, conns_max, lookups, handles;
    /* Active while a connection has answers to send. Started when needed, `prepare` comes before the volume's, which submits
     * I/O: requests that were held back may begin in it. */
    uv_prepare_t prepare;
    uv_idle_t idle; /* keeps the loop from blocking before that */
    TAILQ_HEAD(, nbd_conn) flush;
    LIST_HEAD(, nbd_conn) conn;
    bool closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* Who is at the other end, as nbd_exports wants it. */
static inline const char *nbd_client(const struct nbd_conn *c) { return *c->client ? c->client : NULL; }

/* server.c */
struct nbd_server *nbd_server_new(uv_loop_t *loop, const struct nbd_exports *exports); /* no listener yet */
/* A new connection over `fd`, a stream socket that is ours from now on (also for tests). */
void nbd_server_adopt(struct nbd_server *srv, int fd);
void nbd_server_check_closed(struct nbd_server *srv);
void nbd_server_flush(struct nbd_conn *c); /* calls nbd_send_answers() before the loop blocks */

/* conn.c */
MUST_CHECK int nbd_conn_accept(struct nbd_server *srv, uv_stream_t *listener, bool tcp);
void nbd_conn_open_fd(struct nbd_server *srv, int fd);
void nbd_conn_close(struct nbd_conn *c);
void nbd_conn_process(struct nbd_conn *c); /* takes what it can from rbuf, then reads on unless held back */
void nbd_conn_consume(struct nbd_conn *c, size_t bytes); /* drops from the front of rbuf */
void nbd_conn_check_freed(struct nbd_conn *c);
/* Queues a copy of `len` bytes; closes the connection if the client does not read its replies. */
void nbd_conn_send(struct nbd_conn *c, const void *data, size_t len);

/* Sends what TLS has to say. */
void nbd_conn_flush_tls(struct nbd_conn *c);

/* tls.c */
MUST_CHECK int nbd_tls_open(const struct nbd_conf *conf, struct ssl_ctx_st **ret_ctx, struct err *e);
void nbd_tls_close(struct ssl_ctx_st *ctx); /* NULL is fine */
void nbd_tls_start(struct nbd_conn *c); /* fills c->client when the handshake has succeeded */
void nbd_tls_free(struct nbd_conn *c);
MUST_CHECK bool nbd_tls_input(struct nbd_conn *c, size_t n); /* n bytes of c->cipher came from the socket */
/* Up to `room` bytes of clear text; 0: needs more input; -1: the client broke TLS or has no certificate of ours. */
MUST_CHECK int nbd_tls_read(struct nbd_conn *c, void *to, size_t room);
MUST_CHECK bool nbd_tls_encrypt(struct nbd_conn *c, const void *data, size_t len);
char *nbd_tls_output(struct nbd_conn *c, size_t *ret_len); /* what to put on the socket; the caller frees; NULL: nothing */

/* handshake.c: each takes one message from rbuf. True: go on; false: needs more input, or another state now. */
bool nbd_take_flags(struct nbd_conn *c);
bool nbd_take_option(struct nbd_conn *c);
void nbd_greet(struct nbd_conn *c);
void nbd_reply(struct nbd_conn *c, uint32_t opt, uint32_t type, const void *data, uint32_t len);
bool nbd_name_ok(const uint8_t *name, size_t len);

/* meta.c: metadata contexts */

/* Checks the data of LIST_ or SET_META_CONTEXT: fills *ret_name, *ret_len with the export's name, *ret_queries with the
 * queries (both within `data`). False: malformed. */
bool nbd_meta_parse(uint8_t *data, uint32_t len, const uint8_t **ret_name, uint32_t *ret_len, struct nbd_queries *ret_queries);
/* The export is `v`: tells the client its contexts that match and, for SET, remembers them. */
void nbd_meta_found(struct nbd_conn *c, const struct nbd_lookup *l, struct vol *v);
/* GO and EXPORT_NAME: contexts of another export do not count. */
void nbd_meta_begin(struct nbd_conn *c, const char *name);
/* Bytes of buffer that a status of `length` bytes from `offset` needs, map and reply. */
uint32_t nbd_meta_bytes(uint64_t offset, uint32_t length);
/* Asks the volume for the next context's map; `done` as for any request. */
void nbd_meta_start(struct nbd_req *r, front_io_done *done);
/* The map is there: makes the payload of its chunk behind it, returns its place; r->status_bytes is its length. */
const uint8_t *nbd_meta_chunk(struct nbd_req *r);

/* transmit.c */
bool nbd_take_request(struct nbd_conn *c);
/* `n` bytes of the write being filled arrived in its buffer. */
void nbd_filled(struct nbd_conn *c, size_t n);
void nbd_free_pool(struct nbd_conn *c);
/* Puts all that is answered on the socket, or closes the connection. */
void nbd_push_answers(struct nbd_conn *c);
void nbd_send_answers(struct nbd_conn *c); /* and goes on with its requests */
void nbd_drop_answers(struct nbd_conn *c); /* the connection is closed */

#endif
