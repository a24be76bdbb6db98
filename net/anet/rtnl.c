/* rtnetlink requests (rtnl.h). */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/buf.h"
#include "net/anet/rtnl.h"

#define MSG_MAX 1024 /* one route or address */

static int if_ioctl(const char *ifname, unsigned long request, struct ifreq *ifr, struct err *e)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_sys(e, errno, "socket");
    snprintf(ifr->ifr_name, sizeof ifr->ifr_name, "%s", ifname);
    int rc = ioctl(fd, request, ifr) < 0 ? errno : 0;
    close(fd);
    if (rc == ENODEV)
        return err_set(e, E_NOTFOUND, "there is no interface %s", ifname);
    return rc ? err_sys(e, rc, "interface %s", ifname) : 0;
}

int rtnl_mac(const char *ifname, char ret[18], struct err *e)
{
    struct ifreq ifr = {0};
    int rc = if_ioctl(ifname, SIOCGIFHWADDR, &ifr, e);
    if (rc)
        return rc;
    const unsigned char *m = (const unsigned char *)ifr.ifr_hwaddr.sa_data;
    snprintf(ret, 18, "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
    return 0;
}

int rtnl_up(const char *ifname, bool *ret_was_up, struct err *e)
{
    struct ifreq ifr = {0};
    int rc = if_ioctl(ifname, SIOCGIFFLAGS, &ifr, e);
    if (rc)
        return rc;
    *ret_was_up = ifr.ifr_flags & IFF_UP;
    if (*ret_was_up)
        return 0;
    ifr.ifr_flags |= IFF_UP;
    return if_ioctl(ifname, SIOCSIFFLAGS, &ifr, e);
}

/* ---- netlink ---- */

static int nl_open(struct err *e)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    return fd < 0 ? err_sys(e, errno, "netlink socket") : fd;
}

static int nl_send(int fd, struct nlmsghdr *h, struct err *e)
{
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    if (sendto(fd, h, h->nlmsg_len, 0, (struct sockaddr *)&kernel, sizeof kernel) < 0)
        return err_sys(e, errno, "netlink send");
    return 0;
}

/* Sends a request and reads its acknowledgement. `ok_errno` (EEXIST, ENOENT …) counts as success. */
static int nl_request(int fd, struct nlmsghdr *h, int ok_errno, const char *what, struct err *e)
{
    char reply[4096];
    h->nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
    int rc = nl_send(fd, h, e);
    if (rc)
        return rc;
    ssize_t n = recv(fd, reply, sizeof reply, 0);
    if (n < 0)
        return err_sys(e, errno, "netlink receive");
    const struct nlmsghdr *r = (const struct nlmsghdr *)reply;
    if ((size_t)n < NLMSG_LENGTH(sizeof(struct nlmsgerr)) || r->nlmsg_type != NLMSG_ERROR)
        return err_set(e, E_PROTO, "netlink: %s: unexpected reply", what);
    int code = -((const struct nlmsgerr *)NLMSG_DATA(r))->error;
    return code && code != ok_errno ? err_sys(e, code, "%s", what) : 0;
}

/* `left` bytes begin with a whole message; negative behind the last one's padding. */
static bool msg_ok(const struct nlmsghdr *h, int left) { return left > 0 && NLMSG_OK(h, (uint32_t)left); }

/* All messages of a dump, one behind the other, in *ret (freed by the caller with buf_free()). */
static int nl_dump(int fd, int type, struct buf *ret, struct err *e)
{
    struct { struct nlmsghdr h; struct rtgenmsg g; } req = {
        .h = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct rtgenmsg)), .nlmsg_type = (uint16_t)type,
              .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
        .g = {.rtgen_family = AF_INET}};
    int rc = nl_send(fd, &req.h, e);
    while (!rc) {
        _Alignas(struct nlmsghdr) char chunk[32768];
        ssize_t n = recv(fd, chunk, sizeof chunk, 0);
        if (n < 0)
            return err_sys(e, errno, "netlink receive");
        int left = (int)n;
        for (struct nlmsghdr *h = (struct nlmsghdr *)chunk; msg_ok(h, left); h = NLMSG_NEXT(h, left)) {
            if (h->nlmsg_type == NLMSG_DONE)
                return 0;
            if (h->nlmsg_type == NLMSG_ERROR)
                return err_set(e, E_IO, "netlink dump failed");
            buf_append(ret, h, NLMSG_ALIGN(h->nlmsg_len));
        }
    }
    return rc;
}

static struct rtattr *find_attr(struct rtattr *a, int left, int type)
{
    for (; RTA_OK(a, left); a = RTA_NEXT(a, left))
        if (a->rta_type == type)
            return a;
    return NULL;
}

