/* QMP messages. See qmp_msg.h. */
#include "compute/qemu/qmp_msg.h"

#include <string.h>

static int classify(json_t *root, struct qmp_msg *m, struct err *e)
{
    json_t *v, *id = json_object_get(root, "id");
    if (id && (!json_is_integer(id) || json_integer_value(id) <= 0))
        return err_set(e, E_PROTO, "QMP: an id that is not ours");
    m->id = id ? (uint64_t)json_integer_value(id) : 0;
    if ((v = json_object_get(root, "QMP"))) {
        m->kind = QMP_GREETING;
        return json_is_object(v) ? E_OK : err_set(e, E_PROTO, "QMP: malformed greeting");
    }
    if ((v = json_object_get(root, "return"))) {
        m->kind = QMP_RETURN;
        m->data = v;
        return E_OK;
    }
    if ((v = json_object_get(root, "error"))) {
        m->kind = QMP_ERROR;
        m->text = json_string_value(json_object_get(v, "desc"));
        return m->text ? E_OK : err_set(e, E_PROTO, "QMP: error without description");
    }
    if ((v = json_object_get(root, "event"))) {
        m->kind = QMP_EVENT;
        m->text = json_string_value(v);
        m->data = json_object_get(root, "data");
        if (!m->text || (m->data && !json_is_object(m->data)))
            return err_set(e, E_PROTO, "QMP: malformed event");
        return E_OK;
    }
    return err_set(e, E_PROTO, "QMP: neither greeting, return, error nor event");
}

int qmp_msg_parse(const char *line, size_t len, struct qmp_msg *ret_msg, struct err *e)
{
    json_error_t je;
    json_t *root = json_loadb(line, len, 0, &je);
    if (!root)
        return err_set(e, E_PROTO, "QMP: not JSON: %s", je.text);
    struct qmp_msg m = {.root = root};
    int rc = json_is_object(root) ? classify(root, &m, e) : err_set(e, E_PROTO, "QMP: not a JSON object");
    if (rc == E_OK)
        *ret_msg = m;
    else
        json_decref(root);
    return rc;
}
