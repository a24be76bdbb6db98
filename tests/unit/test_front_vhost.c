/* vhost-user-blk over a socket pair with a scripted front end: requests, hostile rings, stop, reconnect, dirty log. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include "tests/lib/front_peer.h"

#define VOL_BYTES (64u << 20)

struct fix {
    uv_loop_t loop;
    struct vol *vol;
    struct vhost_server *srv;
    struct peer p;
    bool closed;
};

static int setup(void **state)
{
    struct fix *f = test_calloc(1, sizeof *f);
    struct vhost_conf conf = {.serial = "serial-0123456789-too-long", .queues = 2};
    uv_loop_init(&f->loop);
    f->vol = vol_mem_new(&f->loop, VOL_BYTES);
    f->srv = server_new(&f->loop, f->vol, &conf, "test");
    peer_init(&f->p, &f->loop, f->srv);
    peer_connect(&f->p);
    *state = f;
    return 0;
}

static void on_closed(void *arg)
{
    ((struct fix *)arg)->closed = true;
}

static int teardown(void **state)
{
    struct fix *f = *state;
    peer_fini(&f->p);
    vol_mem_park(f->vol, false);
    vhost_server_close(f->srv, on_closed, f);
    for (int i = 0; i < 1000 && !f->closed; i++)
        uv_run(&f->loop, UV_RUN_NOWAIT);
    assert_true(f->closed);
    vol_mem_free(f->vol);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    test_free(f);
    return 0;
}

static struct peer *started(void **state)
{
    struct fix *f = *state;
    peer_handshake(&f->p);
    peer_start_queue(&f->p, 0);
    return &f->p;
}

/* One request, to its status. */
static uint8_t run(struct peer *p, uint32_t type, uint64_t sector, uint32_t gpa, uint32_t len, bool in)
{
    peer_request(p, 0, type, sector, gpa, len, in);
    peer_offer(p, 0);
    peer_kick(p);
    assert_true(peer_wait_used(p, 1));
    return peer_status(p, 0);
}

static void test_read_write(void **state)
{
    struct peer *p = started(state);
    uint8_t *data = vol_mem_data(((struct fix *)*state)->vol);
    for (unsigned i = 0; i < 8192; i++)
        p->mem[PEER_DATA + i] = (uint8_t)(i * 7);
    assert_int_equal(run(p, VIRTIO_BLK_T_OUT, 16, PEER_DATA, 8192, false), VIRTIO_BLK_S_OK);
    assert_memory_equal(data + 8192, p->mem + PEER_DATA, 8192);
    assert_int_equal(peer_used(p)->ring[0].len, 1);
    assert_int_equal(run(p, VIRTIO_BLK_T_IN, 17, PEER_DATA + 65536, 1024, true), VIRTIO_BLK_S_OK);
    assert_memory_equal(p->mem + PEER_DATA + 65536, data + 8192 + 512, 1024);
    assert_int_equal(peer_used(p)->ring[1].len, 1025);
    /* More than VOL_REQ_MAX: cut into pieces (vol_mem asserts their size), none of them lost. */
    for (unsigned i = 0; i < (5u << 20); i += 512)
        memcpy(p->mem + PEER_DATA + i, &i, sizeof i);
    assert_int_equal(run(p, VIRTIO_BLK_T_OUT, 0, PEER_DATA, 5u << 20, false), VIRTIO_BLK_S_OK);
    assert_memory_equal(data, p->mem + PEER_DATA, 5u << 20);
    assert_int_equal(run(p, VIRTIO_BLK_T_FLUSH, 0, 0, 0, false), VIRTIO_BLK_S_OK);
    assert_int_equal(run(p, VIRTIO_BLK_T_GET_ID, 0, PEER_DATA, 20, true), VIRTIO_BLK_S_OK);
    assert_memory_equal(p->mem + PEER_DATA, "serial-0123456789-too-long", 20);
}

