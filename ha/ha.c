/* Heartbeats, the node's lease, and the coordinator's driver. Decisions are in coord.c; here are clock, RPC and database. */
#include "ha/ha.h"
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "proto/control.pb-c.h"
#include "ha/coord.h"

LOG_MODULE("ha");

#define STEP_MS 100

struct beat { /* one heartbeat under way to one node */
    struct rpc_call call;
    struct ha *ha;
    uint64_t sent_ns;
};

struct running { /* one coordinator transaction under way */
    struct ha *ha;
    struct coord_action action;
};

struct ha {
    struct ha_conf conf;
    struct coord coord;
    uv_timer_t beat_timer, step_timer;
    int handles, beats; /* what still refers to us */
    bool closing;
    uint64_t lease_until_ns, seq;
    bool had_lease;
    enum coord_state told; /* last state logged */
    char boot_id[ID_LEN + 1];
};

static void ha_free_if_done(struct ha *h)
{
    if (h->closing && !h->handles && !h->beats)
        free(h);
}

static const struct cdb_view *view(const struct ha *h)
{
    return cdb_link_view(h->conf.link);
}

/* ---- lease ---- */

static void granted(struct ha *h, uint64_t sent_ns, uint32_t lease_ms)
{
    uint64_t until = sent_ns + (uint64_t)lease_ms * 1000000;
    if (until <= h->lease_until_ns)
        return;
    if (clock_boot_ns() > h->lease_until_ns)
        log_info("lease held: guests of this node may run");
    h->lease_until_ns = until;
    h->had_lease = true;
    h->conf.lease(until, h->conf.arg);
}

uint64_t ha_lease_until_ns(const struct ha *h)
{
    return h->lease_until_ns;
}

static void watch_lease(struct ha *h)
{
    if (h->had_lease && clock_boot_ns() > h->lease_until_ns) {
        h->had_lease = false;
        log_warn("lease lost (no coordinator with a majority was heard): guests of this node pause and their I/O waits until "
                 "it is back, or until the others have taken over");
    }
}

/* ---- heartbeats ---- */

static int64_t own_epoch(const struct ha *h)
{
    const struct cdb_node *n = view(h) ? cdb_node_get(view(h), h->conf.self) : NULL;
    return n ? n->epoch : -1;
}

static void on_beat_answer(struct rpc_call *call, int status, const ProtobufCMessage *msg, struct iobuf *data, size_t len)
{
    struct beat *b = call->arg;
    struct ha *h = b->ha;
    const Cohort__Control__HeartbeatRep *rep = (const Cohort__Control__HeartbeatRep *)msg;
    if (!status && rep->granted && !h->closing && rep->lease_ms <= 60000)
        granted(h, b->sent_ns, rep->lease_ms);
    free(b);
    h->beats--;
    ha_free_if_done(h);
}

static void send_beat(struct ha *h, struct rpc_peer *peer, const Cohort__Control__Heartbeat *m)
{
    struct beat *b = xcalloc(1, sizeof *b);
    *b = (struct beat){.ha = h, .sent_ns = clock_boot_ns()};
    b->call = (struct rpc_call){
        .out = &cohort__control__heartbeat_rep__descriptor, .timeout_ms = 2000, .done = on_beat_answer, .arg = b};
    h->beats++;
    rpc_call(peer, &b->call, RPC_HEARTBEAT, &m->base, NULL, 0, 0);
}

static void on_beat_timer(uv_timer_t *t)
{
    struct ha *h = t->data;
    const struct cdb_view *v = view(h);
    int64_t epoch = own_epoch(h);
    if (!v || epoch < 0)
        return;
    Cohort__Control__Heartbeat m = COHORT__CONTROL__HEARTBEAT__INIT;
    m.seq = ++h->seq;
    m.node_epoch = (uint64_t)epoch;
    m.boot_id = h->boot_id;
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        struct rpc_peer *p = strcmp(n->id, h->conf.self) ? h->conf.peer(n->id, h->conf.arg) : NULL;
        if (p && rpc_peer_connected(p))
            send_beat(h, p, &m);
    }
    uint64_t now = clock_boot_ns();
    if (coord_heartbeat(&h->coord, now / 1000000, v, h->conf.self, epoch))
        granted(h, now, (uint32_t)coord_lease_ms(v));
}

static void on_heartbeat(struct rpc_req *req, void *arg)
{
    struct ha *h = arg;
    const Cohort__Control__Heartbeat *m = (const Cohort__Control__Heartbeat *)req->msg;
    const struct cdb_view *v = view(h);
    Cohort__Control__HeartbeatRep rep = COHORT__CONTROL__HEARTBEAT_REP__INIT;
    rep.seq = m->seq;
    if (v && !h->closing && coord_heartbeat(&h->coord, clock_boot_ms(), v, req->peer, (int64_t)m->node_epoch)) {
        rep.granted = true;
        rep.coordinator_term = (uint64_t)h->coord.term;
        rep.lease_ms = (uint32_t)coord_lease_ms(v);
    }
    rpc_reply(req, &rep.base, NULL, 0, 0);
}

