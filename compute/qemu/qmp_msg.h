/* One line of QMP (qemu docs/interop/qmp-spec): what kind of message it is, with its parts checked. Pure. */
#ifndef COHORT_COMPUTE_QEMU_QMP_MSG_H
#define COHORT_COMPUTE_QEMU_QMP_MSG_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

enum qmp_kind { QMP_GREETING, QMP_RETURN, QMP_ERROR, QMP_EVENT };

struct qmp_msg {
    enum qmp_kind kind;
    uint64_t id;       /* return, error: our request's; 0 = none given */
    const char *text;  /* event: its name; error: its description. Valid as long as `root` */
    json_t *data;      /* return: the value (any JSON type); event: its data object or NULL. Borrowed from `root` */
    json_t *root;      /* owned: json_decref() */
};

/* E_PROTO with a reason for anything that is not one of the four; nothing is to be freed then. */
MUST_CHECK int qmp_msg_parse(const char *line, size_t len, struct qmp_msg *ret_msg, struct err *e);

#endif
