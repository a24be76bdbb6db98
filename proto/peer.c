/* The calling side: a lasting connection to one node. States: idle (waiting to reconnect) -> connecting -> up -> idle.
 * Every call ends exactly once, from the loop: by its answer, its time-out, or the end of the connection. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "proto/env.h"
#include "proto/rpc_error.pb-c.h"

LOG_MODULE("rpc");

#define RECONNECT_MIN_MS 100
#define RECONNECT_MAX_MS 1000
#define TICK_MS 50

TAILQ_HEAD(calls, rpc_call);

struct rpc_peer {
    struct rpc_env *env;
    char node[ID_LEN + 1];
    struct sockaddr_storage addr;
    void (*up_cb)(struct rpc_peer *, bool, void *);
    void *arg;
    struct chan *chan; /* NULL while idle */
    bool up, closing;
    unsigned backoff_ms;
    uint64_t next_id;
    struct calls calls;  /* sent, unanswered; ascending id */
    struct calls failed; /* to be ended from the loop */
    struct deferred end_failed;
    bool end_queued;
    uv_timer_t reconnect, tick;
    int handles;
    char last_why[160]; /* so that a repeated failure is logged once */
    LIST_ENTRY(rpc_peer) entry;
};

static void on_reconnect(uv_timer_t *t);

static void peer_free_if_done(struct rpc_peer *p)
{
    if (!p->closing || p->handles || p->chan || p->end_queued)
        return;
    assert(TAILQ_EMPTY(&p->calls) && TAILQ_EMPTY(&p->failed));
    env_unref(p->env);
    free(p);
}

static void end_failed(struct deferred *d)
{
    struct rpc_peer *p = (struct rpc_peer *)((char *)d - offsetof(struct rpc_peer, end_failed));
    struct calls now = TAILQ_HEAD_INITIALIZER(now);
    struct rpc_call *c;
    TAILQ_CONCAT(&now, &p->failed, entry);
    p->end_queued = false;
    p->handles++; /* keeps `p` over the callbacks */
    while ((c = TAILQ_FIRST(&now))) {
        TAILQ_REMOVE(&now, c, entry);
        c->peer = NULL;
        c->done(c, (int)(int64_t)c->id, NULL, NULL, 0); /* id carries the code here: see fail_call */
    }
    p->handles--;
    peer_free_if_done(p);
}

/* Takes a call that is on no list to its end with `code`, from the loop. */
static void fail_call(struct rpc_peer *p, struct rpc_call *c, int code, const char *text)
{
    c->id = (uint64_t)(int64_t)code;
    c->detail = 0;
    snprintf(c->text, sizeof c->text, "%s", text);
    TAILQ_INSERT_TAIL(&p->failed, c, entry);
    if (!p->end_queued) {
        p->end_queued = true;
        env_defer(p->env, &p->end_failed);
    }
}

static void fail_all(struct rpc_peer *p, int code, const char *text)
{
    struct rpc_call *c;
    while ((c = TAILQ_FIRST(&p->calls))) {
        TAILQ_REMOVE(&p->calls, c, entry);
        fail_call(p, c, code, text);
    }
}

/* ---- channel events ---- */

static bool peer_ready(struct chan *ch, const char *node)
{
    struct rpc_peer *p = ch->owner;
    if (strcmp(node, p->node))
        return false;
    p->up = true;
    p->backoff_ms = RECONNECT_MIN_MS;
    p->last_why[0] = 0;
    log_dbg("connected to node %s (%s)", p->node, ch->address);
    if (p->up_cb)
        p->up_cb(p, true, p->arg);
    return true;
}

static struct rpc_call *find_call(struct rpc_peer *p, uint64_t id)
{
    struct rpc_call *c;
    TAILQ_FOREACH (c, &p->calls, entry)
        if (c->id == id)
            return c;
    return NULL;
}

static uint32_t peer_max_data(struct chan *ch, const struct frame *f)
{
    const struct rpc_call *c = find_call(ch->owner, f->id);
    return c ? c->max_data : RPC_DATA_MAX; /* the late answer to a call that timed out is read and dropped */
}

static int error_reply(struct rpc_call *c, const uint8_t *pb, size_t len)
{
    Cohort__Rpc__Error *m = (Cohort__Rpc__Error *)rpc_unpack(&cohort__rpc__error__descriptor, pb, len);
    if (!m || m->code >= 0 || !err_code_known(m->code)) {
        rpc_unpack_free(m ? &m->base : NULL);
        snprintf(c->text, sizeof c->text, "malformed error answer");
        return E_PROTO;
    }
    int code = m->code;
    c->detail = m->detail;
    snprintf(c->text, sizeof c->text, "%s", m->text);
    rpc_unpack_free(&m->base);
    return code;
}

static void peer_frame(struct chan *ch, const struct frame *f, const uint8_t *pb, struct iobuf *data)
{
    struct rpc_peer *p = ch->owner;
    if (!(f->flags & FRAME_REPLY)) {
        iobuf_unref(data);
        chan_fail(ch, "protocol error: a request where a reply belongs");
        return;
    }
    struct rpc_call *c = find_call(p, f->id);
    if (!c) {
        iobuf_unref(data);
        return;
    }
    ProtobufCMessage *m = NULL;
    int status = 0;
    if (f->flags & FRAME_ERROR) {
        status = error_reply(c, pb, f->pb_len);
    } else if (c->out && !(m = rpc_unpack(c->out, pb, f->pb_len))) {
        iobuf_unref(data);
        chan_fail(ch, "protocol error: malformed %s", c->out->name);
        return; /* the call ends with the connection */
    }
    TAILQ_REMOVE(&p->calls, c, entry);
    c->peer = NULL;
    c->done(c, status, m, status ? NULL : data, status ? 0 : f->data_len);
    rpc_unpack_free(m);
    iobuf_unref(data);
}

