/* A vhost-user front end and guest that do anything: the input is a program of small steps that write guest memory,
 * fill descriptors, offer heads, kick, send raw messages with descriptors, reconnect, park the volume. The server must
 * not crash, and everything must be closed at the end. */
#include <assert.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "base/log.h"
#include "tests/lib/front_peer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *p;
    size_t left;
};

static uint8_t u8(struct input *in)
{
    if (!in->left)
        return 0;
    in->left--;
    return *in->p++;
}

static uint16_t u16(struct input *in)
{
    uint16_t hi = u8(in);
    return (uint16_t)(hi << 8 | u8(in));
}

static uint32_t u32(struct input *in)
{
    uint32_t hi = u16(in);
    return hi << 16 | u16(in);
}

static size_t bytes(struct input *in, void *out, size_t n)
{
    n = n < in->left ? n : in->left;
    memcpy(out, in->p, n);
    in->p += n;
    in->left -= n;
    return n;
}

/* An address near something that matters. */
static uint64_t address(struct input *in)
{
    static const uint64_t base[] = {0,           PEER_DESC,  PEER_AVAIL,     PEER_USED, PEER_HDR,
                                    PEER_STATUS, PEER_DATA,  PEER_MEM - 128, PEER_MEM,  UINT64_MAX - 4096,
                                    1ull << 40};
    return base[u8(in) % (sizeof base / sizeof base[0])] + u16(in);
}

static void raw_message(struct peer *p, struct input *in)
{
    uint8_t payload[sizeof(((struct vhu_msg *)0)->p)] = {0};
    uint32_t request = u8(in) % (VHU_REQUEST_MAX + 2), flags = u8(in), how = u8(in);
    uint32_t n = (uint32_t)bytes(in, payload, u8(in));
    uint32_t size = how & 0x80 ? u16(in) : n;
    int extra = eventfd(0, EFD_CLOEXEC), fds[3] = {how & 4 ? p->mem_fd : extra, p->inflight_fd, p->mem_fd};
    if (size > sizeof payload || size > n + 64)
        size = n; /* else the rest of the input would be payload */
    peer_send(p, request, flags, payload, size, fds, (int)(how & 3));
    close(extra);
}

static void reconnect(struct peer *p, bool clean)
{
    close(p->sock);
    for (int i = 0; i < 100 && p->srv->session; i++)
        peer_turns(p, 1);
    assert(!p->srv->session);
    if (clean) {
        memset(p->mem + PEER_DESC, 0, 0x3000);
        p->avail_idx = 0;
    }
    peer_connect(p);
    peer_handshake(p);
    peer_start_queue(p, clean ? 0 : p->avail_idx);
}

static void one_step(struct peer *p, struct vol *v, struct input *in)
{
    switch (u8(in) % 12) {
    case 0: {
        uint64_t at = address(in) % (PEER_MEM - 256);
        bytes(in, p->mem + at, u8(in));
        break;
    }
    case 1:
    case 2: {
        struct vring_desc d = {address(in), u16(in), (uint16_t)(u8(in) & 7), u8(in) % (PEER_NUM + 2)};
        *peer_desc(p, u8(in) % PEER_NUM) = d;
        break;
    }
    case 3:
    case 4:
        peer_offer(p, u8(in) % (PEER_NUM + 1));
        break;
    case 5:
        peer_kick(p);
        peer_turns(p, 2);
        break;
    case 6: { /* a decent request with odd values */
        uint16_t head = (uint16_t)(u8(in) % 20 * 3);
        uint32_t type = u8(in) % 16, sector = u16(in), len = u32(in) % (6u << 20);
        peer_request(p, head, type, sector, (uint32_t)(address(in) % PEER_MEM), len, u8(in) & 1);
        peer_offer(p, head);
        break;
    }
    case 7:
        raw_message(p, in);
        peer_turns(p, 2);
        break;
    case 8:
        reconnect(p, u8(in) & 1);
        break;
    case 9:
        vol_mem_park(v, u8(in) & 1);
        break;
    case 10:
        if (u8(in) & 1)
            vol_mem_fail_next(v, u8(in) & 1 ? E_CANCELED : E_CORRUPT);
        else
            vhost_server_force_drop(p->srv);
        break;
    default:
        peer_turns(p, 3);
        break;
    }
}

static void on_closed(void *arg)
{
    *(bool *)arg = true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct vhost_conf conf = {.serial = "fuzz", .queues = 2};
    struct peer p;
    uv_loop_t loop;
    bool closed = false;
    log_set_level("*", LOG_LVL_ERR);
    uv_loop_init(&loop);
    struct vol *v = vol_mem_new(&loop, 1 << 20);
    struct vhost_server *srv = server_new(&loop, v, &conf, "fuzz");
    peer_init(&p, &loop, srv);
    peer_connect(&p);
    peer_handshake(&p);
    peer_start_queue(&p, 0);
    while (in.left)
        one_step(&p, v, &in);
    peer_turns(&p, 3);
    peer_fini(&p);
    vol_mem_park(v, false);
    vhost_server_close(srv, on_closed, &closed);
    for (int i = 0; i < 300 && !closed; i++)
        uv_run(&loop, UV_RUN_NOWAIT);
    assert(closed);
    vol_mem_free(v);
    uv_run(&loop, UV_RUN_DEFAULT);
    int rc = uv_loop_close(&loop);
    assert(!rc);
    return 0;
}