static void test_discard_and_zeroes(void **state)
{
    struct peer *p = started(state);
    uint8_t *data = vol_mem_data(((struct fix *)*state)->vol);
    struct virtio_blk_discard_write_zeroes r[3] = {{8, 8, 0}, {0, 0, 0}, {32, 8, 0}};
    memset(data, 0xaa, 65536);
    memcpy(p->mem + PEER_DATA, r, sizeof r);
    assert_int_equal(run(p, VIRTIO_BLK_T_DISCARD, 0, PEER_DATA, sizeof r, false), VIRTIO_BLK_S_OK);
    assert_int_equal(data[4095], 0xaa);
    assert_int_equal(data[4096] | data[8191], 0);
    assert_int_equal(data[8192], 0xaa);
    assert_int_equal(data[32 * 512] | data[40 * 512 - 1], 0);
    r[0].flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    r[0].sector = 64;
    memcpy(p->mem + PEER_DATA, r, sizeof r[0]);
    assert_int_equal(run(p, VIRTIO_BLK_T_WRITE_ZEROES, 0, PEER_DATA, 16, false), VIRTIO_BLK_S_OK);
    assert_int_equal(data[64 * 512] | data[72 * 512 - 1], 0);
    assert_int_equal(run(p, VIRTIO_BLK_T_DISCARD, 0, PEER_DATA, 16, false), VIRTIO_BLK_S_UNSUPP); /* flag not allowed */
    r[0].flags = 2;
    memcpy(p->mem + PEER_DATA, r, sizeof r[0]);
    assert_int_equal(run(p, VIRTIO_BLK_T_WRITE_ZEROES, 0, PEER_DATA, 16, false), VIRTIO_BLK_S_UNSUPP);
    r[0] = (struct virtio_blk_discard_write_zeroes){VOL_BYTES / 512 - 1, 2, 0};
    r[1] = (struct virtio_blk_discard_write_zeroes){UINT64_MAX / 2, 2, 0};
    memcpy(p->mem + PEER_DATA, r, sizeof r);
    assert_int_equal(run(p, VIRTIO_BLK_T_DISCARD, 0, PEER_DATA, 16, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(run(p, VIRTIO_BLK_T_DISCARD, 0, PEER_DATA + 16, 16, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(run(p, VIRTIO_BLK_T_DISCARD, 0, PEER_DATA, 15, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(run(p, VIRTIO_BLK_T_DISCARD, 0, PEER_DATA, 17 * 16, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(run(p, VIRTIO_BLK_T_DISCARD, 0, PEER_DATA, 0, false), VIRTIO_BLK_S_IOERR);
}

static void test_refused_requests(void **state)
{
    struct peer *p = started(state);
    struct fix *f = *state;
    assert_int_equal(run(p, VIRTIO_BLK_T_IN, VOL_BYTES / 512, PEER_DATA, 512, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(run(p, VIRTIO_BLK_T_IN, UINT64_MAX, PEER_DATA, 512, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(run(p, VIRTIO_BLK_T_IN, 1ull << 55, PEER_DATA, 512, true), VIRTIO_BLK_S_IOERR);
    assert_int_equal(run(p, VIRTIO_BLK_T_OUT, 0, PEER_DATA, 511, false), VIRTIO_BLK_S_IOERR);
    assert_int_equal(run(p, 77, 0, PEER_DATA, 512, false), VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(run(p, VIRTIO_BLK_T_OUT, 0, PEER_MEM - 512, 1024, false), VIRTIO_BLK_S_IOERR); /* beyond memory */
    assert_int_equal(run(p, VIRTIO_BLK_T_OUT, 0, 0xfffff000u, 4096, false), VIRTIO_BLK_S_IOERR);
    peer_request(p, 0, VIRTIO_BLK_T_OUT, 0, PEER_DATA, 512, false);
    peer_desc(p, 1)->addr = UINT64_MAX - 100; /* end overflows */
    peer_offer(p, 0);
    peer_kick(p);
    assert_true(peer_wait_used(p, 1));
    assert_int_equal(peer_status(p, 0), VIRTIO_BLK_S_IOERR);
    vol_mem_fail_next(f->vol, E_CORRUPT);
    assert_int_equal(run(p, VIRTIO_BLK_T_IN, 0, PEER_DATA, 512, true), VIRTIO_BLK_S_IOERR);
    f->vol->read_only = true;
    assert_int_equal(run(p, VIRTIO_BLK_T_OUT, 0, PEER_DATA, 512, false), VIRTIO_BLK_S_IOERR);
    f->vol->read_only = false;
    assert_int_equal(run(p, VIRTIO_BLK_T_OUT, 0, PEER_DATA, 512, false), VIRTIO_BLK_S_OK);
}

/* A chain that is nonsense is answered and the queue goes on. */
static void expect_answered(struct peer *p)
{
    peer_offer(p, 0);
    peer_kick(p);
    assert_true(peer_wait_used(p, 1));
    assert_int_equal(run(p, VIRTIO_BLK_T_OUT, 0, PEER_DATA, 512, false), VIRTIO_BLK_S_OK);
}

static void test_hostile_chains(void **state)
{
    struct peer *p = started(state);
    const uint16_t next = VRING_DESC_F_NEXT, wr = VRING_DESC_F_WRITE, ind = VRING_DESC_F_INDIRECT;
    *peer_desc(p, 0) = (struct vring_desc){PEER_DATA, 16, next, 0}; /* points at itself */
    expect_answered(p);
    *peer_desc(p, 0) = (struct vring_desc){PEER_DATA, 16, next, 1};
    *peer_desc(p, 1) = (struct vring_desc){PEER_DATA, 16, next, 0}; /* a loop of two */
    expect_answered(p);
    *peer_desc(p, 0) = (struct vring_desc){PEER_DATA, 16, next, PEER_NUM}; /* out of the table */
    expect_answered(p);
    *peer_desc(p, 0) = (struct vring_desc){PEER_DATA, 16, 0, 0}; /* no status byte */
    expect_answered(p);
    *peer_desc(p, 0) = (struct vring_desc){PEER_MEM, 16, wr, 0}; /* status not in memory */
    expect_answered(p);
    *peer_desc(p, 0) = (struct vring_desc){PEER_DATA, 0, next, 1}; /* empty parts */
    *peer_desc(p, 1) = (struct vring_desc){PEER_DATA, 0, wr, 0};
    expect_answered(p);
    *peer_desc(p, 0) = (struct vring_desc){PEER_DATA, 4096, (uint16_t)(wr | next), 1}; /* writable before readable */
    *peer_desc(p, 1) = (struct vring_desc){PEER_DATA, 16, 0, 0};
    expect_answered(p);
    for (uint32_t len = 0; len < 64; len += 8) { /* indirect tables: empty, torn, beyond memory */
        *peer_desc(p, 0) = (struct vring_desc){len % 16 ? PEER_MEM - 16 : PEER_DATA, len + 4, ind, 0};
        expect_answered(p);
    }
    *peer_desc(p, 0) = (struct vring_desc){PEER_DATA, 1u << 20, ind, 0}; /* too many */
    expect_answered(p);
    *peer_desc(p, 0) = (struct vring_desc){PEER_DATA, 32, (uint16_t)(ind | next), 1};
    expect_answered(p);
    struct vring_desc *t = (struct vring_desc *)(p->mem + PEER_DATA + 8); /* not even aligned */
    t[0] = (struct vring_desc){PEER_DATA, 32, ind, 0}; /* a table in a table */
    *peer_desc(p, 0) = (struct vring_desc){PEER_DATA + 8, 32, ind, 0};
    expect_answered(p);
    t[0] = (struct vring_desc){PEER_DATA, 32, next, 1};
    t[1] = (struct vring_desc){PEER_DATA, 32, next, 0};
    *peer_desc(p, 0) = (struct vring_desc){PEER_DATA + 8, 32, ind, 0};
    expect_answered(p);
}

static void test_indirect(void **state)
{
    struct peer *p = started(state);
    uint8_t *data = vol_mem_data(((struct fix *)*state)->vol);
    struct vring_desc *t = (struct vring_desc *)(p->mem + PEER_DATA);
    struct virtio_blk_outhdr h = {VIRTIO_BLK_T_OUT, 0, 0};
    unsigned n = 0;
    memcpy(p->mem + PEER_HDR, &h, sizeof h);
    p->mem[PEER_STATUS] = 0xee;
    t[n++] = (struct vring_desc){PEER_HDR, 10, VRING_DESC_F_NEXT, 1}; /* the header in two parts */
    t[n++] = (struct vring_desc){PEER_HDR + 10, 6, VRING_DESC_F_NEXT, 2};
    for (unsigned i = 0; i < VQ_SEG_MAX; i++, n++) { /* separate places, so that nothing can be merged */
        memset(p->mem + PEER_DATA + 16384 + i * 1024, (int)(i * 7 & 255), 512);
        t[n] = (struct vring_desc){PEER_DATA + 16384 + i * 1024, 512, VRING_DESC_F_NEXT, (uint16_t)(n + 1)};
    }
    t[n++] = (struct vring_desc){PEER_STATUS, 1, VRING_DESC_F_WRITE, 0};
    *peer_desc(p, 0) = (struct vring_desc){PEER_DATA, n * 16, VRING_DESC_F_INDIRECT, 0};
    peer_offer(p, 0);
    peer_kick(p);
    assert_true(peer_wait_used(p, 1));
    assert_int_equal(p->mem[PEER_STATUS], VIRTIO_BLK_S_OK);
    for (unsigned i = 0; i < VQ_SEG_MAX; i++)
        assert_int_equal(data[i * 512 + 100], i * 7 & 255);
}

/* A broken ring stops the queue, and only that: the driver's reset (stop and start) brings it back. */
static void broken(struct peer *p)
{
    peer_kick(p);
    peer_turns(p, 10);
    assert_int_equal(peer_used(p)->idx, p->used_seen);
    (void)peer_stop_queue(p);
    memset(p->mem + PEER_AVAIL, 0, 4096);
    memset(p->mem + PEER_USED, 0, 4096);
    p->avail_idx = p->used_seen = 0;
    close(p->inflight_fd); /* a reset frees it */
    p->inflight_fd = -1;
    peer_disconnect(p);
    peer_connect(p);
    peer_handshake(p);
    peer_start_queue(p, 0);
    assert_int_equal(run(p, VIRTIO_BLK_T_OUT, 0, PEER_DATA, 512, false), VIRTIO_BLK_S_OK);
}

static void test_broken_rings(void **state)
{
    struct peer *p = started(state);
    peer_avail(p)->idx = PEER_NUM + 1; /* more than the ring holds */
    broken(p);
    peer_offer(p, PEER_NUM); /* no such descriptor */
    broken(p);
    peer_offer(p, 0xffff);
    broken(p);
}

static void test_same_head_twice(void **state)
{
    struct peer *p = started(state);
    struct fix *f = *state;
    vol_mem_park(f->vol, true);
    peer_request(p, 0, VIRTIO_BLK_T_OUT, 0, PEER_DATA, 512, false);
    peer_offer(p, 0);
    peer_offer(p, 0);
    peer_kick(p);
    peer_turns(p, 10);
    vol_mem_park(f->vol, false);
    assert_true(peer_wait_used(p, 1)); /* the first one is answered, the queue is broken */
    broken(p);
}

static void test_stop_waits_for_io(void **state)
{
    struct peer *p = started(state);
    struct fix *f = *state;
    struct vhost_vring_state st = {0, 0};
    struct vhu_msg m;
    vol_mem_park(f->vol, true);
    peer_request(p, 0, VIRTIO_BLK_T_OUT, 0, PEER_DATA, 512, false);
    peer_offer(p, 0);
    peer_kick(p);
    peer_turns(p, 5);
    peer_send(p, VHU_GET_VRING_BASE, 0, &st, sizeof st, NULL, 0);
    assert_false(peer_readable(p));
    peer_send(p, VHU_GET_QUEUE_NUM, 0, NULL, 0, NULL, 0); /* other messages are served meanwhile */
    assert_true(peer_recv(p, &m, NULL));
    assert_int_equal(m.hdr.request, VHU_GET_QUEUE_NUM);
    assert_int_equal(m.p.u64, 2);
    vol_mem_park(f->vol, false);
    assert_true(peer_recv(p, &m, NULL));
    assert_int_equal(m.hdr.request, VHU_GET_VRING_BASE);
    assert_int_equal(m.p.state.num, 1);
    assert_int_equal(peer_used(p)->idx, 1); /* everything was published before the answer */
    assert_int_equal(peer_status(p, 0), VIRTIO_BLK_S_OK);
}

static void test_reconnect_resubmits_in_order(void **state)
{
    struct peer *p = started(state);
    struct fix *f = *state;
    struct vhost_stat st;
    uint8_t *data = vol_mem_data(f->vol);
    vol_mem_park(f->vol, true);
    for (unsigned i = 0; i < 5; i++) { /* all to the same place: the last must win */
        uint16_t head = (uint16_t)(3 * (4 - i));
        memset(p->mem + PEER_DATA + i * 512, (int)i + 1, 512);
        peer_request(p, head, VIRTIO_BLK_T_OUT, 0, PEER_DATA + i * 512, 512, false);
        peer_offer(p, head);
    }
    peer_kick(p);
    peer_turns(p, 5);
    peer_disconnect(p);
    peer_connect(p);
    peer_handshake(p);
    peer_start_queue(p, 0);
    peer_turns(p, 5);
    vhost_server_stat(f->srv, &st);
    assert_int_equal(st.in_flight, 5); /* the old ones; the new session must wait for them */
    assert_int_equal(st.resubmitted, 0);
    vol_mem_park(f->vol, false);
    assert_true(peer_wait_used(p, 5));
    vhost_server_stat(f->srv, &st);
    assert_int_equal(st.resubmitted, 5);
    assert_int_equal(data[0], 5);
    for (uint16_t h = 0; h < 15; h = (uint16_t)(h + 3))
        assert_int_equal(peer_status(p, h), VIRTIO_BLK_S_OK);
    assert_int_equal(run(p, VIRTIO_BLK_T_FLUSH, 0, 0, 0, false), VIRTIO_BLK_S_OK);
}

static void test_closed_volume_leaves_requests_in_flight(void **state)
{
    struct peer *p = started(state);
    struct fix *f = *state;
    vol_mem_fail_next(f->vol, E_CANCELED);
    peer_request(p, 0, VIRTIO_BLK_T_OUT, 0, PEER_DATA, 512, false);
    peer_offer(p, 0);
    peer_kick(p);
    peer_turns(p, 20);
    assert_int_equal(peer_used(p)->idx, 0);
    assert_int_equal(peer_status(p, 0), 0xee); /* the guest was told nothing */
    vhost_server_force_drop(f->srv);
    close(p->sock);
    peer_connect(p);
    peer_handshake(p);
    peer_start_queue(p, 0);
    assert_true(peer_wait_used(p, 1));
    assert_int_equal(peer_status(p, 0), VIRTIO_BLK_S_OK);
}

static bool dirty(const struct peer *p, uint32_t gpa)
{
    return p->log[gpa / 4096 / 8] >> (gpa / 4096 % 8) & 1;
}

static void test_dirty_log(void **state)
{
    struct peer *p = started(state);
    struct fix *f = *state;
    vol_mem_park(f->vol, true); /* taken before logging starts, stored after */
    peer_request(p, 0, VIRTIO_BLK_T_IN, 0, PEER_DATA + 2048, 8192, true);
    peer_offer(p, 0);
    peer_kick(p);
    peer_turns(p, 5);
    peer_start_log(p);
    memset(p->log, 0, 4096);
    vol_mem_park(f->vol, false);
    assert_true(peer_wait_used(p, 1));
    assert_true(dirty(p, PEER_DATA) && dirty(p, PEER_DATA + 4096) && dirty(p, PEER_DATA + 8192));
    assert_false(dirty(p, PEER_DATA + 12288) || dirty(p, PEER_DATA - 4096));
    assert_true(dirty(p, PEER_STATUS) && dirty(p, PEER_USED));
    assert_false(dirty(p, PEER_AVAIL) || dirty(p, PEER_DESC) || dirty(p, PEER_HDR));
    memset(p->log, 0, 4096);
    assert_int_equal(run(p, VIRTIO_BLK_T_OUT, 0, PEER_DATA, 4096, false), VIRTIO_BLK_S_OK);
    assert_false(dirty(p, PEER_DATA)); /* only read by us */
    assert_true(dirty(p, PEER_STATUS) && dirty(p, PEER_USED));
}

static void test_config_and_resize(void **state)
{
    struct peer *p = started(state);
    struct fix *f = *state;
    struct vhu_msg_config c = {.size = sizeof(struct virtio_blk_config)};
    struct virtio_blk_config cfg;
    struct vhu_msg m;
    uint32_t size = offsetof(struct vhu_msg_config, data) + c.size;
    int sv[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
    assert_int_equal(peer_ack(p, VHU_SET_BACKEND_REQ_FD, NULL, 0, &sv[1], 1), 0);
    close(sv[1]);
    f->vol->size_bytes /= 2;
    vhost_server_resized(f->srv);
    struct vhu_msg_hdr h;
    assert_int_equal(read(sv[0], &h, sizeof h), sizeof h);
    assert_int_equal(h.request, VHU_BACKEND_CONFIG_CHANGE);
    peer_send(p, VHU_GET_CONFIG, 0, &c, size, NULL, 0);
    assert_true(peer_recv(p, &m, NULL));
    assert_int_equal(m.hdr.size, size);
    memcpy(&cfg, m.p.config.data, sizeof cfg);
    assert_int_equal(cfg.capacity, VOL_BYTES / 2 / 512);
    assert_int_equal(cfg.blk_size << cfg.physical_block_exp, 4096);
    assert_int_not_equal(peer_ack(p, VHU_SET_CONFIG, &c, size, NULL, 0), 0); /* refused, not fatal */
    c.offset = 250;
    peer_send(p, VHU_GET_CONFIG, 0, &c, size, NULL, 0);
    assert_false(peer_recv(p, &m, NULL)); /* beyond the space: dropped */
    close(sv[0]);
}

static void gone(struct fix *f)
{
    struct vhu_msg m;
    assert_false(peer_recv(&f->p, &m, NULL));
    peer_disconnect(&f->p);
    peer_connect(&f->p);
    peer_handshake(&f->p);
}

static void test_bad_messages(void **state)
{
    struct fix *f = *state;
    struct peer *p = &f->p;
    struct vhost_stat st;
    uint64_t u = ~0ull;
    struct vhost_vring_state state9 = {9, 64}, odd = {0, 63};
    peer_handshake(p);
    peer_send(p, VHU_SET_FEATURES, 0, &u, 8, NULL, 0);
    gone(f);
    peer_send(p, VHU_SET_FEATURES, 0, &u, 4, NULL, 0);
    gone(f);
    peer_send(p, 99, 0, NULL, 0, NULL, 0);
    gone(f);
    peer_send(p, VHU_SET_VRING_NUM, 0, &state9, 8, NULL, 0);
    gone(f);
    peer_send(p, VHU_SET_VRING_NUM, 0, &odd, 8, NULL, 0);
    gone(f);
    u = 0;
    int file = open("/dev/null", O_RDWR | O_CLOEXEC), plain = memfd_create("plain", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(plain, PEER_MEM), 0);
    peer_send(p, VHU_SET_VRING_KICK, 0, &u, 8, &plain, 1); /* cannot be watched */
    gone(f);
    struct vhu_msg_mem t = {.n = 1, .r = {{0, PEER_MEM, PEER_UADDR, 0}}};
    peer_send(p, VHU_SET_MEM_TABLE, 0, &t, 40, &plain, 1); /* could be truncated under us */
    gone(f);
    peer_send(p, VHU_SET_MEM_TABLE, 0, &t, 40, &file, 1);
    gone(f);
    t.r[0].size = PEER_MEM + 1;
    peer_send(p, VHU_SET_MEM_TABLE, 0, &t, 40, &p->mem_fd, 1);
    gone(f);
    t.r[0] = (struct vhu_msg_region){UINT64_MAX - 100, 4096, PEER_UADDR, 0};
    peer_send(p, VHU_SET_MEM_TABLE, 0, &t, 40, &p->mem_fd, 1);
    gone(f);
    t.n = 8;
    peer_send(p, VHU_SET_MEM_TABLE, 0, &t, 40, &p->mem_fd, 1);
    gone(f);
    struct vhu_msg_inflight fl = {.queues = 3, .queue_size = 64};
    peer_send(p, VHU_GET_INFLIGHT_FD, 0, &fl, 24, NULL, 0);
    gone(f);
    close(file);
    close(plain);
    vhost_server_stat(f->srv, &st);
    assert_int_equal(st.drops, 12);
    peer_start_queue(p, 0);
    assert_int_equal(run(p, VIRTIO_BLK_T_FLUSH, 0, 0, 0, false), VIRTIO_BLK_S_OK);
}

int main(void)
{
#define T(F) cmocka_unit_test_setup_teardown(F, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_read_write), T(test_discard_and_zeroes), T(test_refused_requests), T(test_hostile_chains),
        T(test_indirect), T(test_broken_rings), T(test_same_head_twice), T(test_stop_waits_for_io),
        T(test_reconnect_resubmits_in_order), T(test_closed_volume_leaves_requests_in_flight), T(test_dirty_log),
        T(test_config_and_resize), T(test_bad_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
