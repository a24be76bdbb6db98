/* What a file is that someone calls an image: by its first bytes. See image.h. */
#include <string.h>
#include "compute/image.h"

struct magic {
    size_t at;
    const char *bytes;
    size_t n;
    const char *what;
};
#define MAGIC(at, text, what) {at, text, sizeof text - 1, what}

static bool has(const unsigned char *h, size_t n, const struct magic *m)
{
    return m->at + m->n <= n && memcmp(h + m->at, m->bytes, m->n) == 0;
}

int image_check_kernel(const void *head, size_t n, uint64_t size, enum image_kind *ret_kind, struct err *e)
{
    static const struct magic elf64 = MAGIC(0, "\177ELF\2\1", ""), hdrs = MAGIC(0x202, "HdrS", ""), boot = MAGIC(0x1fe, "\x55\xaa", "");
    const unsigned char *h = head;
    if (has(h, n, &elf64) && n >= 0x14) {
        if (h[0x12] != 62 || h[0x13] != 0) /* e_machine: EM_X86_64 */
            return err_set(e, E_INVAL, "not an image: an ELF file, but not for x86-64");
        *ret_kind = IMAGE_VMLINUX;
        return E_OK;
    }
    if (has(h, n, &hdrs) && has(h, n, &boot)) {
        /* Linux boot protocol: setup sectors (0 means 4) and the protected-mode part in 16-byte units at 0x1f4. */
        uint64_t setup = (h[0x1f1] ? h[0x1f1] : 4) + 1u;
        uint64_t body = ((uint64_t)h[0x1f4] | (uint64_t)h[0x1f5] << 8 | (uint64_t)h[0x1f6] << 16 | (uint64_t)h[0x1f7] << 24) * 16;
        if (setup * 512 + body > size)
            return err_set(e, E_INVAL, "not an image: the kernel is cut off (%llu bytes of %llu)", (unsigned long long)size,
                           (unsigned long long)(setup * 512 + body));
        *ret_kind = IMAGE_BZIMAGE;
        return E_OK;
    }
    return err_set(e, E_INVAL, "not an image: neither a Linux bzImage nor an x86-64 ELF kernel");
}

int image_check_disk(const void *head, size_t n, uint64_t size, struct err *e)
{
    static const struct magic foreign[] = {
        MAGIC(0, "QFI\xfb", "qcow2"), MAGIC(0, "KDMV", "vmdk"), MAGIC(0, "vhdxfile", "vhdx"), MAGIC(0, "conectix", "vpc"),
        MAGIC(0x40, "\x7f\x10\xda\xbe", "vdi"),
    };
    static const struct magic packed[] = {MAGIC(0, "\x1f\x8b", "gzip"), MAGIC(0, "\xfd" "7zXZ", "xz"), MAGIC(0, "\x28\xb5\x2f\xfd", "zstd"),
                                          MAGIC(0, "BZh", "bzip2")};
    static const struct magic mbr = MAGIC(0x1fe, "\x55\xaa", ""), gpt = MAGIC(512, "EFI PART", ""), gpt4k = MAGIC(4096, "EFI PART", "");
    const unsigned char *h = head;
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (has(h, n, &foreign[i]))
            return err_set(e, E_INVAL, "not a raw image but %s: convert it first: qemu-img convert -f %s -O raw FILE FILE.raw",
                           foreign[i].what, foreign[i].what);
    for (size_t i = 0; i < sizeof packed / sizeof *packed; i++)
        if (has(h, n, &packed[i]))
            return err_set(e, E_INVAL, "not a raw image but compressed with %s: unpack it first", packed[i].what);
    if (!has(h, n, &mbr) && !has(h, n, &gpt) && !has(h, n, &gpt4k))
        return err_set(e, E_INVAL, "not an image: neither MBR nor GPT at its beginning");
    if (size < 1024 * 1024)
        return err_set(e, E_INVAL, "not an image: a disk of only %llu bytes", (unsigned long long)size);
    return E_OK;
}

int image_check_initrd(const void *head, size_t n, uint64_t size, struct err *e)
{
    static const struct magic known[] = {
        MAGIC(0, "070701", ""), MAGIC(0, "070702", ""),           MAGIC(0, "\x1f\x8b", ""),         MAGIC(0, "\xfd" "7zXZ", ""),
        MAGIC(0, "BZh", ""),    MAGIC(0, "\x28\xb5\x2f\xfd", ""), MAGIC(0, "\x02\x21\x4c\x18", ""), MAGIC(0, "\x5d\0\0", ""),
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (size > 16 && has(head, n, &known[i]))
            return E_OK;
    return err_set(e, E_INVAL, "not an image: the initrd is no cpio archive, plain or compressed");
}
