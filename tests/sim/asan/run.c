/* One seed: a cluster, some seconds of faults, then quiet. Everything must then complete, every replica return to the
 * in-sync set, and all be equal. See sim.h. */
#include "tests/sim/asan/sim.h"

#define SETTLE_MS 120000
#define GUEST_OPS 24

uint64_t seed;
struct stats stats;

static bool settled(void)
{
    for (int i = 0; i < n_nodes; i++)
        if (!node[i].serving || node[i].raise || node[i].disk.dead)
            return false;
    return !guest_active && !guest_stopped && db.exists && db_isr_count(&db) == db.n_replicas;
}

static void run_until_settled(const char *what)
{
    uint64_t limit = now_ms + SETTLE_MS;
    while (!settled())
        if (now_ms > limit || !run_one()) {
            struct owner_info info = {0};
            if (node[guest_node].core)
                owner_info(node[guest_node].core, &info);
            violation("no progress (%s): %d requests open, %d of %d replicas in sync, owner %s, parked: %s", what, guest_active,
                      db_isr_count(&db), db.n_replicas, owner_state_name(info.state), info.parked ? info.parked : "no");
        }
}

void run_seed(uint64_t s)
{
    seed = s;
    rng_state = s * 0x9e3779b97f4a7c15ULL + 1;
    volume_replicas = chance(700) ? 3 : chance(700) ? 2 : 1;
    n_nodes = volume_replicas == 3 ? 3 + (int)below(2) : 2 + (int)below(2);
    disk_counts_copies = chance(500);
    disk_reads_durable = chance(500);
    guest_depth = 1 + (int)below(GUEST_OPS);
    guest_reset();
    check_reset();
    world_reset();
    faults_start();
    at(50, guest_step, NULL, 0);
    uint64_t end = now_ms + 2000 + below(8000);
    while (now_ms < end && run_one())
        ;
    faults_stop();
    int depth = guest_depth;
    guest_depth = 0;
    guest_restore();
    run_until_settled("after the faults");
    guest_depth = depth;
    guest_read_all();
    guest_depth = 0;
    run_until_settled("last reads");
    check_final();
    guest_end_life();
    world_free();
    stats.seeds++;
}
