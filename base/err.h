/* Errors: one list of codes, and a message that gathers context on its way up.
 *
 * Every fallible function returns 0 or a negative code from COHORT_ERRORS. Functions that cross a module border also
 * take a `struct err *` (NULL allowed), which the failing place fills with err_set() and each caller above may
 * prefix with err_wrap(): "create volume db1: place shard 0: no disk with 1 GiB free".
 *
 * Threading: no shared state. Ownership: `struct err` is a plain value; nothing to free.
 */
#ifndef COHORT_BASE_ERR_H
#define COHORT_BASE_ERR_H

#include <stdbool.h>
#include <stddef.h>

/* X(name, value, REST/CLI code string). Values are part of the RPC protocol: never renumber, only append. */
#define COHORT_ERRORS(X)                                                                   \
    X(E_OK, 0, "ok")                                                                       \
    X(E_NOMEM, -1, "out_of_memory")                                                        \
    X(E_INVAL, -2, "invalid")         /* the caller's input is wrong; the message says what */ \
    X(E_NOTFOUND, -3, "not_found")                                                         \
    X(E_EXISTS, -4, "exists")                                                              \
    X(E_IO, -5, "io_error")           /* a device or file failed */                        \
    X(E_CORRUPT, -6, "corrupt")       /* checksum or structure damage found */             \
    X(E_PROTO, -7, "protocol_error")  /* a peer broke the protocol */                      \
    X(E_DISCONN, -8, "disconnected")  /* peer gone; the outcome of what was asked is unknown */ \
    X(E_TIMEOUT, -9, "timeout")       /* as E_DISCONN, by time */                          \
    X(E_STALE, -10, "stale_epoch")    /* refused by a fence: a newer epoch is installed */ \
    X(E_CONFLICT, -11, "conflict")    /* a transaction's precondition did not hold */      \
    X(E_UNKNOWN, -12, "unknown_outcome") /* sent, connection lost: re-read and decide */   \
    X(E_NOSPC, -13, "no_space")                                                            \
    X(E_BUSY, -14, "busy")                                                                 \
    X(E_PERM, -15, "forbidden")                                                            \
    X(E_AUTH, -16, "unauthorized")                                                         \
    X(E_UNAVAIL, -17, "unavailable")  /* cannot be done now, may pass by itself */         \
    X(E_CANCELED, -18, "canceled")                                                         \
    X(E_TOOBIG, -19, "too_large")                                                          \
    X(E_VERSION, -20, "unsupported_version")

enum cohort_error {
#define X(name, value, code) name = (value),
    COHORT_ERRORS(X)
#undef X
};

#define ERR_MSG_MAX 512

struct err {
    int code;
    char msg[ERR_MSG_MAX];
};

#define MUST_CHECK __attribute__((warn_unused_result))

/* The stable machine-readable word of a code ("not_found"); "unknown_error" for a value outside the list. */
const char *err_code_name(int code);
/* True if `code` is one of COHORT_ERRORS: what a peer sends is checked with it before it is believed. */
bool err_code_known(int code);
/* Negative errno (as from libuv or syscalls) to the nearest code of ours. */
int err_from_errno(int errno_value);

/* Sets code and message; `e` may be NULL. Returns `code`, so that `return err_set(e, E_INVAL, "...")` works. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* As err_set, with ": <strerror(errno_value)>" appended; the code comes from err_from_errno(). */
int err_sys(struct err *e, int errno_value, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Puts "prefix: " before the message gathered so far; nothing when `e` is NULL, so the caller returns its own code. */
void err_wrap(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
