/* Metadata in RocksDB. See meta.h; FORMAT.md has the layout of keys and values. */
#include "storage/asan/store/meta.h"

#include <assert.h>
#include <rocksdb/c.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/fault.h"
#include "storage/asan/store/dev.h"

#define VALUE_VERSION 3u
#define KEY_MAX 29u
#define VALUE_MAX 400u

struct meta {
    rocksdb_t *db;
    rocksdb_options_t *options;
    rocksdb_writeoptions_t *sync;
    rocksdb_readoptions_t *read;
};

struct meta_batch { rocksdb_writebatch_t *b; };

struct bytes { uint8_t b[VALUE_MAX]; size_t n; };

static void put(struct bytes *w, const void *p, size_t n)
{
    assert(w->n + n <= sizeof w->b);
    memcpy(w->b + w->n, p, n);
    w->n += n;
}
static void put8(struct bytes *w, uint8_t v) { put(w, &v, 1); }
static void put16(struct bytes *w, uint16_t v) { v = htole16(v); put(w, &v, 2); }
static void put32(struct bytes *w, uint32_t v) { v = htole32(v); put(w, &v, 4); }
static void put64(struct bytes *w, uint64_t v) { v = htole64(v); put(w, &v, 8); }
static void put_version(struct bytes *w, struct store_version v) { put64(w, v.epoch); put64(w, v.seq); }

struct view { const uint8_t *p; size_t n; bool bad; };

static void get(struct view *v, void *to, size_t n)
{
    if (v->n < n) {
        v->bad = true;
        memset(to, 0, n);
        return;
    }
    memcpy(to, v->p, n);
    v->p += n;
    v->n -= n;
}
static uint8_t get8(struct view *v) { uint8_t x; get(v, &x, 1); return x; }
static uint16_t get16(struct view *v) { uint16_t x; get(v, &x, 2); return le16toh(x); }
static uint32_t get32(struct view *v) { uint32_t x; get(v, &x, 4); return le32toh(x); }
static uint64_t get64(struct view *v) { uint64_t x; get(v, &x, 8); return le64toh(x); }
static struct store_version get_version(struct view *v)
{
    uint64_t epoch = get64(v);
    return (struct store_version){epoch, get64(v)};
}

/* ---- keys ---- */

/* Big-endian numbers, so that RocksDB's order is ours. */
static struct bytes key_of(char kind, const struct store_shard_id *id)
{
    struct bytes k = {.n = 0};
    put8(&k, (uint8_t)kind);
    if (id) {
        uint32_t be = htobe32(id->index);
        put(&k, id->volume.b, 16);
        put(&k, &be, 4);
    }
    return k;
}

static struct bytes key_ext(const struct store_shard_id *id, uint32_t index)
{
    struct bytes k = key_of('E', id);
    uint32_t be = htobe32(index);
    put(&k, &be, 4);
    return k;
}

static struct bytes key_aside(const struct store_shard_id *id, uint64_t arrival)
{
    struct bytes k = key_of('A', id);
    uint64_t be = htobe64(arrival);
    put(&k, &be, 8);
    return k;
}

static void seal_and_put(struct meta_batch *b, const struct bytes *key, struct bytes *value)
{
    put32(value, crc32c(crc32c(0, key->b, key->n), value->b, value->n));
    rocksdb_writebatch_put(b->b, (const char *)key->b, key->n, (const char *)value->b, value->n);
}

static struct bytes value_new(void)
{
    struct bytes v = {.n = 0};
    put8(&v, VALUE_VERSION);
    return v;
}

/* ---- open ---- */

static int rocks_error(char *text, struct err *e, const char *what)
{
    /* Corruption first: "block checksum mismatch" has "lock " in it, too. */
    int code = strncmp(text, "Corruption", 10) == 0 || strstr(text, "No such file") ? E_CORRUPT
               : strstr(text, "LOCK") || strstr(text, "lock ") ? E_BUSY
                                                               : E_IO;
    err_set(e, code, "%s: %s%s", what, text, code == E_BUSY ? " (is another cohortd using this disk?)" : "");
    free(text);
    return code;
}

