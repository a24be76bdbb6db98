/* The host's transactions about its guests. */
#include "daemon/guest_txn.h"
#include <string.h>

static struct cdb_txn *begin(struct daemon *d, const struct cdb_machine *m)
{
    struct cdb_txn *t = cdb_txn_new();
    cdb_txn_require_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_host, d->node_id);
    cdb_txn_require_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation);
    return t;
}

static void set(struct cdb_txn *t, const struct cdb_machine *m, int col, const char *text)
{
    cdb_txn_set_str(t, CDB_T_MACHINE, m->id, col, text);
}

static void hand_over(struct cdb_txn *t, const struct cdb_view *v, const struct cdb_machine *m, const char *owner)
{
    for (size_t i = 0; i < m->disks.n; i++) {
        const char *colon = strchr(m->disks.v[i], ':');
        const struct cdb_volume *vol = colon ? cdb_volume_get(v, colon + 1) : NULL;
        if (!vol)
            continue;
        cdb_txn_require_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_epoch, vol->epoch);
        cdb_txn_set_str(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_owner, owner);
        cdb_txn_set_int(t, CDB_T_VOLUME, vol->id, CDB_VOLUME_epoch, vol->epoch + 1);
    }
}

struct cdb_txn *guest_txn_state(struct daemon *d, const struct cdb_machine *m, const char *state, const char *message)
{
    struct cdb_txn *t = begin(d, m);
    set(t, m, CDB_MACHINE_state, state);
    set(t, m, CDB_MACHINE_message, message);
    return t;
}

struct cdb_txn *guest_txn_stopped(struct daemon *d, const struct cdb_view *v, const struct cdb_machine *m, const char *message,
                                  bool failed)
{
    struct cdb_txn *t = begin(d, m);
    cdb_txn_require_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_desired, m->desired);
    set(t, m, CDB_MACHINE_desired, "stopped");
    set(t, m, CDB_MACHINE_state, failed ? "failed" : "stopped");
    set(t, m, CDB_MACHINE_message, message);
    set(t, m, CDB_MACHINE_host, "");
    set(t, m, CDB_MACHINE_migrate_to, "");
    hand_over(t, v, m, "");
    return t;
}

struct cdb_txn *guest_txn_again(struct daemon *d, const struct cdb_machine *m, const char *message)
{
    struct cdb_txn *t = begin(d, m);
    cdb_txn_set_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation + 1);
    set(t, m, CDB_MACHINE_state, "starting");
    set(t, m, CDB_MACHINE_message, message);
    set(t, m, CDB_MACHINE_migrate_to, "");
    return t;
}

struct cdb_txn *guest_txn_moved(struct daemon *d, const struct cdb_view *v, const struct cdb_machine *m, const char *to)
{
    struct cdb_txn *t = begin(d, m);
    cdb_txn_require_str(t, CDB_T_MACHINE, m->id, CDB_MACHINE_migrate_to, to);
    cdb_txn_require_str(t, CDB_T_NODE, to, CDB_NODE_state, "up");
    set(t, m, CDB_MACHINE_host, to);
    cdb_txn_set_int(t, CDB_T_MACHINE, m->id, CDB_MACHINE_generation, m->generation + 1);
    set(t, m, CDB_MACHINE_migrate_to, "");
    set(t, m, CDB_MACHINE_state, "running");
    set(t, m, CDB_MACHINE_message, "");
    hand_over(t, v, m, to);
    return t;
}

struct cdb_txn *guest_txn_not_moved(struct daemon *d, const struct cdb_machine *m, const char *message)
{
    struct cdb_txn *t = begin(d, m);
    set(t, m, CDB_MACHINE_migrate_to, "");
    set(t, m, CDB_MACHINE_message, message);
    return t;
}
