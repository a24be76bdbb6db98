/* Tap devices. See tap.h. */
#include "compute/host/tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* The same flags as QEMU uses with vnet_hdr: a tap keeps those of whoever attached last. */
#define TAP_FLAGS (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)

static int attach(const char *name, int *ret_fd, struct err *e)
{
    struct ifreq ifr = {.ifr_flags = TAP_FLAGS};
    if (!name[0] || strlen(name) >= sizeof ifr.ifr_name || strchr(name, '/') || strchr(name, '%'))
        return err_set(e, E_INVAL, "\"%s\" is no name for a tap device", name);
    memcpy(ifr.ifr_name, name, strlen(name) + 1);
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, errno, "tap %s: /dev/net/tun", name);
    if (ioctl(fd, TUNSETIFF, &ifr) < 0) {
        int rc = errno == EINVAL ? err_set(e, E_EXISTS, "tap %s: a device of another kind has this name", name)
                                 : err_sys(e, errno, "tap %s", name);
        close(fd);
        return rc;
    }
    *ret_fd = fd;
    return E_OK;
}

/* Best effort: without the proc file there is no IPv6, and so no address either. */
static void no_ipv6(const char *name)
{
    char path[96];
    snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)!write(fd, "1", 1);
    close(fd);
}

static int set_up(const char *name, int mtu, struct err *e)
{
    struct ifreq ifr = {0};
    memcpy(ifr.ifr_name, name, strlen(name) + 1);
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), rc = E_OK;
    if (s < 0)
        return err_sys(e, errno, "tap %s", name);
    if (mtu > 0) {
        ifr.ifr_mtu = mtu;
        if (ioctl(s, SIOCSIFMTU, &ifr) < 0)
            rc = err_sys(e, errno, "tap %s: MTU %d", name, mtu);
    }
    if (rc == E_OK && ioctl(s, SIOCGIFFLAGS, &ifr) < 0)
        rc = err_sys(e, errno, "tap %s", name);
    ifr.ifr_flags |= IFF_UP;
    if (rc == E_OK && ioctl(s, SIOCSIFFLAGS, &ifr) < 0)
        rc = err_sys(e, errno, "tap %s: up", name);
    close(s);
    return rc;
}

int tap_make(const char *name, int mtu, struct err *e)
{
    int fd, rc = attach(name, &fd, e);
    if (rc != E_OK)
        return rc;
    no_ipv6(name);
    if (ioctl(fd, TUNSETPERSIST, 1) < 0)
        rc = err_sys(e, errno, "tap %s: keep", name);
    if (rc == E_OK)
        rc = set_up(name, mtu, e);
    if (rc != E_OK)
        (void)ioctl(fd, TUNSETPERSIST, 0);
    close(fd);
    return rc;
}

int tap_remove(const char *name, struct err *e)
{
    if (if_nametoindex(name) == 0)
        return E_OK;
    int fd, rc = attach(name, &fd, e);
    if (rc != E_OK)
        return rc;
    if (ioctl(fd, TUNSETPERSIST, 0) < 0)
        rc = err_sys(e, errno, "tap %s: remove", name);
    close(fd); /* a tap that is not persistent goes with its last descriptor */
    return rc;
}
