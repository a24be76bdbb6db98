/* Arguments and options of one command, by its table row. "--name VALUE", "--name=VALUE"; "--" ends the options. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "cli/cli.h"
#include "cli/size.h"

const struct opt args_global[] = {
    {"json", NULL, 0, "print the API's answer as it is"},
    {"api", "URL", 0, "https://ADDRESS:7443 instead of this node's unix socket (COHORT_API)"},
    {"ca", "FILE", 0, "the cluster's CA certificate, for --api (COHORT_CA)"},
    {"help", NULL, 0, "explain this command"},
    {0},
};

int fail_set(struct fail *f, int exit, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->message, sizeof f->message, fmt, ap);
    va_end(ap);
    f->exit = exit;
    f->hint[0] = f->code[0] = '\0';
    return exit;
}

void fail_hint(struct fail *f, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->hint, sizeof f->hint, fmt, ap);
    va_end(ap);
}

static int usage(struct cli *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int usage(struct cli *c, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fail_set(&c->fail, EXIT_USAGE, "%s", text);
    fail_hint(&c->fail, "see: cohort %s%s%s --help", c->cmd->group, *c->cmd->verb ? " " : "", c->cmd->verb);
    return EXIT_USAGE;
}

static const struct opt *find(const struct opt *opts, const char *name, size_t len)
{
    for (; opts && opts->name; opts++)
        if (strlen(opts->name) == len && memcmp(opts->name, name, len) == 0)
            return opts;
    return NULL;
}

static bool is_global(const struct opt *o) { return o >= args_global && o < args_global + sizeof args_global / sizeof *args_global; }

static int take_option(struct cli *c, const struct opt *o, const char *value)
{
    if (is_global(o)) {
        if (strcmp(o->name, "json") == 0)
            c->json = true;
        else if (strcmp(o->name, "help") == 0)
            c->help = true;
        else if (strcmp(o->name, "api") == 0)
            c->url = value;
        else
            c->ca = value;
        return EXIT_DONE;
    }
    if (!(o->flags & OPT_MANY) && args_has(c, o->name))
        return usage(c, "--%s is given twice", o->name);
    if (c->n_values == CLI_OPTS_MAX)
        return usage(c, "too many options");
    c->values[c->n_values++] = (struct cli_value){o, value};
    return EXIT_DONE;
}

/* One option at words[*i]; moves *i past a value of its own. */
static int option(struct cli *c, int n, char **words, int *i)
{
    const char *name = words[*i] + 2, *eq = strchr(name, '='), *value = eq ? eq + 1 : NULL;
    size_t len = eq ? (size_t)(eq - name) : strlen(name);
    const struct opt *o = find(c->cmd->opts, name, len);
    if (!o)
        o = find(args_global, name, len);
    if (!o)
        return usage(c, "unknown option --%.*s", (int)(len < 40 ? len : 40), name);
    if (!o->arg && value)
        return usage(c, "--%s takes no value", o->name);
    if (o->arg && !value) {
        if (*i + 1 >= n || strncmp(words[*i + 1], "--", 2) == 0)
            return usage(c, "--%s needs a value: %s", o->name, o->arg);
        value = words[++*i];
    }
    return take_option(c, o, value);
}

/* The nth word of "MODULE LEVEL" into `out`; false beyond the last. */
static bool nth_word(const char *words, int n, char *out, size_t size)
{
    for (;; n--) {
        words += strspn(words, " ");
        size_t len = strcspn(words, " ");
        if (len == 0)
            return false;
        if (n == 0) {
            snprintf(out, size, "%.*s", (int)len, words);
            return true;
        }
        words += len;
    }
}

static int check_complete(struct cli *c, int n_pos)
{
    char word[40];
    if (nth_word(c->cmd->args, n_pos, word, sizeof word) && *word != '[')
        return usage(c, "%s is missing", word);
    for (const struct opt *o = c->cmd->opts; o && o->name; o++)
        if ((o->flags & OPT_REQUIRED) && !args_has(c, o->name))
            return usage(c, "--%s %s is missing", o->name, o->arg);
    return EXIT_DONE;
}

int args_parse(struct cli *c, int n, char **words)
{
    char word[40];
    int n_pos = 0;
    bool options = true;
    for (int i = 0; i < n; i++) {
        if (options && strcmp(words[i], "--") == 0) {
            options = false;
        } else if (options && strcmp(words[i], "-h") == 0) {
            c->help = true;
        } else if (options && words[i][0] == '-' && words[i][1]) {
            int rc = words[i][1] == '-' ? option(c, n, words, &i) : usage(c, "unknown option %.40s", words[i]);
            if (rc != EXIT_DONE)
                return rc;
        } else if (!nth_word(c->cmd->args, n_pos, word, sizeof word) || n_pos == CLI_POS_MAX) {
            return usage(c, "\"%.60s\" is one argument too many", words[i]);
        } else if (!*words[i]) {
            return usage(c, "%s is empty", word);
        } else {
            c->pos[n_pos++] = words[i];
        }
    }
    return c->help ? EXIT_DONE : check_complete(c, n_pos);
}

const char *args_get_n(const struct cli *c, const char *name, int nth)
{
    for (int i = 0; i < c->n_values; i++)
        if (strcmp(c->values[i].opt->name, name) == 0 && nth-- == 0)
            return c->values[i].text;
    return NULL;
}

bool args_has(const struct cli *c, const char *name)
{
    for (int i = 0; i < c->n_values; i++)
        if (strcmp(c->values[i].opt->name, name) == 0)
            return true;
    return false;
}

int args_size(struct cli *c, const char *name, int64_t *ret_bytes)
{
    const char *text = args_get(c, name);
    if (text && !size_parse(text, ret_bytes))
        return usage(c, "--%s \"%.40s\" is no size; write 4096, 512M, 1G or 2T", name, text);
    return EXIT_DONE;
}

int args_duration(struct cli *c, const char *name, int64_t *ret_s)
{
    const char *text = args_get(c, name);
    if (text && !duration_parse(text, ret_s))
        return usage(c, "--%s \"%.40s\" is no time; write 90s, 30m, 1h or 7d", name, text);
    return EXIT_DONE;
}

int args_int(struct cli *c, const char *name, int64_t min, int64_t max, int64_t *ret)
{
    const char *text = args_get(c, name);
    int64_t v;
    if (!text)
        return EXIT_DONE;
    if (!int_parse(text, &v) || v < min || v > max)
        return usage(c, "--%s \"%.40s\" must be a number from %" PRId64 " to %" PRId64, name, text, min, max);
    *ret = v;
    return EXIT_DONE;
}

int args_word(struct cli *c, const char *name, const char *words)
{
    const char *text = args_get(c, name), *w = words;
    if (!text)
        return EXIT_DONE;
    for (size_t len; (len = strcspn(w, "|")) > 0; w += len + (w[len] == '|'))
        if (strlen(text) == len && memcmp(w, text, len) == 0)
            return EXIT_DONE;
    return usage(c, "--%s \"%.40s\" must be one of %s", name, text, words);
}