int meta_open(const char *path, bool create, struct meta **ret_meta, struct err *e)
{
    struct meta *m = xcalloc(1, sizeof *m);
    m->options = rocksdb_options_create();
    rocksdb_options_set_create_if_missing(m->options, create);
    rocksdb_options_set_paranoid_checks(m->options, 1);
    /* A log whose middle is damaged must not be shortened silently; a torn end was never acknowledged. */
    rocksdb_options_set_wal_recovery_mode(m->options, rocksdb_tolerate_corrupted_tail_records_recovery);
    rocksdb_options_set_keep_log_file_num(m->options, 2);
    rocksdb_options_set_info_log_level(m->options, 3);
    rocksdb_options_set_max_open_files(m->options, 256);
    rocksdb_options_set_write_buffer_size(m->options, 16u << 20);
    rocksdb_options_set_max_total_wal_size(m->options, 64u << 20);
    rocksdb_options_set_compression(m->options, rocksdb_no_compression); /* mostly checksums */
    m->sync = rocksdb_writeoptions_create();
    rocksdb_writeoptions_set_sync(m->sync, 1);
    m->read = rocksdb_readoptions_create();
    rocksdb_readoptions_set_verify_checksums(m->read, 1);
    char *text = NULL, *name = xasprintf("open metadata in %s", path), *current = xasprintf("%s/CURRENT", path);
    int rc = E_OK;
    if (!create && access(current, F_OK) < 0)
        rc = err_set(e, E_NOTFOUND, "%s: there is none", name);
    else if ((m->db = rocksdb_open(m->options, path, &text)) == NULL)
        rc = rocks_error(text, e, name);
    free(name);
    free(current);
    if (rc < 0)
        meta_close(m);
    else
        *ret_meta = m;
    return rc;
}

void meta_close(struct meta *m)
{
    if (!m)
        return;
    if (m->db)
        rocksdb_close(m->db);
    rocksdb_readoptions_destroy(m->read);
    rocksdb_writeoptions_destroy(m->sync);
    rocksdb_options_destroy(m->options);
    free(m);
}

/* ---- load ---- */

static int bad(struct err *e, const uint8_t *key, size_t n, const char *why)
{
    char hex[2 * KEY_MAX + 1] = "";
    static const char digit[] = "0123456789abcdef";
    for (size_t i = 0; i < n && i < KEY_MAX; i++) {
        hex[2 * i] = digit[key[i] >> 4];
        hex[2 * i + 1] = digit[key[i] & 15];
        hex[2 * i + 2] = '\0';
    }
    return err_set(e, E_CORRUPT, "metadata key %s: %s", hex, why);
}

static struct store_shard_id key_shard(const uint8_t *key)
{
    struct store_shard_id id;
    uint32_t be;
    memcpy(id.volume.b, key + 1, 16);
    memcpy(&be, key + 17, 4);
    id.index = be32toh(be);
    return id;
}

static int visit_ext(const struct meta_visitor *v, void *arg, const uint8_t *key, struct view *w, struct err *e)
{
    struct store_shard_id id = key_shard(key);
    struct meta_ext x;
    uint32_t be;
    memcpy(&be, key + 21, 4);
    x.place = get64(w);
    for (unsigned c = 0; c < EXT_CHUNKS; c++)
        x.version[c] = get_version(w);
    for (unsigned i = 0; i < EXT_BLOCKS && x.place != PLACE_NONE; i++)
        x.crc[i] = get32(w);
    return w->bad || w->n ? bad(e, key, 25, "wrong length") : v->ext(arg, &id, be32toh(be), &x, e);
}

static bool aside_ok(const struct meta_aside *a)
{
    bool copy = a->type == FMT_COPY || a->type == FMT_COPY_ZERO, zero = a->type == FMT_ZERO || a->type == FMT_COPY_ZERO;
    return a->type >= FMT_WRITE && a->type <= FMT_COPY_ZERO && a->length && a->length <= STORE_CHUNK && a->length % 512 == 0 &&
           a->offset % 512 == 0 && a->offset < UINT64_MAX - STORE_CHUNK && a->offset % STORE_CHUNK + a->length <= STORE_CHUNK &&
           (!copy || a->length == STORE_CHUNK) && (!a->lost || a->type == FMT_COPY) && zero == (a->data_at == PLACE_NONE) &&
           (zero || (a->data_at % FMT_BLOCK == 0 && a->data_at % STORE_EXTENT + a->length <= STORE_EXTENT));
}

static int visit_aside(const struct meta_visitor *v, void *arg, const uint8_t *key, struct view *w, struct err *e)
{
    struct store_shard_id id = key_shard(key);
    struct meta_aside a = {.version = get_version(w)};
    uint64_t be;
    memcpy(&be, key + 21, 8);
    a.offset = get64(w);
    a.batch_seq = get64(w);
    a.data_at = get64(w);
    a.length = get32(w);
    a.crc = get32(w);
    a.lost = get16(w);
    a.type = get8(w);
    a.shown = get8(w) & 1;
    if (w->bad || w->n)
        return bad(e, key, KEY_MAX, "wrong length");
    if (!aside_ok(&a) || be64toh(be) == 0 || be64toh(be) == UINT64_MAX)
        return bad(e, key, KEY_MAX, "valid checksum and impossible contents");
    return v->aside(arg, &id, be64toh(be), &a, e);
}

