/* See pipe.h. */
#include "proto/pipe.h"
#include <openssl/crypto.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"

#define OUT_MIN (32u << 10)
#define OUT_KEEP (512u << 10) /* a larger block is given back once it was sent */

static int on_read(BIO *b, char *to, int len)
{
    struct pipe *p = BIO_get_data(b);
    BIO_clear_retry_flags(b);
    if (len <= 0)
        return 0;
    if (!p->in_len) {
        BIO_set_retry_read(b);
        return -1;
    }
    size_t n = (size_t)len < p->in_len ? (size_t)len : p->in_len;
    memcpy(to, p->in, n);
    p->in += n;
    p->in_len -= n;
    return (int)n;
}

void pipe_room(struct pipe *p, size_t len)
{
    size_t need = p->out_len + len, cap = p->out_cap ? p->out_cap : OUT_MIN;
    if (need <= p->out_cap)
        return;
    while (cap < need)
        cap *= 2;
    p->out = xrealloc(p->out, cap);
    p->out_cap = cap;
}

static int on_write(BIO *b, const char *from, int len)
{
    struct pipe *p = BIO_get_data(b);
    BIO_clear_retry_flags(b);
    if (len <= 0)
        return 0;
    pipe_room(p, (size_t)len);
    memcpy(p->out + p->out_len, from, (size_t)len);
    p->out_len += (size_t)len;
    return len;
}

static long on_ctrl(BIO *b, int what, long num, void *ptr)
{
    (void)b, (void)num, (void)ptr;
    return what == BIO_CTRL_FLUSH;
}

static BIO_METHOD *method;

static void make_method(void)
{
    method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "cohort pipe");
    if (!method || !BIO_meth_set_read(method, on_read) || !BIO_meth_set_write(method, on_write) || !BIO_meth_set_ctrl(method, on_ctrl))
        abort(); /* out of memory */
}

BIO *pipe_bio(struct pipe *p)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_method);
    BIO *b = BIO_new(method);
    if (!b)
        abort();
    BIO_set_data(b, p);
    BIO_set_init(b, 1);
    return b;
}

void pipe_feed(struct pipe *p, const void *data, size_t len)
{
    if (p->in_len) { /* reading had been stopped before all was read */
        uint8_t *both = xmalloc(p->in_len + len);
        memcpy(both, p->in, p->in_len);
        memcpy(both + p->in_len, data, len);
        free(p->kept);
        p->in = p->kept = both;
        p->in_len += len;
        return;
    }
    p->in = data;
    p->in_len = len;
}

void pipe_keep(struct pipe *p)
{
    if (p->in_len && p->kept)
        return; /* still the same block: pipe_feed() replaces it */
    if (p->in_len) {
        p->kept = xmalloc(p->in_len);
        memcpy(p->kept, p->in, p->in_len);
        p->in = p->kept;
        return;
    }
    free(p->kept);
    p->kept = NULL;
}

uint8_t *pipe_take(struct pipe *p, size_t *ret_len)
{
    uint8_t *out = p->out;
    *ret_len = p->out_len;
    p->out = NULL;
    p->out_len = p->out_cap = 0;
    return out;
}

void pipe_sent(struct pipe *p)
{
    p->out_len = 0;
    if (p->out_cap > OUT_KEEP) {
        free(p->out);
        p->out = NULL;
        p->out_cap = 0;
    }
}

void pipe_free(struct pipe *p)
{
    free(p->kept);
    free(p->out);
}
