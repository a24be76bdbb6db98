/* Database remotes from the Node table. */
#include "daemon/remotes.h"
#include "base/buf.h"

char *remotes_of(const struct cdb_view *v)
{
    struct buf b;
    buf_init(&b);
    for (size_t i = 0; i < cdb_node_count(v); i++) {
        const struct cdb_node *n = cdb_node_at(v, i);
        if (n->voter && n->addresses.n)
            buf_printf(&b, "%sssl:%s:%d", b.len ? "," : "", n->addresses.v[0], DB_CLIENT_PORT);
    }
    return buf_take(&b);
}
