/* NBD server: volumes for tools (import, export, backup, tests) on a unix socket and, if wanted, TCP.
 * Source: the NBD protocol document (NetworkBlockDevice/nbd, doc/proto.md), fixed newstyle; structured replies for reads.
 *
 * Threading: everything on the volumes' loop; callbacks too. The process must ignore SIGPIPE (libuv's writes raise it).
 * Semantics: a completed write is durable (vol.h), so FUA costs nothing and several connections to one export see one
 * consistent volume (CAN_MULTI_CONN). Replies come in order of completion. Requests are multiples of 512 bytes: others get
 * EINVAL, as the advertised minimum block size says. Per connection at most NBD_REQS_MAX requests and NBD_BYTES_MAX
 * bytes are held; beyond that we stop reading from it.
 * Authorization: the unix socket is for root. TCP with the TLS files set tells nothing, not even names, before STARTTLS with
 * a certificate of that CA, whose holder may do everything, or of a client that nbd_exports.known knows: it sees and uses what
 * nbd_exports.access allows; another export is refused (NBD_REP_ERR_POLICY) in the same words whether it exists or not. Without
 * the TLS files there is no encryption, and TCP belongs on loopback (tests).
 * Contexts of block status: base:allocation, and cohort:changed:SNAPSHOT for each snapshot that the export can be compared
 * with: bit 0 (as in qemu:dirty-bitmap) where it may differ from it, in units of 64 KiB. At most NBD_SINCE_MAX at a time.
 * Resize: a client sees a volume's new size when it connects again. */
#ifndef COHORT_FRONT_NBD_H
#define COHORT_FRONT_NBD_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"
#include "storage/asan/vol.h"

#define NBD_NAME_MAX 4096u
#define NBD_LEN_MAX (32u << 20) /* of a read or write */
#define NBD_REQS_MAX 128u
#define NBD_SINCE_MAX 8u
#define NBD_BYTES_MAX (64u << 20)

struct nbd_server;
struct nbd_lookup; /* one question by name, ours until answered */
struct nbd_list;
struct nbd_bases;

#define NBD_CLIENT_HEX 64 /* characters: a client is the sha256 of its certificate (DER) in hex; NULL = one who may do everything */

enum nbd_access { NBD_NO_ACCESS, NBD_READ_ONLY, NBD_READ_WRITE };

struct nbd_exports { /* where volumes come from; copied */
    /* Answers with nbd_lookup_done(), now or later, exactly once. "" is the client's wish for a default export. E_PERM: `client`
     * may not use it, or nothing of that name is there for it. */
    void (*find)(void *arg, const char *client, const char *name, struct nbd_lookup *l);
    /* The connection no longer uses `v`; called once for every successful answer, with no request in flight. */
    void (*release)(void *arg, struct vol *v);
    /* Calls nbd_list_add() for each name that `client` may know; NULL = listing is refused. */
    void (*list)(void *arg, const char *client, struct nbd_list *l);
    /* Is a certificate that is not the CA's one of a client? NULL = none is. */
    bool (*known)(void *arg, const char *client);
    /* What may a known client do with `v` now? Asked when it has chosen it and by nbd_server_recheck(). */
    enum nbd_access (*access)(void *arg, const char *client, const struct vol *v);
    /* Calls nbd_base_add() for each snapshot that `v` can be compared with (vol_req.since); NULL = there are none. */
    void (*bases)(void *arg, struct vol *v, struct nbd_bases *b);
    void *arg;
};

/* code 0 with a volume; or E_NOTFOUND etc. with a message for the client (v NULL). */
void nbd_lookup_done(struct nbd_lookup *l, int code, struct vol *v, const char *msg);
void nbd_list_add(struct nbd_list *l, const char *name);
void nbd_base_add(struct nbd_bases *b, const char *name, const char *id); /* copied */

struct nbd_conf {
    const char *unix_path; /* NULL = none; a stale file is replaced */
    const char *tcp_addr;  /* numeric IPv4 or IPv6; NULL = none */
    uint16_t tcp_port;     /* 0 = the kernel chooses: nbd_server_port() */
    const char *tls_ca, *tls_cert, *tls_key; /* PEM files: TCP then needs STARTTLS and a certificate of that CA; or all NULL */
    unsigned conns_max;    /* 0 = 64 */
};

MUST_CHECK int nbd_server_open(struct uv_loop_s *loop, const struct nbd_conf *conf, const struct nbd_exports *exports,
                               struct nbd_server **ret_srv, struct err *e);
uint16_t nbd_server_port(const struct nbd_server *srv);
/* Disconnects everyone using `v` (it is being deleted or moved away). Released when its requests came back. */
void nbd_server_drop(struct nbd_server *srv, const struct vol *v);
/* Has a client that is still there chosen `v`? (One that left counts until its requests came back, but has no interest in them.) */
bool nbd_server_uses(const struct nbd_server *srv, const struct vol *v);
/* Disconnects the clients that may no longer do what they could when they chose their export. */
void nbd_server_recheck(struct nbd_server *srv);
/* Stops listening and disconnects everyone; `done` when the last request and lookup came back. */
void nbd_server_close(struct nbd_server *srv, void (*done)(void *arg), void *arg);

#endif
