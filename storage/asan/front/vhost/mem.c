/* See mem.h. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include "base/buf.h"
#include "storage/asan/front/vhost/mem.h"

int vhost_map_fd(int fd, uint64_t offset, uint64_t size, bool allow_unsealed, void **ret_map, size_t *ret_map_len,
                 uint8_t **ret_at, struct err *e)
{
    struct stat st;
    uint64_t end;
    if (fstat(fd, &st))
        return err_sys(e, errno, "shared memory");
    if (!size || __builtin_add_overflow(offset, size, &end) || !S_ISREG(st.st_mode) || end > (uint64_t)st.st_size)
        return err_set(e, E_PROTO, "shared memory: %llu bytes at %llu are not within its file of %lld bytes",
                       (unsigned long long)size, (unsigned long long)offset, (long long)st.st_size);
    if (!allow_unsealed) {
        int seals = fcntl(fd, F_GET_SEALS);
        if (seals < 0 || !(seals & F_SEAL_SHRINK))
            return err_set(e, E_PROTO, "shared memory is not sealed against shrinking (a memfd with seal=on is needed)");
    }
    /* On hugetlbfs the offset must be a multiple of the huge page, which is st_blksize there. */
    uint64_t align = st.st_blksize >= 4096 && !(st.st_blksize & (st.st_blksize - 1)) ? (uint64_t)st.st_blksize : 4096;
    uint64_t start = offset & ~(align - 1);
    void *map = mmap(NULL, end - start, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)start);
    if (map == MAP_FAILED)
        return err_sys(e, errno, "map %llu bytes of shared memory", (unsigned long long)(end - start));
    (void)madvise(map, end - start, MADV_DONTDUMP); /* a core file of ours need not hold the guest's memory */
    *ret_map = map;
    *ret_map_len = end - start;
    *ret_at = (uint8_t *)map + (offset - start);
    return E_OK;
}

static int check_region(const struct vhu_msg_region *r, struct err *e)
{
    uint64_t end;
    if (!r->size || __builtin_add_overflow(r->gpa, r->size, &end) || __builtin_add_overflow(r->uaddr, r->size, &end))
        return err_set(e, E_PROTO, "memory region: bad address or size");
    return E_OK;
}

int vhost_mem_map(const struct vhu_msg_mem *table, const int *fd, int n_fds, bool allow_unsealed,
                  struct vhost_mem **ret_mem, struct err *e)
{
    if (!table->n || table->n > VHU_REGIONS_MAX || (int)table->n != n_fds)
        return err_set(e, E_PROTO, "memory table: %u regions with %d descriptors", table->n, n_fds);
    struct vhost_mem *m = xcalloc(1, sizeof *m);
    m->refs = 1;
    for (uint32_t i = 0; i < table->n; i++) {
        const struct vhu_msg_region *t = &table->r[i];
        struct vhost_mem_region *r = &m->r[i];
        int rc = check_region(t, e);
        if (!rc)
            rc = vhost_map_fd(fd[i], t->mmap_offset, t->size, allow_unsealed, &r->map, &r->map_len, &r->host, e);
        if (rc) {
            vhost_mem_unref(m);
            return rc;
        }
        r->gpa = t->gpa;
        r->uaddr = t->uaddr;
        r->size = t->size;
        m->n++;
    }
    *ret_mem = m;
    return E_OK;
}

struct vhost_mem *vhost_mem_ref(struct vhost_mem *m)
{
    m->refs++;
    return m;
}

void vhost_mem_unref(struct vhost_mem *m)
{
    if (!m || --m->refs)
        return;
    for (int i = 0; i < m->n; i++)
        munmap(m->r[i].map, m->r[i].map_len);
    free(m);
}

void *vhost_mem_gpa(const struct vhost_mem *m, uint64_t gpa, uint64_t *ret_len)
{
    for (int i = 0; i < m->n; i++) {
        const struct vhost_mem_region *r = &m->r[i];
        if (gpa >= r->gpa && gpa - r->gpa < r->size) {
            *ret_len = r->size - (gpa - r->gpa);
            return r->host + (gpa - r->gpa);
        }
    }
    return NULL;
}

void *vhost_mem_uaddr(const struct vhost_mem *m, uint64_t uaddr, uint64_t len)
{
    for (int i = 0; i < m->n; i++) {
        const struct vhost_mem_region *r = &m->r[i];
        if (uaddr >= r->uaddr && uaddr - r->uaddr < r->size && len <= r->size - (uaddr - r->uaddr))
            return r->host + (uaddr - r->uaddr);
    }
    return NULL;
}

uint64_t vhost_mem_to_gpa(const struct vhost_mem *m, const void *p)
{
    for (int i = 0; i < m->n; i++) {
        const struct vhost_mem_region *r = &m->r[i];
        if ((const uint8_t *)p >= r->host && (const uint8_t *)p < r->host + r->size)
            return r->gpa + (uint64_t)((const uint8_t *)p - r->host);
    }
    assert(!"address of another map");
    return 0;
}

void vhost_log_unmap(struct vhost_log *l)
{
    if (l->map)
        munmap(l->map, l->map_len);
    *l = (struct vhost_log){0};
}

void vhost_log_mark(const struct vhost_log *l, uint64_t gpa, uint64_t len)
{
    if (!l->bits || !len)
        return;
    uint64_t last = gpa + (len - 1) < gpa ? UINT64_MAX : gpa + (len - 1);
    for (uint64_t page = gpa / VHOST_LOG_PAGE; page <= last / VHOST_LOG_PAGE && page / 8 < l->bytes; page++)
        __atomic_fetch_or(&l->bits[page / 8], (uint8_t)(1u << (page % 8)), __ATOMIC_SEQ_CST);
}
