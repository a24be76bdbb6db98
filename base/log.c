/* Log: formatting, levels per module and rate limiting. See log.h.
 *
 * Rate limit: a token bucket per message (the address of its format), so that one noisy place cannot hide the rest.
 * Debug lines are not limited: who switches them on wants them all. */
#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"

#define LINE_MAX_BYTES 2048
#define LIMIT_SLOTS 256
#define LIMIT_BURST 50       /* lines at once */
#define LIMIT_PER_SECOND 10

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct log_module *modules;
static int default_level = LOG_LVL_INFO;

static struct limit {
    const char *fmt;
    uint64_t refilled_ms;
    unsigned tokens, suppressed;
} limits[LIMIT_SLOTS];

static const char *const level_text[] = {"ERR ", "WARN", "INFO", "DBG "};

void log_register(struct log_module *m)
{
    pthread_mutex_lock(&lock);
    if (!m->registered) {
        m->registered = true;
        m->next = modules;
        modules = m;
        __atomic_store_n(&m->level, default_level, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&lock);
}

bool log_set_level(const char *name, enum log_level level)
{
    bool all = strcmp(name, "*") == 0, found = all;
    pthread_mutex_lock(&lock);
    if (all)
        default_level = level;
    for (struct log_module *m = modules; m; m = m->next)
        if (all || strcmp(m->name, name) == 0) {
            __atomic_store_n(&m->level, (int)level, __ATOMIC_RELAXED);
            found = true;
        }
    pthread_mutex_unlock(&lock);
    return found;
}

bool log_level_parse(const char *text, enum log_level *ret_level)
{
    static const char *const names[] = {"err", "warn", "info", "dbg"};
    for (int i = 0; i < 4; i++)
        if (strcmp(text, names[i]) == 0) {
            *ret_level = (enum log_level)i;
            return true;
        }
    return false;
}

/* True if the line may go out; *ret_suppressed is how many like it were held back before. */
static bool limit_pass(const char *fmt, unsigned *ret_suppressed)
{
    uint64_t now = clock_boot_ms();
    bool pass = false;
    *ret_suppressed = 0;
    pthread_mutex_lock(&lock);
    struct limit *l = &limits[((uintptr_t)fmt >> 3) % LIMIT_SLOTS];
    if (l->fmt != fmt)
        *l = (struct limit){.fmt = fmt, .refilled_ms = now, .tokens = LIMIT_BURST};
    uint64_t add = (now - l->refilled_ms) * LIMIT_PER_SECOND / 1000;
    if (add) {
        l->tokens = add > LIMIT_BURST - l->tokens ? LIMIT_BURST : l->tokens + (unsigned)add;
        l->refilled_ms = now;
    }
    if (l->tokens) {
        l->tokens--;
        *ret_suppressed = l->suppressed;
        l->suppressed = 0;
        pass = true;
    } else {
        l->suppressed++;
    }
    pthread_mutex_unlock(&lock);
    return pass;
}

static void write_all(const char *p, size_t n)
{
    while (n > 0) {
        ssize_t w = write(STDERR_FILENO, p, n);
        if (w <= 0)
            return; /* nobody to tell */
        p += w;
        n -= (size_t)w;
    }
}

void log_at(struct log_module *m, enum log_level level, const char *fmt, ...)
{
    if ((int)level > __atomic_load_n(&m->level, __ATOMIC_RELAXED))
        return;
    unsigned suppressed = 0;
    if (level != LOG_LVL_DBG && !limit_pass(fmt, &suppressed))
        return;

    char line[LINE_MAX_BYTES], when[32];
    int n = snprintf(line, sizeof line, "%s %s %s: ", clock_wall_format(clock_wall_ms(), when), level_text[level], m->name);
    size_t start = (size_t)n, len = start;
    va_list ap;
    va_start(ap, fmt);
    n = vsnprintf(line + len, sizeof line - len, fmt, ap);
    va_end(ap);
    if (n > 0)
        len = len + (size_t)n < sizeof line ? len + (size_t)n : sizeof line - 1;
    if (suppressed && len < sizeof line) {
        n = snprintf(line + len, sizeof line - len, " (%u like this were not logged)", suppressed);
        len = len + (size_t)n < sizeof line ? len + (size_t)n : sizeof line - 1;
    }
    /* One event is one line, whatever a guest, peer or user put into the text. */
    for (size_t i = start; i < len; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = ' ';
    line[len++] = '\n'; /* len < sizeof line: takes the place of the NUL */
    write_all(line, len);
}
