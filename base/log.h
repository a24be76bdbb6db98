/* Log: one line per event to stderr (journald takes it from there), level per module, rate-limited.
 *
 * LOG_MODULE("asv"); at the top of a .c file registers that file's module name; several files may share one name.
 * Line: "2026-11-21T01:02:03.123Z WARN asv: message". Thread-safe. Levels can be changed at run time.
 */
#ifndef COHORT_BASE_LOG_H
#define COHORT_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_LVL_ERR, LOG_LVL_WARN, LOG_LVL_INFO, LOG_LVL_DBG };

struct log_module {
    const char *name;
    int level;        /* enum log_level; accessed atomically */
    struct log_module *next;
    bool registered;
};

#define LOG_MODULE(NAME)                                           \
    static struct log_module log_this_module = {NAME, LOG_LVL_INFO, 0, false}; \
    __attribute__((constructor)) static void log_register_this(void) { log_register(&log_this_module); }

#define log_err(...) log_at(&log_this_module, LOG_LVL_ERR, __VA_ARGS__)
#define log_warn(...) log_at(&log_this_module, LOG_LVL_WARN, __VA_ARGS__)
#define log_info(...) log_at(&log_this_module, LOG_LVL_INFO, __VA_ARGS__)
#define log_dbg(...) log_at(&log_this_module, LOG_LVL_DBG, __VA_ARGS__)

void log_register(struct log_module *m);
void log_at(struct log_module *m, enum log_level level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Sets the level of module `name` ("*" = all, also those registered later). False if no such module. */
bool log_set_level(const char *name, enum log_level level);
/* "err" "warn" "info" "dbg"; false if unknown. */
bool log_level_parse(const char *text, enum log_level *ret_level);

#endif
