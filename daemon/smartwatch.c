/* Running smartctl. See smartwatch.h.
 *
 *   WAITING ── timer ──> for each drive: smartctl started ── ends, or is killed after SMART_LIMIT_MS ──> next drive
 *      ^                                                                                                 │ none left
 *      └──────────────────────── rows brought up to date, timer set ─────────────────────────────────────┘ */
#include "daemon/smartwatch.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/proc.h"
#include "daemon/smart.h"

LOG_MODULE("smart");

#define FIRST_MS 15000
#define EVERY_MS 3600000
#define DRIVES_MAX 64
#define OUTPUT_MAX (1u << 20)

struct drive {
    char name[32];
    struct smart smart;
};

struct smartwatch {
    struct daemon *d;
    uv_timer_t timer;       /* the next round; while a drive is being asked: its limit */
    uv_poll_t poll;         /* on proc.pidfd, while polling */
    bool polling, closing;
    int handles;
    struct proc proc;
    char *output;           /* where smartctl writes */
    int n, now;
    struct drive drive[DRIVES_MAX];
};

static void next_drive(struct smartwatch *w);
static void on_timer(uv_timer_t *t);

/* ---- rows ---- */

static void on_txn(void *arg, int status, const struct err *e)
{
    (void)arg;
    if (status && status != E_CONFLICT)
        log_warn("health of drives: %s", e->msg);
}

static void merge_path(const struct smartwatch *w, const char *path, struct smart *into, unsigned char *done)
{
    char names[SMART_DEVICES_MAX][32];
    int n = smart_devices("/sys", path, names);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < w->n; k++)
            if (!strcmp(w->drive[k].name, names[i]) && !done[k]) {
                smart_merge(into, &w->drive[k].smart);
                done[k] = 1;
            }
}

static bool put_disk(const struct smartwatch *w, struct cdb_txn *t, const struct cdb_disk *row)
{
    struct smart s = {0};
    unsigned char done[DRIVES_MAX] = {0};
    char object[128];
    merge_path(w, row->capacity_path, &s, done);
    merge_path(w, row->fast_path, &s, done);
    const char *state = smart_state_name(s.state);
    if (!strcmp(row->smart, s.text) && !strcmp(row->smart_state, state))
        return false;
    cdb_txn_require_exists(t, CDB_T_DISK, row->id);
    cdb_txn_set_str(t, CDB_T_DISK, row->id, CDB_DISK_smart, s.text);
    cdb_txn_set_str(t, CDB_T_DISK, row->id, CDB_DISK_smart_state, state);
    if (s.state >= SMART_WARNING && strcmp(row->smart_state, state)) {
        snprintf(object, sizeof object, "disk %s", row->name);
        log_warn("%s: %s", object, s.text);
        cdb_txn_event(t, clock_wall_ms(), s.state == SMART_FAILING ? "alarm" : "warning", object, s.text, w->d->node_id);
    }
    return true;
}

static void put_rows(struct smartwatch *w)
{
    const struct cdb_view *v = cdb_link_view(w->d->link);
    struct cdb_txn *t = cdb_txn_new();
    bool any = false;
    for (size_t i = 0; v && i < cdb_disk_count(v); i++) {
        const struct cdb_disk *row = cdb_disk_at(v, i);
        if (!strcmp(row->node, w->d->node_id) && put_disk(w, t, row))
            any = true;
    }
    if (any)
        cdb_txn_commit(w->d->link, t, "health of drives", on_txn, w);
    else
        cdb_txn_free(t);
}

/* ---- a round ---- */

static void note_drives(struct smartwatch *w, const char *path)
{
    char names[SMART_DEVICES_MAX][32];
    int n = smart_devices("/sys", path, names);
    for (int i = 0; i < n; i++) {
        bool known = false;
        for (int k = 0; k < w->n; k++)
            known = known || !strcmp(w->drive[k].name, names[i]);
        if (!known && w->n < DRIVES_MAX) {
            w->drive[w->n] = (struct drive){0};
            memcpy(w->drive[w->n++].name, names[i], sizeof names[i]);
        }
    }
}

static void round_begin(struct smartwatch *w)
{
    const struct cdb_view *v = cdb_link_view(w->d->link);
    w->n = w->now = 0;
    for (size_t i = 0; v && i < cdb_disk_count(v); i++) {
        const struct cdb_disk *row = cdb_disk_at(v, i);
        if (strcmp(row->node, w->d->node_id))
            continue;
        note_drives(w, row->capacity_path);
        note_drives(w, row->fast_path);
    }
    next_drive(w);
}

