/* Invariants (numbers: storage/asan/README.md), checked when something happens that could break them and, over the whole
 * cluster, every few dozen milliseconds. Reads and completions are judged in guest.c. See sim.h. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/sim/asan/sim.h"

#define EPOCHS 512
#define SEQS 8192

static struct { int opened_by; } epochs[EPOCHS];
static uint64_t fenced[NODES];
static struct { uint64_t offset, hash; } sent[SEQS]; /* by hash of (epoch, seq); hash 0 = free */

bool trace_on;

void trace(const char *fmt, ...)
{
    va_list ap;
    printf("%8" PRIu64 " ", now_ms);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

_Noreturn void violation(const char *fmt, ...)
{
    va_list ap;
    fflush(stdout);
    fprintf(stderr, "seed %" PRIu64 " at %" PRIu64 " ms: ", seed, now_ms);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

void check_reset(void)
{
    memset(epochs, 0, sizeof epochs);
    memset(sent, 0, sizeof sent);
    memset(fenced, 0, sizeof fenced);
}

/* An epoch has one owner core, ever. */
void check_core_opened(int n, uint64_t epoch)
{
    if (epoch >= EPOCHS)
        violation("model: too many epochs");
    if (epochs[epoch].opened_by)
        violation("epoch %" PRIu64 " is opened by node %d, and was by node %d", epoch, n, epochs[epoch].opened_by - 1);
    epochs[epoch].opened_by = n + 1;
    stats.epochs++;
}

/* Rule 3: an epoch that a replica was said to obey is not forgotten. */
void check_fenced(int disk, uint64_t epoch)
{
    if (epoch > fenced[disk])
        fenced[disk] = epoch;
}

void check_opened(int disk, uint64_t epoch)
{
    if (epoch && epoch < fenced[disk])
        violation("disk %d obeyed epoch %" PRIu64 " and has gone back to %" PRIu64, disk, fenced[disk], epoch);
    fenced[disk] = epoch;
}

static uint64_t content_hash(const struct repl_msg *m)
{
    uint64_t h = m->offset << 32 ^ m->length;
    for (uint32_t k = 0; k < m->length && !m->zero; k += 512) {
        uint32_t id;
        memcpy(&id, m->data->data + m->data_off + k, sizeof id);
        h = (h ^ id) * 0x9e3779b97f4a7c15ULL;
    }
    return h | 1;
}

/* (epoch, seq) names one write, whoever gets it and however often it is sent. */
void check_write_sent(const struct repl_msg *m, int from)
{
    static uint64_t key[SEQS];
    uint64_t k = m->epoch << 40 | m->seq, at = k * 0x9e3779b97f4a7c15ULL >> 51, hash = content_hash(m);
    for (unsigned tries = 0; sent[at].hash && key[at] != k; at = (at + 1) % SEQS)
        if (++tries == SEQS)
            return; /* a long run: the oldest ones are enough */
    if (sent[at].hash && sent[at].hash != hash)
        violation("node %d sends two different writes as %" PRIu64 ".%" PRIu64, from, m->epoch, m->seq);
    key[at] = k;
    sent[at].hash = hash;
}

/* ---- the in-sync set ---- */

/* A replica that enters equals the others durably, but for writes under way. */
static void check_added(int disk)
{
    stats.adds++;
    if (node[disk].raise || node[disk].disk.dead) /* lost meanwhile: its incarnation will say so before it serves */
        return;
    for (int d = 0; d < n_nodes; d++) {
        if (d == disk || !db_in_sync(&db, d) || node[d].raise || node[d].disk.dead)
            continue;
        for (uint32_t k = 0; k < SECTORS; k++) {
            uint32_t x = node[disk].disk.dur.id[k], y = node[d].disk.mem.id[k];
            if (x != y && !guest_pending(k, x, y) && !node[d].disk.flipped[k] && !node[disk].disk.flipped[k])
                violation("disk %d is added, but sector %u is %u there and %u on disk %d", disk, k, x, y, d);
        }
        return;
    }
}

void check_isr_change(const struct db *old)
{
    if (db_isr_count(&db) < owner_min_isr(volume_replicas) && db_isr_count(&db) < db_isr_count(old))
        violation("the in-sync set is made smaller than the minimum");
    for (int d = 0; d < n_nodes; d++)
        if (db_in_sync(&db, d) && !db_in_sync(old, d))
            check_added(d);
}

/* ---- the whole cluster ---- */

/* What was acknowledged is durable on every in-sync disk, not only on the day it was acknowledged. */
static void check_durable(int d)
{
    uint32_t id;
    for (uint32_t k = 0; k < SECTORS; k++)
        if (guest_acked(k, &id) && node[d].disk.dur.id[k] != id)
            violation("sector %u: write %u was acknowledged, in-sync disk %d holds %u", k, id, d, node[d].disk.dur.id[k]);
}

/* Rule 5, between an in-sync disk and any other that will not be declared empty: the other may come back at any time. */
static void check_versions(int a, int b)
{
    const struct disk_state *x = &node[a].disk.mem, *y = &node[b].disk.mem;
    for (uint32_t c = 0; c < CHUNKS; c++) {
        uint32_t k = c * CHUNK_SECTORS, end = k + CHUNK_SECTORS;
        if (store_version_cmp(x->version[c], y->version[c]) || !memcmp(x->id + k, y->id + k, CHUNK_SECTORS * sizeof x->id[0]))
            continue;
        while (k < end && (x->id[k] == y->id[k] || node[a].disk.flipped[k] || node[b].disk.flipped[k]))
            k++; /* what is damaged is never read as it is */
        if (k == end)
            continue;
        violation("chunk %u has version %" PRIu64 ".%" PRIu64 " on disks %d and %d, and different bytes", c,
                  x->version[c].epoch, x->version[c].seq, a, b);
    }
}

void check_state(void)
{
    stats.checks++;
    if (!db.exists)
        return;
    bool serving = newest_core_serving();
    for (int a = 0; a < n_nodes; a++) {
        if (!db_in_sync(&db, a) || node[a].raise || node[a].disk.dead)
            continue;
        check_durable(a);
        for (int b = 0; b < n_nodes && serving; b++)
            if (b != a && !node[b].raise && !node[b].disk.dead)
                check_versions(a, b);
    }
}

void check_final(void)
{
    int first = -1;
    for (int d = 0; d < n_nodes; d++) {
        if (!db_in_sync(&db, d))
            continue;
        if (first < 0)
            first = d;
        for (uint32_t k = 0; k < SECTORS; k++)
            if (node[d].disk.mem.id[k] != node[first].disk.mem.id[k] && !node[d].disk.flipped[k] && !node[first].disk.flipped[k])
                violation("in the end sector %u differs on disks %d and %d", k, first, d);
        for (uint32_t c = 0; c < CHUNKS; c++)
            if (store_version_cmp(node[d].disk.mem.version[c], node[first].disk.mem.version[c]))
                violation("in the end chunk %u has different versions on disks %d and %d", c, first, d);
    }
}
