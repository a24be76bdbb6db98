/* Fault points: parsing and hit counting. See fault.h for the specification's grammar. */
#include "base/fault.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "base/buf.h"

bool fault_any;

enum action { ACT_FAIL, ACT_EXIT, ACT_DELAY };

struct armed {
    char *name;
    enum action action;
    unsigned delay_ms;
    uint64_t nth, seen; /* hits of this name since it was armed */
    bool onward;
    struct armed *next;
};
struct hits {
    char *name;
    uint64_t n;
    struct hits *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct armed *armed;
static struct hits *hits;

static struct hits *hits_of(const char *name, bool create)
{
    struct hits *h;
    for (h = hits; h; h = h->next)
        if (strcmp(h->name, name) == 0)
            return h;
    if (!create)
        return NULL;
    h = xcalloc(1, sizeof *h);
    h->name = xstrdup(name);
    h->next = hits;
    hits = h;
    return h;
}

bool fault_hit_slow(const char *name)
{
    bool fail = false;
    unsigned delay_ms = 0;
    pthread_mutex_lock(&lock);
    hits_of(name, true)->n++;
    for (struct armed *a = armed; a; a = a->next) {
        if (strcmp(a->name, name) != 0)
            continue;
        a->seen++;
        if (a->seen != a->nth && !(a->onward && a->seen > a->nth))
            continue;
        switch (a->action) {
        case ACT_FAIL: fail = true; break;
        case ACT_EXIT: _exit(99);
        case ACT_DELAY: delay_ms += a->delay_ms; break;
        }
    }
    pthread_mutex_unlock(&lock);
    if (delay_ms) {
        struct timespec t = {delay_ms / 1000, (long)(delay_ms % 1000) * 1000000};
        nanosleep(&t, NULL);
    }
    return fail;
}

/* Digits at *p into *ret, moving *p on. False if there is none or too many. */
static bool number(const char **p, uint64_t max, uint64_t *ret)
{
    uint64_t v = 0;
    const char *s = *p;
    while (*s >= '0' && *s <= '9') {
        v = v * 10 + (uint64_t)(*s++ - '0');
        if (v > max)
            return false;
    }
    if (s == *p)
        return false;
    *p = s;
    *ret = v;
    return true;
}

/* One NAME=ACTION[:ARG][@N][*]; returns NULL if it is not. */
static struct armed *parse_one(const char *part)
{
    const char *eq = strchr(part, '=');
    if (!eq || eq == part)
        return NULL;
    struct armed a = {.nth = 1};
    const char *p = eq + 1;
    uint64_t v;
    if (strncmp(p, "fail", 4) == 0) {
        a.action = ACT_FAIL;
        p += 4;
    } else if (strncmp(p, "exit", 4) == 0) {
        a.action = ACT_EXIT;
        p += 4;
    } else if (strncmp(p, "delay:", 6) == 0) {
        a.action = ACT_DELAY;
        p += 6;
        if (!number(&p, 3600000, &v))
            return NULL;
        a.delay_ms = (unsigned)v;
    } else {
        return NULL;
    }
    if (*p == '@') {
        p++;
        if (!number(&p, UINT32_MAX, &a.nth) || a.nth == 0)
            return NULL;
    }
    if (*p == '*') {
        a.onward = true;
        p++;
    }
    if (*p)
        return NULL;
    a.name = strndup(part, (size_t)(eq - part));
    struct armed *ret = xmalloc(sizeof *ret);
    *ret = a;
    return ret;
}

int fault_arm(const char *spec, struct err *e)
{
    char *copy = xstrdup(spec), *save = NULL;
    struct armed *first = NULL, **tail = &first;
    int rc = E_OK;
    for (char *part = strtok_r(copy, ",", &save); part; part = strtok_r(NULL, ",", &save)) {
        struct armed *a = parse_one(part);
        if (!a) {
            rc = err_set(e, E_INVAL, "fault \"%s\": expected NAME=fail|exit|delay:MS with optional @N and *", part);
            break;
        }
        *tail = a;
        tail = &a->next;
    }
    if (rc == E_OK && first) {
        pthread_mutex_lock(&lock);
        *tail = armed;
        armed = first;
        __atomic_store_n(&fault_any, true, __ATOMIC_RELAXED);
        pthread_mutex_unlock(&lock);
    } else {
        while (first) {
            struct armed *next = first->next;
            free(first->name);
            free(first);
            first = next;
        }
    }
    free(copy);
    return rc;
}

void fault_disarm_all(void)
{
    pthread_mutex_lock(&lock);
    __atomic_store_n(&fault_any, false, __ATOMIC_RELAXED);
    while (armed) {
        struct armed *next = armed->next;
        free(armed->name);
        free(armed);
        armed = next;
    }
    while (hits) {
        struct hits *next = hits->next;
        free(hits->name);
        free(hits);
        hits = next;
    }
    pthread_mutex_unlock(&lock);
}

uint64_t fault_hits(const char *name)
{
    pthread_mutex_lock(&lock);
    struct hits *h = hits_of(name, false);
    uint64_t n = h ? h->n : 0;
    pthread_mutex_unlock(&lock);
    return n;
}

__attribute__((constructor)) static void arm_from_environment(void)
{
    const char *spec = getenv("COHORT_FAULTS");
    struct err e;
    if (spec && fault_arm(spec, &e) != E_OK) {
        fprintf(stderr, "COHORT_FAULTS: %s\n", e.msg);
        _exit(2);
    }
}
