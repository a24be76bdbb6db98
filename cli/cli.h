/* The command line's frame: commands as table rows, their arguments, and how a command reports failure.
 *
 * A command is a `struct cmd`: main.c finds it, args.c fills in its arguments and options, its run() talks to the API and
 * prints. Ownership: everything in a `struct cli` lives until the process ends its one command (cli_close). One thread. */
#ifndef COHORT_CLI_CLI_H
#define COHORT_CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Exit status; `cohort help` documents it for people. */
enum cli_exit {
    EXIT_DONE = 0,
    EXIT_REFUSED = 1,     /* the daemon said no, or the work failed */
    EXIT_USAGE = 2,
    EXIT_UNREACHABLE = 3, /* no daemon answered: nothing was changed, unless the message says otherwise */
    EXIT_TIMEOUT = 4,     /* not done in time; it may still happen */
};

/* Why a command failed. */
struct fail {
    int exit;
    char code[40]; /* the API's word ("not_found"), or "" */
    char message[600], hint[600];
};

/* Sets message and exit status, clears hint and code; returns `exit`. */
int fail_set(struct fail *f, int exit, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void fail_hint(struct fail *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

struct opt {
    const char *name; /* without "--" */
    const char *arg;  /* its value's word for help ("SIZE"); NULL: a switch */
    unsigned flags;
    const char *help;
};
#define OPT_REQUIRED 1u
#define OPT_MANY 2u

struct cli;
struct field;

#define CLI_POS_MAX 2
#define CLI_OPTS_MAX 40

struct cmd {
    const char *group, *verb;
    const char *args;          /* "NETWORK" or "MODULE LEVEL": one word per argument; "" none. In brackets: may be left out, the last one */
    int (*run)(struct cli *c); /* exit status; not EXIT_DONE: c->fail says why */
    const struct opt *opts;    /* ends with a NULL name; may be NULL */
    const char *help;          /* one line */
    const char *more;          /* examples and details for `cohort CMD --help`; may be NULL */
    /* for the generic run functions of generic.c */
    const char *path;          /* "/vms" */
    const struct field *fields;
};

struct cli_group {
    const char *name, *help;
    const struct cmd *cmds; /* ends with a NULL verb */
};
extern const struct cli_group cli_groups[]; /* ends with a NULL name */

struct cli_value {
    const struct opt *opt;
    const char *text; /* NULL for a switch */
};

struct api;
struct cli {
    const struct cmd *cmd;
    const char *pos[CLI_POS_MAX];
    struct cli_value values[CLI_OPTS_MAX];
    int n_values;
    bool json, help;
    const char *url, *ca; /* --api, --ca; NULL: from the environment */
    struct api *api;      /* opened by api_of() */
    struct fail fail;
};

/* ---- args.c ---- */

/* Fills `c` (cmd set) from the words after group and verb. EXIT_USAGE names what is wrong. Words are borrowed. */
int args_parse(struct cli *c, int n, char **words);
/* Options that every command takes. */
extern const struct opt args_global[];
/* Value of option `name`, NULL if it was not given; the nth (from 0) of a repeatable one. */
const char *args_get_n(const struct cli *c, const char *name, int nth);
static inline const char *args_get(const struct cli *c, const char *name) { return args_get_n(c, name, 0); }
bool args_has(const struct cli *c, const char *name);
/* Typed values: 0, or EXIT_USAGE with the option and the bad value named. Absent: *ret stays. */
int args_size(struct cli *c, const char *name, int64_t *ret_bytes);
int args_duration(struct cli *c, const char *name, int64_t *ret_s);
int args_int(struct cli *c, const char *name, int64_t min, int64_t max, int64_t *ret);
/* Value must be one of "a|b|c". */
int args_word(struct cli *c, const char *name, const char *words);

/* ---- help.c ---- */

void help_all(void);
void help_group(const struct cli_group *g);
void help_cmd(const struct cmd *cmd);

#endif