static void take_output(struct smartwatch *w)
{
    struct drive *dr = &w->drive[w->now];
    struct err e;
    char *text;
    size_t len;
    if (file_read(w->output, OUTPUT_MAX, &text, &len, &e) == 0) {
        if (smart_parse(text, len, &dr->smart, &e))
            snprintf(dr->smart.text, sizeof dr->smart.text, "no SMART: %.200s", e.msg);
        free(text);
    } else {
        snprintf(dr->smart.text, sizeof dr->smart.text, "no SMART: %.200s", e.msg);
    }
    unlink(w->output);
}

static void smart_free(struct smartwatch *w)
{
    if (w->handles)
        return;
    free(w->output);
    free(w);
}

static void poll_closed(uv_handle_t *h)
{
    struct smartwatch *w = h->data;
    proc_close(&w->proc); /* reaps; the descriptor must outlive libuv's use of it */
    w->polling = false;
    w->handles--;
    if (w->closing) {
        smart_free(w);
        return;
    }
    take_output(w);
    w->now++;
    next_drive(w);
}

static void on_end(uv_poll_t *p, int status, int events)
{
    (void)status, (void)events;
    uv_timer_stop(&((struct smartwatch *)p->data)->timer);
    uv_close((uv_handle_t *)p, poll_closed);
}

static int ask(struct smartwatch *w, struct err *e)
{
    char device[40];
    snprintf(device, sizeof device, "/dev/%s", w->drive[w->now].name);
    const char *argv[] = {"smartctl", "--json=c", "--all", device, NULL};
    struct proc_spec spec = {.argv = argv, .log_file = w->output};
    unlink(w->output);
    int rc = proc_start(&spec, &w->proc, e);
    if (rc)
        return rc;
    if (w->proc.pidfd < 0 || uv_poll_init(w->d->loop, &w->poll, w->proc.pidfd)) {
        proc_signal(&w->proc, SIGKILL);
        proc_close(&w->proc);
        return err_set(e, E_UNAVAIL, "smartctl cannot be watched");
    }
    w->poll.data = w;
    w->polling = true;
    w->handles++;
    uv_poll_start(&w->poll, UV_READABLE, on_end);
    uv_timer_start(&w->timer, on_timer, SMART_LIMIT_MS, 0);
    return 0;
}

static void next_drive(struct smartwatch *w)
{
    struct err e;
    if (w->now < w->n) {
        if (ask(w, &e) == 0)
            return;
        log_info("health of drives is not read: %s", e.msg);
        uv_timer_start(&w->timer, on_timer, EVERY_MS, 0);
        return;
    }
    put_rows(w);
    uv_timer_start(&w->timer, on_timer, EVERY_MS, 0);
}

static void on_timer(uv_timer_t *t)
{
    struct smartwatch *w = t->data;
    if (w->polling) {
        log_warn("smartctl /dev/%s: no answer in %d s: killed", w->drive[w->now].name, SMART_LIMIT_MS / 1000);
        proc_signal(&w->proc, SIGKILL); /* its end comes by the poll, whenever the device lets go of it */
        return;
    }
    round_begin(w);
}

/* ---- life ---- */

struct smartwatch *smartwatch_open(struct daemon *d)
{
    struct smartwatch *w = xcalloc(1, sizeof *w);
    w->d = d;
    w->output = xasprintf("%s/smartctl.json", d->conf.run_dir);
    uv_timer_init(d->loop, &w->timer);
    w->timer.data = w;
    w->handles = 1;
    uv_timer_start(&w->timer, on_timer, FIRST_MS, 0);
    return w;
}

static void timer_closed(uv_handle_t *h)
{
    struct smartwatch *w = h->data;
    w->handles--;
    smart_free(w);
}

void smartwatch_close(struct smartwatch *w)
{
    if (!w)
        return;
    w->closing = true;
    cdb_txn_cancel(w->d->link, w);
    uv_close((uv_handle_t *)&w->timer, timer_closed);
    if (w->polling && !uv_is_closing((uv_handle_t *)&w->poll)) {
        proc_signal(&w->proc, SIGKILL);
        uv_close((uv_handle_t *)&w->poll, poll_closed);
    }
}
