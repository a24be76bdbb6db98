/* See front_peer.h. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include "tests/lib/front_peer.h"

static int sealed_memfd(size_t bytes)
{
    int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int rc = ftruncate(fd, (off_t)bytes) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
    assert(fd >= 0 && !rc);
    return fd;
}

void peer_init(struct peer *p, uv_loop_t *loop, struct vhost_server *srv)
{
    memset(p, 0, sizeof *p);
    p->loop = loop;
    p->srv = srv;
    p->sock = p->inflight_fd = p->log_fd = -1;
    p->mem_fd = sealed_memfd(PEER_MEM);
    p->mem = mmap(NULL, PEER_MEM, PROT_READ | PROT_WRITE, MAP_SHARED, p->mem_fd, 0);
    assert(p->mem != MAP_FAILED);
    p->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    p->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

void peer_fini(struct peer *p)
{
    if (p->sock >= 0)
        peer_disconnect(p);
    munmap(p->mem, PEER_MEM);
    if (p->log)
        munmap(p->log, 4096);
    close(p->mem_fd);
    close(p->kick);
    close(p->call);
    if (p->inflight_fd >= 0)
        close(p->inflight_fd);
    if (p->log_fd >= 0)
        close(p->log_fd);
}

void peer_turns(struct peer *p, int n)
{
    while (n--)
        uv_run(p->loop, UV_RUN_NOWAIT);
}

void peer_connect(struct peer *p)
{
    int sv[2];
    int rc = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv);
    assert(!rc);
    p->sock = sv[0];
    server_adopt(p->srv, sv[1]);
}

void peer_disconnect(struct peer *p)
{
    close(p->sock);
    p->sock = -1;
    peer_turns(p, 5);
}

void peer_send(struct peer *p, uint32_t request, uint32_t flags, const void *payload, uint32_t size, const int *fds,
               int n_fds)
{
    struct vhu_msg_hdr h = {request, VHU_FLAG_VERSION | flags, size};
    char control[CMSG_SPACE(VHU_FDS_MAX * sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec iov[2] = {{&h, sizeof h}, {(void *)payload, size}};
    struct msghdr mh = {.msg_iov = iov, .msg_iovlen = 2};
    if (n_fds) {
        mh.msg_control = control;
        mh.msg_controllen = CMSG_SPACE((size_t)n_fds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)n_fds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)n_fds * sizeof(int));
    }
    (void)!sendmsg(p->sock, &mh, MSG_NOSIGNAL);
}

bool peer_readable(struct peer *p)
{
    struct pollfd pf = {p->sock, POLLIN, 0};
    peer_turns(p, 5);
    return poll(&pf, 1, 0) == 1;
}

bool peer_recv(struct peer *p, struct vhu_msg *ret_msg, int *ret_fd)
{
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
    struct iovec iov[2] = {{&ret_msg->hdr, sizeof ret_msg->hdr}, {&ret_msg->p, sizeof ret_msg->p}};
    struct msghdr mh = {.msg_iov = iov, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof control};
    for (int i = 0; i < 2000 && !peer_readable(p); i++)
        usleep(500);
    ssize_t n = recvmsg(p->sock, &mh, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < (ssize_t)sizeof ret_msg->hdr)
        return false;
    struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
    int fd = -1;
    if (c)
        memcpy(&fd, CMSG_DATA(c), sizeof fd);
    if (ret_fd)
        *ret_fd = fd;
    else if (fd >= 0)
        close(fd);
    return n == (ssize_t)(sizeof ret_msg->hdr + ret_msg->hdr.size);
}

uint64_t peer_ack(struct peer *p, uint32_t request, const void *payload, uint32_t size, const int *fds, int n_fds)
{
    struct vhu_msg m;
    peer_send(p, request, VHU_FLAG_NEED_REPLY, payload, size, fds, n_fds);
    return peer_recv(p, &m, NULL) && m.hdr.request == request ? m.p.u64 : UINT64_MAX;
}

static void must_ack(struct peer *p, uint32_t request, const void *payload, uint32_t size, const int *fds, int n_fds)
{
    uint64_t rc = peer_ack(p, request, payload, size, fds, n_fds);
    assert(rc == 0);
}

static void send_features(struct peer *p, bool log)
{
    uint64_t f = 1ull << VIRTIO_F_VERSION_1 | 1ull << VHU_F_PROTOCOL_FEATURES | 1ull << VIRTIO_RING_F_INDIRECT_DESC |
                 1ull << VIRTIO_RING_F_EVENT_IDX | (log ? 1ull << VHOST_F_LOG_ALL : 0);
    must_ack(p, VHU_SET_FEATURES, &f, sizeof f, NULL, 0);
}

static void send_inflight(struct peer *p)
{
    struct vhu_msg m;
    if (p->inflight_fd < 0) {
        p->inflight = (struct vhu_msg_inflight){.queues = 1, .queue_size = PEER_NUM};
        peer_send(p, VHU_GET_INFLIGHT_FD, 0, &p->inflight, sizeof p->inflight, NULL, 0);
        bool ok = peer_recv(p, &m, &p->inflight_fd);
        assert(ok && p->inflight_fd >= 0);
        p->inflight = m.p.inflight;
    }
    must_ack(p, VHU_SET_INFLIGHT_FD, &p->inflight, sizeof p->inflight, &p->inflight_fd, 1);
}

void peer_handshake(struct peer *p)
{
    struct vhu_msg m;
    peer_send(p, VHU_GET_PROTOCOL_FEATURES, 0, NULL, 0, NULL, 0);
    bool ok = peer_recv(p, &m, NULL);
    assert(ok);
    peer_send(p, VHU_SET_PROTOCOL_FEATURES, 0, &m.p.u64, 8, NULL, 0);
    peer_send(p, VHU_SET_OWNER, 0, NULL, 0, NULL, 0);
    send_features(p, false);
    struct vhu_msg_mem t = {.n = 1, .r = {{0, PEER_MEM, PEER_UADDR, 0}}};
    send_inflight(p);
    must_ack(p, VHU_SET_MEM_TABLE, &t, 8 + 32, &p->mem_fd, 1);
}

static void send_addr(struct peer *p, bool log)
{
    struct vhost_vring_addr a = {.flags = log ? 1u << VHOST_VRING_F_LOG : 0,
                                 .desc_user_addr = PEER_UADDR + PEER_DESC,
                                 .avail_user_addr = PEER_UADDR + PEER_AVAIL,
                                 .used_user_addr = PEER_UADDR + PEER_USED,
                                 .log_guest_addr = PEER_USED};
    must_ack(p, VHU_SET_VRING_ADDR, &a, sizeof a, NULL, 0);
}

void peer_start_queue(struct peer *p, uint16_t base)
{
    struct vhost_vring_state num = {0, PEER_NUM}, at = {0, base}, on = {0, 1};
    uint64_t index = 0;
    must_ack(p, VHU_SET_VRING_NUM, &num, sizeof num, NULL, 0);
    must_ack(p, VHU_SET_VRING_BASE, &at, sizeof at, NULL, 0);
    send_addr(p, false);
    must_ack(p, VHU_SET_VRING_KICK, &index, sizeof index, &p->kick, 1);
    must_ack(p, VHU_SET_VRING_CALL, &index, sizeof index, &p->call, 1);
    must_ack(p, VHU_SET_VRING_ENABLE, &on, sizeof on, NULL, 0);
}

uint16_t peer_stop_queue(struct peer *p)
{
    struct vhost_vring_state st = {0, 0};
    struct vhu_msg m;
    peer_send(p, VHU_GET_VRING_BASE, 0, &st, sizeof st, NULL, 0);
    bool ok = peer_recv(p, &m, NULL);
    assert(ok && m.hdr.request == VHU_GET_VRING_BASE);
    return (uint16_t)m.p.state.num;
}

void peer_start_log(struct peer *p)
{
    struct vhu_msg m;
    uint64_t payload[2] = {4096, 0};
    p->log_fd = sealed_memfd(4096);
    p->log = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, p->log_fd, 0);
    assert(p->log != MAP_FAILED);
    peer_send(p, VHU_SET_LOG_BASE, 0, payload, sizeof payload, &p->log_fd, 1);
    bool ok = peer_recv(p, &m, NULL);
    assert(ok && m.hdr.request == VHU_SET_LOG_BASE);
    send_features(p, true);
    send_addr(p, true);
}

struct vring_desc *peer_desc(struct peer *p, unsigned i)
{
    return (struct vring_desc *)(p->mem + PEER_DESC) + i;
}

struct vring_avail *peer_avail(struct peer *p)
{
    return (struct vring_avail *)(p->mem + PEER_AVAIL);
}

struct vring_used *peer_used(struct peer *p)
{
    return (struct vring_used *)(p->mem + PEER_USED);
}

void peer_request(struct peer *p, uint16_t head, uint32_t type, uint64_t sector, uint32_t gpa, uint32_t len, bool in)
{
    struct virtio_blk_outhdr h = {type, 0, sector};
    memcpy(p->mem + PEER_HDR + 64u * head, &h, sizeof h);
    p->mem[PEER_STATUS + 64u * head] = 0xee;
    uint16_t data = (uint16_t)(head + 1), status = (uint16_t)(head + 2);
    *peer_desc(p, head) = (struct vring_desc){PEER_HDR + 64u * head, sizeof h, VRING_DESC_F_NEXT, len ? data : status};
    *peer_desc(p, data) =
        (struct vring_desc){gpa, len, (uint16_t)(VRING_DESC_F_NEXT | (in ? VRING_DESC_F_WRITE : 0)), status};
    *peer_desc(p, status) = (struct vring_desc){PEER_STATUS + 64u * head, 1, VRING_DESC_F_WRITE, 0};
}

void peer_offer(struct peer *p, uint16_t head)
{
    peer_avail(p)->ring[p->avail_idx % PEER_NUM] = head;
    __atomic_store_n(&peer_avail(p)->idx, ++p->avail_idx, __ATOMIC_RELEASE);
}

void peer_kick(struct peer *p)
{
    uint64_t one = 1;
    ssize_t n = write(p->kick, &one, sizeof one);
    assert(n == sizeof one);
}

uint8_t peer_status(const struct peer *p, uint16_t head)
{
    return p->mem[PEER_STATUS + 64u * head];
}

bool peer_wait_used(struct peer *p, unsigned n)
{
    p->used_seen = (uint16_t)(p->used_seen + n);
    for (int i = 0; i < 500; i++) {
        peer_turns(p, 3);
        if (__atomic_load_n(&peer_used(p)->idx, __ATOMIC_ACQUIRE) == p->used_seen)
            return true;
        usleep(1000);
    }
    return false;
}