static void put_attr(struct nlmsghdr *h, int type, const struct rtattr *from)
{
    if (!from)
        return;
    struct rtattr *a = (struct rtattr *)((char *)h + NLMSG_ALIGN(h->nlmsg_len));
    a->rta_type = (unsigned short)type;
    a->rta_len = from->rta_len;
    memcpy(RTA_DATA(a), RTA_DATA(from), RTA_PAYLOAD(from));
    h->nlmsg_len = NLMSG_ALIGN(h->nlmsg_len) + RTA_ALIGN(a->rta_len);
}

/* The address of dump message `h` as a request of `type` for interface `index`. */
static void address_request(const struct nlmsghdr *h, int type, unsigned index, struct nlmsghdr *ret)
{
    const struct ifaddrmsg *m = NLMSG_DATA(h);
    struct ifaddrmsg *r = NLMSG_DATA(ret);
    struct rtattr *attrs = (struct rtattr *)IFA_RTA(m);
    int left = (int)IFA_PAYLOAD(h);
    memset(ret, 0, MSG_MAX);
    ret->nlmsg_type = (uint16_t)type;
    ret->nlmsg_len = NLMSG_LENGTH(sizeof *r);
    r->ifa_family = AF_INET;
    r->ifa_prefixlen = m->ifa_prefixlen;
    r->ifa_scope = m->ifa_scope;
    r->ifa_index = index;
    put_attr(ret, IFA_LOCAL, find_attr(attrs, left, IFA_LOCAL));
    put_attr(ret, IFA_ADDRESS, find_attr(attrs, left, IFA_ADDRESS));
    if (type == RTM_NEWADDR) {
        ret->nlmsg_flags = NLM_F_CREATE | NLM_F_EXCL;
        put_attr(ret, IFA_BROADCAST, find_attr(attrs, left, IFA_BROADCAST));
    }
}

#define FOR_EACH_MESSAGE(H, LEFT, BUF)                                                                      \
    for (int LEFT = (int)(BUF).len, once = 1; once; once = 0)                                               \
        for (struct nlmsghdr *H = (struct nlmsghdr *)(BUF).data; msg_ok(H, LEFT); H = NLMSG_NEXT(H, LEFT))

static int move_addresses(int fd, unsigned from, unsigned to, int type, int *count, struct err *e)
{
    _Alignas(struct nlmsghdr) char req[MSG_MAX];
    struct buf all;
    buf_init(&all);
    int rc = nl_dump(fd, RTM_GETADDR, &all, e);
    if (!rc && all.len) {
        FOR_EACH_MESSAGE (h, left, all) {
            const struct ifaddrmsg *m = NLMSG_DATA(h);
            if (h->nlmsg_type != RTM_NEWADDR || m->ifa_family != AF_INET || m->ifa_index != from || rc)
                continue;
            address_request(h, type, type == RTM_NEWADDR ? to : from, (struct nlmsghdr *)req);
            bool adding = type == RTM_NEWADDR;
            rc = nl_request(fd, (struct nlmsghdr *)req, adding ? EEXIST : EADDRNOTAVAIL,
                            adding ? "add address" : "remove address", e);
            if (!rc && count)
                (*count)++;
        }
    }
    buf_free(&all);
    return rc;
}

static int move_routes(int fd, unsigned from, unsigned to, struct err *e)
{
    struct buf all;
    buf_init(&all);
    int rc = nl_dump(fd, RTM_GETROUTE, &all, e);
    if (!rc && all.len) {
        FOR_EACH_MESSAGE (h, left, all) {
            struct rtmsg *m = NLMSG_DATA(h);
            if (h->nlmsg_type != RTM_NEWROUTE || m->rtm_table != RT_TABLE_MAIN || m->rtm_protocol == RTPROT_KERNEL || rc)
                continue;
            struct rtattr *oif = find_attr(RTM_RTA(m), (int)RTM_PAYLOAD(h), RTA_OIF);
            if (!oif || RTA_PAYLOAD(oif) != sizeof from || memcmp(RTA_DATA(oif), &from, sizeof from))
                continue;
            memcpy(RTA_DATA(oif), &to, sizeof to);
            m->rtm_flags = 0; /* the dump's are state (linkdown, …), not wishes */
            h->nlmsg_flags = NLM_F_CREATE | NLM_F_REPLACE;
            rc = nl_request(fd, h, 0, "move route", e);
        }
    }
    buf_free(&all);
    return rc;
}

int rtnl_move(const char *from, const char *to, int *ret_moved, struct err *e)
{
    unsigned a = if_nametoindex(from), b = if_nametoindex(to);
    if (!a || !b)
        return err_set(e, E_NOTFOUND, "there is no interface %s", a ? to : from);
    int fd = nl_open(e);
    if (fd < 0)
        return fd;
    int moved = 0;
    int rc = move_addresses(fd, a, b, RTM_NEWADDR, NULL, e);
    if (!rc)
        rc = move_routes(fd, a, b, e);
    if (!rc)
        rc = move_addresses(fd, a, b, RTM_DELADDR, &moved, e);
    close(fd);
    if (!rc)
        *ret_moved = moved;
    return rc;
}
