/* The node's lease page. See lease.h. */
#include "compute/lease.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/clock.h"

#define PAGE 4096

static int map(int fd, const char *path, int prot, struct lease *ret_lease, struct err *e)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(e, errno, "lease page %s", path);
    if (st.st_size < PAGE)
        return err_set(e, E_CORRUPT, "lease page %s is too short", path);
    void *p = mmap(NULL, PAGE, prot, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return err_sys(e, errno, "map lease page %s", path);
    *ret_lease = (struct lease){.page = p, .inode = st.st_ino};
    return E_OK;
}

int lease_create(const char *path, struct lease *ret_lease, struct err *e)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_sys(e, errno, "lease page %s", path);
    struct stat st;
    int rc = E_OK;
    if (fstat(fd, &st) < 0 || (st.st_size < PAGE && ftruncate(fd, PAGE) < 0)) /* grows only: new bytes are zero = no lease */
        rc = err_sys(e, errno, "lease page %s", path);
    if (rc == E_OK)
        rc = map(fd, path, PROT_READ | PROT_WRITE, ret_lease, e);
    close(fd);
    return rc;
}

int lease_open(const char *path, struct lease *ret_lease, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, errno, "lease page %s", path);
    int rc = map(fd, path, PROT_READ, ret_lease, e);
    close(fd);
    return rc;
}

void lease_close(struct lease *l)
{
    if (l->page)
        munmap(l->page, PAGE);
    *l = (struct lease){0};
}

void lease_set(struct lease *l, uint64_t expiry_boot_ns) { __atomic_store_n(l->page, expiry_boot_ns, __ATOMIC_RELEASE); }
uint64_t lease_expiry(const struct lease *l) { return l->page ? __atomic_load_n(l->page, __ATOMIC_ACQUIRE) : 0; }
bool lease_valid(const struct lease *l) { return lease_expiry(l) > clock_boot_ns(); }