static int visit_shard(const struct meta_visitor *v, void *arg, const uint8_t *key, struct view *w, struct err *e)
{
    struct store_shard_id id = key_shard(key);
    struct meta_fence f;
    struct meta_progress p;
    if (key[0] == 'F') {
        f.exists = get8(w) & 1;
        f.epoch = get64(w);
        f.shard_bytes = get64(w);
        f.floor_pos = get64(w);
    } else {
        p.last = get_version(w);
        p.commit = get_version(w);
    }
    if (w->bad || w->n)
        return bad(e, key, 21, "wrong length");
    return key[0] == 'F' ? v->fence(arg, &id, &f, e) : v->progress(arg, &id, &p, e);
}

int meta_visit(const struct meta_visitor *v, void *arg, const uint8_t *key, size_t key_n, const uint8_t *value, size_t n,
               struct err *e)
{
    static const struct { char kind; size_t n; } known[] = {{'L', 1}, {'N', 1}, {'G', 1}, {'F', 21}, {'S', 21}, {'E', 25}, {'A', 29}};
    bool ok = false;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        ok |= key_n == known[i].n && key[0] == known[i].kind;
    if (n < 5)
        return bad(e, key, key_n, "too short");
    uint32_t crc;
    memcpy(&crc, value + n - 4, 4);
    if (le32toh(crc) != crc32c(crc32c(0, key, key_n), value, n - 4))
        return bad(e, key, key_n, "checksum mismatch");
    struct view w = {value, n - 4, false};
    uint8_t version = get8(&w);
    if (!ok || version != VALUE_VERSION) {
        bad(e, key, key_n, version < VALUE_VERSION ? "made by an older Cohort: start that version, or empty the disk and add it again; "
                           "its contents are then rebuilt from the other copies" : "made by a newer Cohort: upgrade this node");
        if (e)
            e->code = E_VERSION;
        return E_VERSION;
    }
    struct meta_label l;
    switch (key[0]) {
    case 'L':
        get(&w, l.cluster, sizeof l.cluster);
        get(&w, l.disk, sizeof l.disk);
        get(&w, l.journal_id, sizeof l.journal_id);
        l.cluster[FMT_ID_MAX - 1] = l.disk[FMT_ID_MAX - 1] = '\0';
        return w.bad || w.n ? bad(e, key, key_n, "wrong length") : v->label(arg, &l, e);
    case 'N': {
        uint64_t number = get64(&w), durable_seq = get64(&w);
        return w.bad || w.n ? bad(e, key, key_n, "wrong length") : v->number(arg, number, durable_seq, e);
    }
    case 'G': {
        uint64_t number = get64(&w);
        return w.bad || w.n ? bad(e, key, key_n, "wrong length") : v->fences(arg, number, e);
    }
    case 'E':
        return visit_ext(v, arg, key, &w, e);
    case 'A':
        return visit_aside(v, arg, key, &w, e);
    default:
        return visit_shard(v, arg, key, &w, e);
    }
}

static int walk(struct meta *m, char only, const struct meta_visitor *v, void *arg, struct err *e)
{
    int rc = E_OK;
    rocksdb_iterator_t *it = rocksdb_create_iterator(m->db, m->read);
    for (rocksdb_iter_seek(it, &only, 1); rocksdb_iter_valid(it) && rc == E_OK; rocksdb_iter_next(it)) {
        size_t kn, vn;
        const char *k = rocksdb_iter_key(it, &kn), *val = rocksdb_iter_value(it, &vn);
        if (kn == 0 || k[0] != only)
            break;
        rc = meta_visit(v, arg, (const uint8_t *)k, kn, (const uint8_t *)val, vn, e);
    }
    char *text = NULL;
    rocksdb_iter_get_error(it, &text);
    rocksdb_iter_destroy(it);
    if (text && rc == E_OK)
        return rocks_error(text, e, "read metadata");
    free(text);
    return rc;
}

int meta_load(struct meta *m, const struct meta_visitor *v, void *arg, struct err *e)
{
    static const char order[] = "LNGFSEA";
    int rc = E_OK;
    for (const char *p = order; *p && rc == E_OK; p++)
        rc = walk(m, *p, v, arg, e);
    return rc;
}

/* ---- batches ---- */

struct meta_batch *meta_batch_new(void)
{
    struct meta_batch *b = xmalloc(sizeof *b);
    b->b = rocksdb_writebatch_create();
    return b;
}

