/* Limits of a volume. See qos.h. */
#include "storage/asan/engine/qos.h"

#define SEC_NS UINT64_C(1000000000)

void qos_set(struct qos *q, uint64_t iops, uint64_t bandwidth, uint64_t burst_ms)
{
    q->iops = iops;
    q->bandwidth = bandwidth;
    q->burst_ms = burst_ms;
    if (!iops)
        q->io_due_ns = 0;
    if (!bandwidth)
        q->byte_due_ns = 0;
}

static uint64_t ahead(const struct qos *q, uint64_t due_ns, uint64_t now_ns)
{
    uint64_t limit = now_ns + q->burst_ms * 1000000;
    return due_ns > limit ? due_ns - limit : 0;
}

/* Units * 1 s / rate; a request's bytes times 10^9 fit into 64 bits up to 16 GiB. */
static void charge(uint64_t *due_ns, uint64_t now_ns, uint64_t units, uint64_t rate)
{
    if (!rate)
        return;
    if (*due_ns < now_ns)
        *due_ns = now_ns;
    *due_ns += units * SEC_NS / rate;
}

uint64_t qos_take(struct qos *q, uint64_t now_ns, uint64_t bytes)
{
    uint64_t io = ahead(q, q->io_due_ns, now_ns), by = ahead(q, q->byte_due_ns, now_ns);
    if (io || by)
        return io > by ? io : by;
    charge(&q->io_due_ns, now_ns, 1, q->iops);
    charge(&q->byte_due_ns, now_ns, bytes, q->bandwidth);
    return 0;
}