/* ---- coordinator ---- */

static const char *state_words[] = {"does not coordinate", "is taking office", "coordinates, waiting one lease before it judges",
                                    "coordinates the cluster"};

static void on_txn(void *arg, int status, const struct err *e)
{
    struct running *r = arg;
    struct ha *h = r->ha;
    if (status && status != E_CONFLICT)
        log_warn("coordinator transaction: %s", e->msg);
    coord_done(&h->coord, clock_boot_ms(), &r->action, status);
    free(r);
    h->beats--;
    ha_free_if_done(h);
}

static void run_action(struct ha *h, const struct coord_action *a)
{
    static const char *note[] = {"take office", "declare node dead", "node is up", "restart guest elsewhere", "repair copies", "move guest away",
                                 "stop guest"};
    struct cdb_txn *t = coord_txn(view(h), a, clock_wall_ms(), h->conf.self);
    if (!t) {
        coord_done(&h->coord, clock_boot_ms(), a, E_CONFLICT);
        return;
    }
    log_info("%s %s%s%s", note[a->kind], a->subject, a->to[0] ? " on node " : "", a->to);
    struct running *r = xmalloc(sizeof *r);
    *r = (struct running){h, *a};
    h->beats++;
    cdb_txn_commit(h->conf.link, t, note[a->kind], on_txn, r);
}

static void step(struct ha *h)
{
    struct coord_action a[COORD_ACTIONS_MAX];
    const struct cdb_view *v = view(h);
    if (!v)
        return;
    int n = coord_step(&h->coord, clock_boot_ms(), clock_wall_ms(), v, cdb_link_local_leader(h->conf.link), a, COORD_ACTIONS_MAX);
    if (h->coord.state != h->told) {
        h->told = h->coord.state;
        log_info("this node %s (term %lld)", state_words[h->told], (long long)h->coord.term);
    }
    for (int i = 0; i < n; i++)
        run_action(h, &a[i]);
}

static void on_step_timer(uv_timer_t *t)
{
    watch_lease(t->data);
    step(t->data);
}

void ha_view_changed(struct ha *h)
{
    step(h);
}

/* ---- life ---- */

static void read_boot_id(char ret[ID_LEN + 1])
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (!f || !fgets(ret, ID_LEN + 1, f))
        ret[0] = 0;
    if (f)
        fclose(f);
}

int ha_open(const struct ha_conf *conf, struct ha **ret_ha, struct err *e)
{
    struct ha *h = xcalloc(1, sizeof *h);
    h->conf = *conf;
    struct coord_conf cc = {.margin_ms = 2000, .hear_ms = 1500};
    snprintf(cc.self, sizeof cc.self, "%s", conf->self);
    coord_init(&h->coord, &cc);
    read_boot_id(h->boot_id);
    uv_timer_init(conf->loop, &h->beat_timer);
    uv_timer_init(conf->loop, &h->step_timer);
    h->beat_timer.data = h->step_timer.data = h;
    h->handles = 2;
    uv_timer_start(&h->beat_timer, on_beat_timer, 0, HA_HEARTBEAT_MS);
    uv_timer_start(&h->step_timer, on_step_timer, STEP_MS, STEP_MS);
    rpc_handle(conf->rpc, RPC_HEARTBEAT, &cohort__control__heartbeat__descriptor, 0, on_heartbeat, h);
    *ret_ha = h;
    return 0;
}

static void timer_closed(uv_handle_t *t)
{
    struct ha *h = t->data;
    h->handles--;
    ha_free_if_done(h);
}

void ha_close(struct ha *h)
{
    if (!h || h->closing)
        return;
    h->closing = true;
    uv_close((uv_handle_t *)&h->beat_timer, timer_closed);
    uv_close((uv_handle_t *)&h->step_timer, timer_closed);
}

void ha_dump(const struct ha *h, struct buf *out)
{
    uint64_t now = clock_boot_ms();
    int64_t left = (int64_t)(h->lease_until_ns / 1000000) - (int64_t)now;
    buf_printf(out, "this node %s, term %lld; own lease: %lld ms left\n", state_words[h->coord.state], (long long)h->coord.term,
               (long long)left);
    for (int i = 0; i < h->coord.n_peers; i++) {
        const struct coord_peer *p = &h->coord.peer[i];
        buf_printf(out, "  node %s heard %lld ms ago, lease granted by us: %lld ms left\n", p->id,
                   p->heard_ms ? (long long)(now - p->heard_ms) : -1ll, (long long)((int64_t)p->lease_until_ms - (int64_t)now));
    }
}