void meta_batch_free(struct meta_batch *b)
{
    rocksdb_writebatch_destroy(b->b);
    free(b);
}

void meta_put_label(struct meta_batch *b, const struct meta_label *l)
{
    struct bytes k = key_of('L', NULL), v = value_new();
    put(&v, l->cluster, sizeof l->cluster);
    put(&v, l->disk, sizeof l->disk);
    put(&v, l->journal_id, sizeof l->journal_id);
    seal_and_put(b, &k, &v);
}

void meta_put_number(struct meta_batch *b, uint64_t number, uint64_t durable_seq)
{
    struct bytes k = key_of('N', NULL), v = value_new();
    put64(&v, number);
    put64(&v, durable_seq);
    seal_and_put(b, &k, &v);
}

void meta_put_fences(struct meta_batch *b, uint64_t number)
{
    struct bytes k = key_of('G', NULL), v = value_new();
    put64(&v, number);
    seal_and_put(b, &k, &v);
}

void meta_put_fence(struct meta_batch *b, const struct store_shard_id *id, const struct meta_fence *f)
{
    struct bytes k = key_of('F', id), v = value_new();
    put8(&v, f->exists ? 1 : 0);
    put64(&v, f->epoch);
    put64(&v, f->shard_bytes);
    put64(&v, f->floor_pos);
    seal_and_put(b, &k, &v);
}

void meta_put_progress(struct meta_batch *b, const struct store_shard_id *id, const struct meta_progress *p)
{
    struct bytes k = key_of('S', id), v = value_new();
    put_version(&v, p->last);
    put_version(&v, p->commit);
    seal_and_put(b, &k, &v);
}

void meta_put_ext(struct meta_batch *b, const struct store_shard_id *id, uint32_t index, const struct meta_ext *x)
{
    struct bytes k = key_ext(id, index), v = value_new();
    put64(&v, x->place);
    for (unsigned c = 0; c < EXT_CHUNKS; c++)
        put_version(&v, x->version[c]);
    for (unsigned i = 0; i < EXT_BLOCKS && x->place != PLACE_NONE; i++)
        put32(&v, x->crc[i]);
    seal_and_put(b, &k, &v);
}

void meta_delete_ext(struct meta_batch *b, const struct store_shard_id *id, uint32_t index)
{
    struct bytes k = key_ext(id, index);
    rocksdb_writebatch_delete(b->b, (const char *)k.b, k.n);
}

void meta_put_aside(struct meta_batch *b, const struct store_shard_id *id, uint64_t arrival, const struct meta_aside *a)
{
    struct bytes k = key_aside(id, arrival), v = value_new();
    put_version(&v, a->version);
    put64(&v, a->offset);
    put64(&v, a->batch_seq);
    put64(&v, a->data_at);
    put32(&v, a->length);
    put32(&v, a->crc);
    put16(&v, a->lost);
    put8(&v, a->type);
    put8(&v, a->shown ? 1 : 0);
    seal_and_put(b, &k, &v);
}

void meta_delete_aside(struct meta_batch *b, const struct store_shard_id *id, uint64_t arrival)
{
    struct bytes k = key_aside(id, arrival);
    rocksdb_writebatch_delete(b->b, (const char *)k.b, k.n);
}

static void delete_range(struct meta_batch *b, struct bytes from, struct bytes to)
{
    put8(&to, 0); /* the end is exclusive */
    rocksdb_writebatch_delete_range(b->b, (const char *)from.b, from.n, (const char *)to.b, to.n);
}

void meta_delete_shard(struct meta_batch *b, const struct store_shard_id *id)
{
    struct bytes s = key_of('S', id);
    rocksdb_writebatch_delete(b->b, (const char *)s.b, s.n);
    delete_range(b, key_ext(id, 0), key_ext(id, UINT32_MAX));
    delete_range(b, key_aside(id, 0), key_aside(id, UINT64_MAX));
}

int meta_commit(struct meta *m, struct meta_batch *b, struct err *e)
{
    if (fault_hit("meta.write"))
        return err_set(e, E_IO, "write metadata: injected");
    if (dev_hook && dev_hook->meta(dev_hook, false) < 0)
        return err_set(e, E_IO, "write metadata: the power is off");
    char *text = NULL;
    rocksdb_write(m->db, m->sync, b->b, &text);
    if (text)
        return rocks_error(text, e, "write metadata");
    if (dev_hook && dev_hook->meta(dev_hook, true) < 0)
        return err_set(e, E_IO, "write metadata: the power is off");
    return E_OK;
}
