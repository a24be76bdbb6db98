/* Errors: names of codes, errno mapping, message gathering. See err.h. */
#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *err_code_name(int code)
{
    switch (code) {
#define X(name, value, text) \
    case value: return text;
        COHORT_ERRORS(X)
#undef X
    }
    return "unknown_error";
}

bool err_code_known(int code)
{
    switch (code) {
#define X(name, value, text) case value:
        COHORT_ERRORS(X)
#undef X
        return true;
    }
    return false;
}

int err_from_errno(int errno_value)
{
    switch (errno_value < 0 ? -errno_value : errno_value) {
    case 0: return E_OK;
    case ENOMEM: return E_NOMEM;
    case EINVAL: case ENAMETOOLONG: case ENOTDIR: case EISDIR: case EBADF: return E_INVAL;
    case ENOENT: case ESRCH: case ENODEV: case ENXIO: return E_NOTFOUND;
    case EEXIST: return E_EXISTS;
    case ENOSPC: case EDQUOT: return E_NOSPC;
    case EBUSY: case ETXTBSY: case EADDRINUSE: return E_BUSY;
    case EPERM: case EACCES: case EROFS: return E_PERM;
    case ECONNREFUSED: case ENETUNREACH: case EHOSTUNREACH: case EAGAIN: case EMFILE: case ENFILE: return E_UNAVAIL;
    case ECONNRESET: case ECONNABORTED: case EPIPE: case ENOTCONN: case -4095 /* UV_EOF */: case 4095: return E_DISCONN;
    case ETIMEDOUT: case ETIME: return E_TIMEOUT;
    case ECANCELED: return E_CANCELED;
    case E2BIG: case EFBIG: case EMSGSIZE: return E_TOOBIG;
    case EPROTO: return E_PROTO;
    default: return E_IO;
    }
}

int err_set(struct err *e, int code, const char *fmt, ...)
{
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        e->code = code;
        vsnprintf(e->msg, sizeof e->msg, fmt, ap);
        va_end(ap);
    }
    return code;
}

int err_sys(struct err *e, int errno_value, const char *fmt, ...)
{
    int code = err_from_errno(errno_value);
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        e->code = code;
        int n = vsnprintf(e->msg, sizeof e->msg, fmt, ap);
        va_end(ap);
        if (n >= 0 && (size_t)n < sizeof e->msg) {
            char text[128];
            /* GNU strerror_r: thread-safe, returns its own or a static text */
            const char *s = strerror_r(errno_value < 0 ? -errno_value : errno_value, text, sizeof text);
            snprintf(e->msg + n, sizeof e->msg - (size_t)n, ": %s", s);
        }
    }
    return code;
}

void err_wrap(struct err *e, const char *fmt, ...)
{
    if (!e)
        return;
    char old[ERR_MSG_MAX];
    memcpy(old, e->msg, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof e->msg)
        snprintf(e->msg + n, sizeof e->msg - (size_t)n, ": %s", old);
}
