/* Reading a sealed volume (an image) without owning it: any in-sync replica has the right bytes, for nobody writes. Messages
 * carry epoch 0. The local replica first; one that fails is passed over until all have been tried. */
#include <stdlib.h>
#include <string.h>
#include "storage/asan/engine/priv.h"

#define RETRY_MS 200

/* `parent`: what it was when the replica was asked. By the time of the answer the layer below may have been merged into this
 * volume and left out: "absent" then means "ask again", not "look below where it builds on now". */
struct sread { struct part *p; unsigned bit; char parent[ID_LEN + 1]; };

static void answered(void *arg, const struct repl_answer *ans)
{
    struct sread *s = arg;
    struct part *p = s->p;
    if (!ans->status && ans->absent && strcmp(s->parent, p->v->parent)) {
        free(s);
        sealed_read(p);
        return;
    }
    if (!ans->status) {
        p->op.data = ans->data ? iobuf_ref(ans->data) : NULL;
        p->op.data_off = ans->data_off;
        p->op.absent = ans->absent;
        free(s);
        volume_part_done(p, 0);
        return;
    }
    p->tried |= s->bit;
    if (ans->status == E_CORRUPT)
        p->op.bad |= (uint8_t)s->bit;
    free(s);
    sealed_read(p);
}

static void park(struct part *p)
{
    p->tried = 0;
    p->retry_ms = now_ms() + RETRY_MS;
    TAILQ_INSERT_TAIL(&p->v->parked, p, entry);
}

void sealed_read(struct part *p)
{
    struct volume *v = p->v;
    struct asan *a = v->a;
    const struct cdb_view *view = view_of(a);
    const struct cdb_shard *row = view ? shard_row(view, v, p->shard) : NULL;
    struct gdisk *best = NULL;
    unsigned best_bit = 0, in_sync = 0;
    if (!view || !a->view_seen || v->gone || a->stopping) {
        park(p);
        return;
    }
    if (!row) { /* never written */
        p->op.data = NULL;
        p->op.nowhere = true;
        volume_part_done(p, 0);
        return;
    }
    for (size_t k = 0; k < row->replicas.n && k < 8; k++) {
        struct gdisk *g = gdisk_get(a, row->replicas.v[k]);
        if (!cdb_shard_in_sync(view, row, g->id))
            continue;
        in_sync |= 1u << k;
        if (gdisk_up(a, g) && !(p->tried & 1u << k) && (!best || g->local)) {
            best = g;
            best_bit = 1u << k;
        }
    }
    if (in_sync && (in_sync & ~(unsigned)p->op.bad) == 0) {
        volume_part_done(p, E_CORRUPT);
        return;
    }
    if (!best) {
        park(p);
        return;
    }
    struct sread *s = xcalloc(1, sizeof *s);
    s->p = p;
    s->bit = best_bit;
    memcpy(s->parent, v->parent, sizeof s->parent);
    struct repl_msg m = {.kind = REPL_READ, .incarnation = best->incarnation, .offset = p->op.offset, .length = p->op.length,
                         .map = p->op.map, .through = true};
    link_send(a, best, &v->bin, p->shard, &m, true, answered, s);
}

void sealed_tick(struct volume *v)
{
    if (!v->open && !TAILQ_EMPTY(&v->parked) && TAILQ_FIRST(&v->parked)->retry_ms <= now_ms())
        volume_unpark(v);
}
