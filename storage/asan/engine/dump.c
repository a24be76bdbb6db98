/* The engine's state as JSON, for people and for tests. */
#include <inttypes.h>
#include <stdlib.h>
#include "base/buf.h"
#include "storage/asan/engine/priv.h"

static void text(struct buf *b, const char *s)
{
    buf_append(b, "\"", 1);
    for (; s && *s; s++) {
        if (*s == '"' || *s == '\\')
            buf_printf(b, "\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            buf_printf(b, "\\u%04x", *s);
        else
            buf_append(b, s, 1);
    }
    buf_append(b, "\"", 1);
}

/* What the disk holds of a shard; false: nothing. */
static bool copy_of(const struct ldisk *d, const struct volume *v, uint32_t index, struct store_shard_info *ret)
{
    struct store_shard_id id = {v->bin, index};
    if (!d->store)
        return false;
    store_shard_info(d->store, &id, ret);
    return ret->exists;
}

static bool holds(const struct ldisk *d, const struct volume *v)
{
    struct store_shard_info info;
    for (uint32_t i = 0; i < v->n_shards; i++)
        if (copy_of(d, v, i, &info))
            return true;
    return false;
}

/* `v`: those that hold something of it; NULL: all. */
static void disks(struct asan *a, const struct volume *v, struct buf *b)
{
    static const char *const state[] = {"waiting for its row", "raising incarnation", "ready", "failed"};
    const char *sep = "";
    for (int i = 0; i < a->n_disks; i++) {
        struct ldisk *d = &a->disk[i];
        struct store_usage u = {0};
        if (!*d->id || (v && !holds(d, v)))
            continue;
        if (d->store)
            store_usage(d->store, &u);
        buf_printf(b, "%s{\"id\":\"%s\",\"name\":", sep, d->id);
        sep = ",";
        text(b, d->name);
        buf_printf(b, ",\"state\":\"%s\",\"message\":", state[d->state]);
        text(b, d->state == LD_FAILED ? d->failure.msg : "");
        buf_printf(b, ",\"size_bytes\":%" PRIu64 ",\"used_bytes\":%" PRIu64 ",\"journal_bytes\":%" PRIu64
                   ",\"journal_used_bytes\":%" PRIu64 ",\"dirty_bytes\":%" PRIu64 ",\"aside_bytes\":%" PRIu64 ",\"cache_bytes\":%" PRIu64
                   ",\"cache_used_bytes\":%" PRIu64 ",\"cache_hits\":%" PRIu64 ",\"cache_misses\":%" PRIu64 ",\"full\":%s}",
                   u.size_bytes, u.used_bytes, u.journal_bytes, u.journal_used_bytes, u.dirty_bytes, u.aside_bytes,
                   u.cache.size_bytes, u.cache.used_bytes, u.cache.hits, u.cache.misses, u.full ? "true" : "false");
    }
}

/* The copies on this node's disks: what is installed and accepted there, and the requests that they have in hand. */
static void copies(struct asan *a, const struct volume *v, struct buf *b)
{
    const struct cdb_view *view = view_of(a);
    const char *sep = "";
    for (int i = 0; i < a->n_disks; i++) {
        struct ldisk *d = &a->disk[i];
        struct store_shard_info s;
        for (uint32_t k = 0; k < v->n_shards; k++) {
            unsigned waiting, early;
            if (!copy_of(d, v, k, &s))
                continue;
            const struct cdb_shard *row = view ? shard_row(view, v, k) : NULL;
            host_queues(d, &(struct store_shard_id){v->bin, k}, &waiting, &early);
            buf_printf(b, "%s{\"index\":%u,\"disk\":\"%s\",\"in_sync\":%s,\"epoch\":%" PRIu64 ",\"last\":[%" PRIu64 ",%" PRIu64
                       "],\"commit\":[%" PRIu64 ",%" PRIu64 "],\"waiting\":%u,\"came_early\":%u}", sep, k, d->id,
                       row && cdb_shard_in_sync(view, row, d->id) ? "true" : "false", s.epoch, s.last.epoch, s.last.seq, s.commit.epoch,
                       s.commit.seq, waiting, early);
            sep = ",";
        }
    }
}

static void shard(struct asan *a, const struct shard *s, struct buf *b)
{
    struct owner_info i;
    owner_info(s->core, &i);
    buf_printf(b, "{\"index\":%u,\"state\":\"%s\",\"parked\":", s->index, owner_state_name(i.state));
    text(b, i.parked ? i.parked : "");
    buf_printf(b, ",\"generation\":%" PRIu64 ",\"isr\":%d,\"waiting\":%u,\"reading\":%u,\"writing\":%u,\"next_seq\":%" PRIu64
               ",\"commit_seq\":%" PRIu64 ",\"replicas\":[", i.generation, i.n_isr, i.waiting, i.reading, i.writing, i.next_seq,
               i.commit_seq);
    for (int k = 0; k < i.n_replicas; k++)
        buf_printf(b, "%s{\"disk\":\"%s\",\"in_sync\":%s,\"joining\":%s,\"live\":%s,\"failing\":%s}", k ? "," : "",
                   a->gdisk[i.member[k].disk]->id, i.member[k].isr ? "true" : "false", i.member[k].joining ? "true" : "false",
                   i.member[k].live ? "true" : "false", i.member[k].failing ? "true" : "false");
    buf_printf(b, "],\"joining\":%s,\"join_done\":%" PRIu64 ",\"join_total\":%" PRIu64 ",\"join_copied\":%" PRIu64 ",\"lost_bytes\":%" PRIu64 "}",
               i.joining ? "true" : "false", i.join_done, i.join_total, i.join_copied, i.lost_bytes);
}

static const char *parked(const struct volume *v)
{
    if (v->key && !v->crypt)
        return "encrypted, and the cluster key is not here: cohort cluster key unlock";
    if (v->open)
        return "";
    if (v->deleting)
        return "the volume is being deleted";
    if (!v->mine)
        return v->sealed ? "" : "this node does not own it";
    return "getting an epoch";
}

static void volume(struct asan *a, const struct volume *v, struct buf *b)
{
    const struct vreq *q;
    unsigned requests = 0;
    bool first = true;
    TAILQ_FOREACH (q, &v->active, entry)
        requests++;
    buf_printf(b, "{\"id\":\"%s\",\"name\":", v->id);
    text(b, v->name);
    const struct cdb_view *view = view_of(a);
    const struct cdb_node *owner = view ? cdb_node_get(view, v->owner) : NULL;
    buf_printf(b, ",\"owner\":");
    text(b, owner ? owner->name : "");
    buf_printf(b, ",\"epoch\":%" PRIu64 ",\"open\":%s,\"users\":%u,\"claims\":%u,\"requests\":%u,\"parked\":", v->epoch,
               v->open ? "true" : "false", v->users, v->claims, requests);
    text(b, parked(v));
    buf_printf(b, ",\"shards\":[");
    for (uint32_t i = 0; i < v->n_shards; i++) {
        if (!v->shard[i] || !v->shard[i]->core)
            continue;
        if (!first)
            buf_append(b, ",", 1);
        first = false;
        shard(a, v->shard[i], b);
    }
    buf_printf(b, "]}");
}

char *dump_json(struct asan *a, const char *volume_id)
{
    struct buf b;
    struct htab_node *n;
    struct peer *p;
    const char *sep = "";
    const struct volume *only = volume_id ? volume_find(a, volume_id) : NULL;
    if (volume_id && !only)
        return NULL;
    buf_init(&b);
    buf_printf(&b, "{\"lease\":%s,\"disks\":[", a->lease ? "true" : "false");
    disks(a, only, &b);
    buf_printf(&b, "],\"peers\":[");
    LIST_FOREACH (p, &a->peers, entry) {
        buf_printf(&b, "%s{\"node\":\"%s\",\"connected\":%s,\"links\":[", sep, p->node, p->connected ? "true" : "false");
        for (int i = 0; i < p->n_links; i++)
            buf_printf(&b, "%s{\"address\":\"%s\",\"standby\":%s,\"up\":%s,\"out_bytes\":%" PRIu64 "}", i ? "," : "",
                       p->link[i]->address, p->link[i]->standby ? "true" : "false", p->link[i]->up ? "true" : "false",
                       p->link[i]->out_bytes);
        buf_printf(&b, "]}");
        sep = ",";
    }
    buf_printf(&b, "],\"repeated\":%" PRIu64 ",\"came_early\":%" PRIu64 ",\"volumes\":[", a->repeated, a->came_early);
    sep = "";
    HTAB_FOR_EACH (n, &a->volumes) {
        const struct volume *v = container_of(n, struct volume, node);
        if (only ? v != only : !v->open && volume_idle(v) && !v->users && !v->claims)
            continue; /* nothing of it happens here */
        buf_printf(&b, "%s", sep);
        volume(a, v, &b);
        sep = ",";
    }
    buf_printf(&b, "]");
    if (only) {
        buf_printf(&b, ",\"copies\":[");
        copies(a, only, &b);
        buf_printf(&b, "]");
    }
    buf_printf(&b, "}");
    return buf_take(&b);
}
