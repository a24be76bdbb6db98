/* The two ends between OpenSSL and a socket: ciphertext that has come, ciphertext to be sent. An OpenSSL memory BIO does this
 * too, but copies everything once more each way, zeroes its whole store at every reset, and never shrinks it. Private to proto/. */
#ifndef COHORT_PROTO_PIPE_H
#define COHORT_PROTO_PIPE_H

#include <openssl/bio.h>
#include <stddef.h>
#include <stdint.h>

struct pipe {
    const uint8_t *in; /* not yet read by OpenSSL: what pipe_feed() was given, or `kept` */
    size_t in_len;
    uint8_t *kept;
    uint8_t *out;      /* not yet sent */
    size_t out_len, out_cap;
};

/* A BIO that reads from and writes to `p`, which must outlive it. Aborts when memory is out. */
BIO *pipe_bio(struct pipe *p);
/* `data` has come. It is read in place: after OpenSSL has had its turn, and before `data` changes, call pipe_keep(). */
void pipe_feed(struct pipe *p, const void *data, size_t len);
void pipe_keep(struct pipe *p);
/* Room for `len` more bytes to be sent, so that the block does not have to grow step by step. */
void pipe_room(struct pipe *p, size_t len);
/* Hands over what is to be sent: *ret_len bytes that start at the returned block, which the caller frees. */
uint8_t *pipe_take(struct pipe *p, size_t *ret_len);
/* All of it was sent. */
void pipe_sent(struct pipe *p);
void pipe_free(struct pipe *p);

#endif
