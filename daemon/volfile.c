/* See volfile.h. */
#include "daemon/volfile.h"
#include <endian.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/crc32c.h"

static const char magic[8] = {'C', 'O', 'H', 'R', 'T', 'V', 'O', 'L'};

struct head_wire {
    char magic[8];
    uint32_t version, header_bytes;
    uint64_t size_bytes, created_ms;
    char volume[VOLFILE_NAME], snapshot[VOLFILE_NAME], content[40], base[40], base_name[VOLFILE_NAME];
    uint8_t zero[VOLFILE_HEADER - 308];
    uint32_t crc;
};
_Static_assert(sizeof(struct head_wire) == VOLFILE_HEADER, "layout");
_Static_assert(offsetof(struct head_wire, crc) == VOLFILE_HEADER - 4, "layout");

struct record_wire {
    uint32_t type, crc;
    uint64_t offset, length;
};
_Static_assert(sizeof(struct record_wire) == VOLFILE_RECORD, "layout");

/* ---- writing ---- */

void volfile_put_head(const struct volfile_head *h, uint8_t out[VOLFILE_HEADER])
{
    struct head_wire w = {.version = htole32(VOLFILE_VERSION), .header_bytes = htole32(VOLFILE_HEADER),
                          .size_bytes = htole64(h->size_bytes), .created_ms = htole64(h->created_ms)};
    memcpy(w.magic, magic, sizeof magic);
    snprintf(w.volume, sizeof w.volume, "%s", h->volume);
    snprintf(w.snapshot, sizeof w.snapshot, "%s", h->snapshot);
    snprintf(w.content, sizeof w.content, "%s", h->content);
    snprintf(w.base, sizeof w.base, "%s", h->base);
    snprintf(w.base_name, sizeof w.base_name, "%s", h->base_name);
    w.crc = htole32(crc32c(0, &w, offsetof(struct head_wire, crc)));
    memcpy(out, &w, sizeof w);
}

static uint32_t record_crc(const struct record_wire *w, const void *data)
{
    uint32_t crc = crc32c(0, &w->type, sizeof w->type);
    crc = crc32c(crc, &w->offset, sizeof w->offset + sizeof w->length);
    return data ? crc32c(crc, data, le64toh(w->length)) : crc;
}

void volfile_put_record(enum volfile_type type, uint64_t offset, uint64_t length, const void *data, uint8_t out[VOLFILE_RECORD])
{
    struct record_wire w = {.type = htole32(type), .offset = htole64(offset), .length = htole64(length)};
    w.crc = htole32(record_crc(&w, type == VOLFILE_DATA ? data : NULL));
    memcpy(out, &w, sizeof w);
}

/* ---- reading ---- */

struct volfile {
    struct volfile_sink sink;
    bool have_head, ended;
    uint64_t at;                 /* bytes of the file taken so far */
    uint64_t size, next;         /* of the volume; end of the last record */
    uint64_t records, bytes;
    size_t fill, want;           /* of `part`: what is being gathered */
    uint8_t *part;               /* header, or record and its payload */
};

struct volfile *volfile_new(const struct volfile_sink *sink)
{
    struct volfile *f = xcalloc(1, sizeof *f);
    f->sink = *sink;
    f->want = VOLFILE_HEADER;
    f->part = xmalloc(VOLFILE_RECORD + VOLFILE_DATA_MAX);
    return f;
}

void volfile_free(struct volfile *f)
{
    if (!f)
        return;
    free(f->part);
    free(f);
}

static int damaged(const struct volfile *f, const char *what, struct err *e)
{
    return err_set(e, E_CORRUPT, "the file is damaged near byte %" PRIu64 ": %s\nit cannot be used; export again", f->at - f->fill, what);
}

static bool text_ok(const char *s, size_t size) { return memchr(s, 0, size) != NULL; }

static bool id_ok(const char *s, bool may_be_empty)
{
    struct id id;
    return may_be_empty && !*s ? true : strlen(s) == ID_LEN && id_parse(s, &id);
}