static void peer_closed(struct chan *ch)
{
    struct rpc_peer *p = ch->owner;
    bool was_up = p->up;
    if (strcmp(p->last_why, ch->why) && !p->closing) {
        snprintf(p->last_why, sizeof p->last_why, "%s", ch->why);
        log_info("node %s (%s): %s; trying again", p->node, ch->address, ch->why);
    }
    p->up = false;
    p->chan = NULL;
    fail_all(p, p->closing ? E_CANCELED : E_DISCONN, ch->why);
    if (was_up && p->up_cb && !p->closing)
        p->up_cb(p, false, p->arg);
    if (p->closing) {
        peer_free_if_done(p);
        return;
    }
    uv_timer_start(&p->reconnect, on_reconnect, p->backoff_ms, 0);
    p->backoff_ms = p->backoff_ms * 2 > RECONNECT_MAX_MS ? RECONNECT_MAX_MS : p->backoff_ms * 2;
}

static const struct chan_handler peer_handler = {peer_ready, peer_max_data, peer_frame, peer_closed};

static void on_reconnect(uv_timer_t *t)
{
    struct rpc_peer *p = t->data;
    p->chan = chan_new(p->env, &peer_handler, p);
    int rc = chan_connect(p->chan, (struct sockaddr *)&p->addr);
    if (rc)
        chan_fail(p->chan, "connect: %s", err_code_name(rc));
}

/* ---- public ---- */

static void on_tick(uv_timer_t *t)
{
    struct rpc_peer *p = t->data;
    uint64_t now = clock_boot_ns();
    for (struct rpc_call *c = TAILQ_FIRST(&p->calls), *next; c; c = next) {
        next = TAILQ_NEXT(c, entry);
        if (c->deadline_ns && now >= c->deadline_ns) {
            TAILQ_REMOVE(&p->calls, c, entry);
            fail_call(p, c, E_TIMEOUT, "no answer in time");
        }
    }
    if (TAILQ_EMPTY(&p->calls))
        uv_timer_stop(t);
}

int rpc_peer_open(struct rpc_env *env, const char *node_id, const char *address, uint16_t port,
                  void (*up)(struct rpc_peer *p, bool connected, void *arg), void *arg, struct rpc_peer **ret_peer,
                  struct err *e)
{
    struct sockaddr_storage ss;
    if (uv_ip4_addr(address, port, (struct sockaddr_in *)&ss) && uv_ip6_addr(address, port, (struct sockaddr_in6 *)&ss))
        return err_set(e, E_INVAL, "node %s: '%s' is not an IP address", node_id, address);
    struct rpc_peer *p = xcalloc(1, sizeof *p);
    *p = (struct rpc_peer){.env = env, .addr = ss, .up_cb = up, .arg = arg, .backoff_ms = RECONNECT_MIN_MS, .handles = 2};
    snprintf(p->node, sizeof p->node, "%s", node_id);
    TAILQ_INIT(&p->calls);
    TAILQ_INIT(&p->failed);
    p->end_failed.run = end_failed;
    uv_timer_init(env->loop, &p->reconnect);
    uv_timer_init(env->loop, &p->tick);
    uv_unref((uv_handle_t *)&p->tick);
    p->reconnect.data = p->tick.data = p;
    env->refs++;
    LIST_INSERT_HEAD(&env->peers, p, entry);
    uv_timer_start(&p->reconnect, on_reconnect, 0, 0); /* never `up` inside this call */
    *ret_peer = p;
    return 0;
}

static void timer_closed(uv_handle_t *h)
{
    struct rpc_peer *p = h->data;
    p->handles--;
    peer_free_if_done(p);
}

void rpc_peer_close(struct rpc_peer *p)
{
    if (!p || p->closing)
        return;
    p->closing = true;
    LIST_REMOVE(p, entry);
    fail_all(p, E_CANCELED, "closed");
    if (p->chan)
        chan_fail(p->chan, "closed");
    uv_close((uv_handle_t *)&p->reconnect, timer_closed);
    uv_close((uv_handle_t *)&p->tick, timer_closed);
}

bool rpc_peer_connected(const struct rpc_peer *p)
{
    return p->up;
}

uint64_t rpc_peer_heard_ms(const struct rpc_peer *p)
{
    return p->chan ? p->chan->heard_ms : 0;
}

const char *rpc_peer_node(const struct rpc_peer *p)
{
    return p->node;
}

void rpc_peer_reset(struct rpc_peer *p)
{
    if (p->chan)
        chan_fail(p->chan, "reset");
}

void rpc_call(struct rpc_peer *p, struct rpc_call *c, enum rpc_kind kind, const ProtobufCMessage *msg, struct iobuf *data,
              size_t data_off, size_t data_len)
{
    c->peer = p;
    c->detail = 0;
    c->text[0] = 0;
    if (!p->up || p->closing || !p->chan || p->chan->failed) {
        fail_call(p, c, p->closing ? E_CANCELED : E_DISCONN, p->last_why[0] ? p->last_why : "not connected");
        return;
    }
    c->id = ++p->next_id;
    c->deadline_ns = c->timeout_ms ? clock_boot_ns() + c->timeout_ms * 1000000ull : 0;
    TAILQ_INSERT_TAIL(&p->calls, c, entry);
    chan_send(p->chan, (struct frame){0, (uint16_t)kind, c->id, 0, (uint32_t)data_len}, msg, data, data_off);
    if (c->deadline_ns && !uv_is_active((uv_handle_t *)&p->tick))
        uv_timer_start(&p->tick, on_tick, TICK_MS, TICK_MS);
}
