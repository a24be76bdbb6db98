/* Transfer of vhost-user messages. See msg.h.
 *
 * Descriptors ride on the first byte of a message, so one message is read at a time: first exactly its header, then
 * exactly its payload. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "storage/asan/front/vhost/msg.h"

static const char *const names[VHU_REQUEST_MAX] = {
    [VHU_GET_FEATURES] = "GET_FEATURES",
    [VHU_SET_FEATURES] = "SET_FEATURES",
    [VHU_SET_OWNER] = "SET_OWNER",
    [VHU_RESET_OWNER] = "RESET_OWNER",
    [VHU_SET_MEM_TABLE] = "SET_MEM_TABLE",
    [VHU_SET_LOG_BASE] = "SET_LOG_BASE",
    [VHU_SET_LOG_FD] = "SET_LOG_FD",
    [VHU_SET_VRING_NUM] = "SET_VRING_NUM",
    [VHU_SET_VRING_ADDR] = "SET_VRING_ADDR",
    [VHU_SET_VRING_BASE] = "SET_VRING_BASE",
    [VHU_GET_VRING_BASE] = "GET_VRING_BASE",
    [VHU_SET_VRING_KICK] = "SET_VRING_KICK",
    [VHU_SET_VRING_CALL] = "SET_VRING_CALL",
    [VHU_SET_VRING_ERR] = "SET_VRING_ERR",
    [VHU_GET_PROTOCOL_FEATURES] = "GET_PROTOCOL_FEATURES",
    [VHU_SET_PROTOCOL_FEATURES] = "SET_PROTOCOL_FEATURES",
    [VHU_GET_QUEUE_NUM] = "GET_QUEUE_NUM",
    [VHU_SET_VRING_ENABLE] = "SET_VRING_ENABLE",
    [VHU_SET_BACKEND_REQ_FD] = "SET_BACKEND_REQ_FD",
    [VHU_GET_CONFIG] = "GET_CONFIG",
    [VHU_SET_CONFIG] = "SET_CONFIG",
    [VHU_GET_INFLIGHT_FD] = "GET_INFLIGHT_FD",
    [VHU_SET_INFLIGHT_FD] = "SET_INFLIGHT_FD",
};

const char *vhost_request_name(uint32_t request)
{
    return request < VHU_REQUEST_MAX && names[request] ? names[request] : "unknown request";
}

/* Takes the descriptors of one recvmsg() over; too many or truncated is E_PROTO (what came is closed by the reset). */
static int take_fds(struct vhost_rx *rx, struct msghdr *mh)
{
    int rc = mh->msg_flags & MSG_CTRUNC ? E_PROTO : E_OK;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (rx->msg.n_fds < VHU_FDS_MAX) {
                rx->msg.fd[rx->msg.n_fds++] = fd;
            } else {
                close(fd);
                rc = E_PROTO;
            }
        }
    }
    return rc;
}

static int receive(struct vhost_rx *rx, int sock, void *at, size_t bytes)
{
    union {
        char space[CMSG_SPACE(VHU_FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {at, bytes};
    struct msghdr mh = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
    ssize_t n;
    do
        n = recvmsg(sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : E_DISCONN;
    int rc = take_fds(rx, &mh);
    if (rc)
        return rc;
    if (n == 0)
        return E_DISCONN;
    rx->got += (uint32_t)n;
    return 1;
}

static int check_header(const struct vhu_msg_hdr *h)
{
    if ((h->flags & VHU_FLAG_VERSION_MASK) != VHU_FLAG_VERSION || (h->flags & VHU_FLAG_REPLY))
        return E_PROTO;
    return h->size > sizeof(((struct vhu_msg *)0)->p) ? E_PROTO : E_OK;
}

int vhost_rx_step(struct vhost_rx *rx, int sock)
{
    struct vhu_msg *m = &rx->msg;
    for (;;) {
        int rc;
        if (rx->got < sizeof m->hdr) {
            rc = receive(rx, sock, (char *)&m->hdr + rx->got, sizeof m->hdr - rx->got);
            if (rc <= 0)
                return rc;
            if (rx->got == sizeof m->hdr && (rc = check_header(&m->hdr)))
                return rc;
            continue;
        }
        uint32_t body = rx->got - (uint32_t)sizeof m->hdr;
        if (body == m->hdr.size)
            return 1;
        rc = receive(rx, sock, (char *)&m->p + body, m->hdr.size - body);
        if (rc <= 0)
            return rc;
    }
}

void vhost_rx_reset(struct vhost_rx *rx)
{
    for (int i = 0; i < rx->msg.n_fds; i++)
        if (rx->msg.fd[i] >= 0)
            close(rx->msg.fd[i]);
    memset(rx, 0, sizeof *rx);
}

int vhost_msg_send(int sock, const struct vhu_msg *m, int fd)
{
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec iov[2] = {{(void *)&m->hdr, sizeof m->hdr}, {(void *)&m->p, m->hdr.size}};
    struct msghdr mh = {.msg_iov = iov, .msg_iovlen = 2};
    if (fd >= 0) {
        mh.msg_control = control.space;
        mh.msg_controllen = sizeof control.space;
        struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    ssize_t n;
    do
        n = sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)(sizeof m->hdr + m->hdr.size) ? E_OK : E_DISCONN;
}