static int take_head(struct volfile *f, struct err *e)
{
    struct head_wire w;
    struct volfile_head h = {0};
    memcpy(&w, f->part, sizeof w);
    if (memcmp(w.magic, magic, sizeof magic))
        return err_set(e, E_CORRUPT, "this is no file of cohort volume export\nto bring in a raw disk: cohort image import, or qemu-img convert to nbd+unix");
    if (le32toh(w.version) != VOLFILE_VERSION)
        return err_set(e, E_VERSION, "the file has version %u, this node reads version %u\nuse a node of the version that wrote it", le32toh(w.version),
                       VOLFILE_VERSION);
    if (le32toh(w.crc) != crc32c(0, &w, offsetof(struct head_wire, crc)) || le32toh(w.header_bytes) != VOLFILE_HEADER)
        return damaged(f, "checksum of the header", e);
    if (!text_ok(w.volume, sizeof w.volume) || !text_ok(w.snapshot, sizeof w.snapshot) || !text_ok(w.content, sizeof w.content) ||
        !text_ok(w.base, sizeof w.base) || !text_ok(w.base_name, sizeof w.base_name) || !id_ok(w.content, false) || !id_ok(w.base, true))
        return damaged(f, "a name or identity in the header", e);
    h.size_bytes = le64toh(w.size_bytes);
    h.created_ms = le64toh(w.created_ms);
    if (!h.size_bytes || h.size_bytes % 4096 || h.size_bytes > INT64_MAX)
        return damaged(f, "the volume's size", e);
    memcpy(h.volume, w.volume, sizeof h.volume);
    memcpy(h.snapshot, w.snapshot, sizeof h.snapshot);
    memcpy(h.content, w.content, sizeof h.content);
    memcpy(h.base, w.base, sizeof h.base);
    memcpy(h.base_name, w.base_name, sizeof h.base_name);
    f->size = h.size_bytes;
    f->have_head = true;
    f->want = VOLFILE_RECORD;
    return f->sink.head(f->sink.arg, &h, e);
}

/* Of a record whose payload has not come yet: how much follows? */
static int check_record(struct volfile *f, const struct record_wire *w, struct err *e)
{
    uint64_t offset = le64toh(w->offset), length = le64toh(w->length);
    uint32_t type = le32toh(w->type);
    if (type == VOLFILE_END)
        return E_OK;
    if (type != VOLFILE_DATA && type != VOLFILE_ZERO)
        return damaged(f, "unknown kind of record", e);
    if (!length || (offset | length) % 512 || offset < f->next || offset > f->size || length > f->size - offset ||
        (type == VOLFILE_DATA && length > VOLFILE_DATA_MAX))
        return damaged(f, "a record's place", e);
    if (type == VOLFILE_DATA)
        f->want = VOLFILE_RECORD + (size_t)length;
    return E_OK;
}

static int take_record(struct volfile *f, const struct record_wire *w, struct err *e)
{
    uint64_t offset = le64toh(w->offset), length = le64toh(w->length);
    uint32_t type = le32toh(w->type);
    const uint8_t *data = f->part + VOLFILE_RECORD;
    if (le32toh(w->crc) != record_crc(w, type == VOLFILE_DATA ? data : NULL))
        return damaged(f, "checksum of a record", e);
    f->want = VOLFILE_RECORD;
    if (type == VOLFILE_END) {
        if (offset != f->records || length != f->bytes)
            return damaged(f, "records are missing", e);
        f->ended = true;
        return E_OK;
    }
    f->records++;
    f->next = offset + length;
    if (type == VOLFILE_ZERO)
        return f->sink.zero(f->sink.arg, offset, length, e);
    f->bytes += length;
    return f->sink.data(f->sink.arg, offset, data, (uint32_t)length, e);
}

int volfile_feed(struct volfile *f, const void *data, size_t len, struct err *e)
{
    const uint8_t *p = data;
    while (len) {
        if (f->ended)
            return damaged(f, "something follows its end", e);
        size_t n = f->want - f->fill < len ? f->want - f->fill : len;
        memcpy(f->part + f->fill, p, n);
        f->fill += n;
        f->at += n;
        p += n;
        len -= n;
        if (f->fill < f->want)
            return E_OK;
        struct record_wire w;
        int rc = E_OK;
        bool head = !f->have_head;
        memcpy(&w, f->part, sizeof w);
        if (!head && f->fill == VOLFILE_RECORD)
            rc = check_record(f, &w, e);
        if (rc == E_OK && f->fill == f->want) {
            rc = head ? take_head(f, e) : take_record(f, &w, e);
            f->fill = 0;
        }
        if (rc)
            return rc;
    }
    return E_OK;
}

int volfile_end(const struct volfile *f, struct err *e)
{
    if (f->ended)
        return E_OK;
    return err_set(e, E_CORRUPT, "the file ends at byte %" PRIu64 ", before its end record: it is truncated\nsend the whole file, or export again", f->at);
}
