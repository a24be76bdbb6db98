/* The virtqueue's crash safety, instruction by instruction: a child serves a ring in shared memory and is single-stepped;
 * after every instruction the memory is copied and recovered from, as the next process would after a kill there. Also:
 * event suppression. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
#include "storage/asan/front/vhost/vring.h"

#define NUM 8
#define OFFERED 6

struct shared {
    struct vring_desc desc[NUM];
    struct { uint16_t flags, idx, ring[NUM], used_event; } avail;
    struct { uint16_t flags, idx; vring_used_elem_t ring[NUM]; uint16_t avail_event; } used __attribute__((aligned(4)));
    uint8_t inflight[16 + NUM * 16] __attribute__((aligned(16)));
};

static const uint16_t heads[OFFERED] = {3, 0, 7, 2, 5, 1};

static struct vq attach(struct shared *m)
{
    struct vq q = {.num = NUM, .event_idx = true, .inflight_num = NUM};
    q.desc = m->desc;
    q.avail = (void *)&m->avail;
    q.used = (void *)&m->used;
    q.inflight = (void *)m->inflight;
    return q;
}

static void offer(struct shared *m)
{
    memset(m, 0, sizeof *m);
    memcpy(m->avail.ring, heads, sizeof heads);
    m->avail.idx = OFFERED;
}

static uint16_t take(struct vq *q)
{
    uint16_t head = 0xffff;
    if (vq_next(q, &head) != 1)
        abort();
    return head;
}

/* Takes, completes out of order in batches of several sizes, takes on. */
static void serve(struct shared *m)
{
    struct vq q = attach(m);
    vq_start(&q, 0);
    for (int i = 0; i < 5; i++)
        take(&q);
    vq_complete(&q, heads[2], 1);
    vq_complete(&q, heads[0], 1);
    vq_complete(&q, heads[3], 1);
    vq_publish(&q);
    vq_complete(&q, heads[4], 1);
    take(&q);
    vq_publish(&q);
    vq_complete(&q, heads[1], 1);
    vq_complete(&q, heads[5], 1);
    vq_publish(&q);
}

/* Every offered head is published, to be repeated, or still to be taken: exactly one of them; repeats in order taken. */
static void check_recovery(const struct shared *at_kill)
{
    static struct shared m;
    m = *at_kill;
    struct vq q = attach(&m);
    unsigned n = vq_start(&q, 0), seen[NUM] = {0}, last = 0;
    for (unsigned i = 0; i < m.used.idx; i++)
        seen[m.used.ring[i].id]++;
    for (unsigned i = 0; i < n; i++) {
        uint16_t head = take(&q);
        unsigned place = 0;
        while (heads[place] != head)
            assert_true(++place < OFFERED);
        assert_true(i == 0 || place > last);
        last = place;
        seen[head]++;
    }
    for (uint16_t head; vq_next(&q, &head) == 1;)
        seen[head]++;
    assert_int_equal(q.last_avail, OFFERED);
    for (int i = 0; i < OFFERED; i++)
        assert_int_equal(seen[heads[i]], 1);
}

static void test_kill_after_every_instruction(void **state)
{
    struct shared *m = mmap(NULL, sizeof *m, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), last;
    assert_true(m != MAP_FAILED);
    offer(m);
    pid_t child = fork();
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0))
            _exit(77);
        raise(SIGSTOP);
        serve(m);
        _exit(0);
    }
    int status;
    unsigned steps = 0, states = 0;
    memset(&last, 0xff, sizeof last);
    assert_int_equal(waitpid(child, &status, 0), child);
    while (WIFSTOPPED(status)) {
        if (memcmp(&last, m, sizeof last)) {
            last = *m;
            check_recovery(m);
            states++;
        }
        steps++;
        assert_int_equal(ptrace(PTRACE_SINGLESTEP, child, 0, 0), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
    }
    munmap(m, sizeof *m);
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    print_message("%u instructions, %u different states\n", steps, states);
    assert_true(states > 30);
}

static void test_event_suppression(void **state)
{
    static struct shared m;
    offer(&m);
    struct vq q = attach(&m);
    vq_start(&q, 0);
    for (int i = 0; i < OFFERED; i++)
        take(&q);
    assert_false(vq_want_kick(&q));
    assert_int_equal(m.used.avail_event, OFFERED);
    m.avail.idx++;
    assert_true(vq_want_kick(&q)); /* came in before we asked: no kick will tell */
    m.avail.used_event = 3;
    vq_complete(&q, heads[0], 1);
    assert_true(vq_publish(&q)); /* the first one always */
    vq_complete(&q, heads[1], 1);
    vq_complete(&q, heads[2], 1);
    assert_false(vq_publish(&q));
    vq_complete(&q, heads[3], 1);
    assert_true(vq_publish(&q));
    vq_complete(&q, heads[4], 1);
    assert_false(vq_publish(&q));
    assert_false(vq_publish(&q)); /* nothing staged */
    q.event_idx = false;
    m.avail.flags = VRING_AVAIL_F_NO_INTERRUPT;
    vq_complete(&q, heads[5], 1);
    assert_false(vq_publish(&q));
}

/* The inflight area is believed no further than it is plausible. */
static void test_damaged_inflight_area(void **state)
{
    static struct shared m;
    offer(&m);
    struct vq_inflight *f = (void *)m.inflight;
    f->version = 1;
    f->used_idx = 0x4321;
    f->last_batch_head = 0xffff;
    for (int i = 0; i < NUM; i++)
        f->desc[i] = (struct vq_inflight_desc){.inflight = 7, .next = 0xfff0, .counter = (uint64_t)-1 - (uint64_t)i};
    struct vq q = attach(&m);
    assert_int_equal(vq_start(&q, 0), NUM);
    q = attach(&m);
    q.num = 4; /* a shorter ring than the area was made for */
    assert_int_equal(vq_start(&q, 0), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kill_after_every_instruction),
        cmocka_unit_test(test_event_suppression),
        cmocka_unit_test(test_damaged_inflight_area),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
