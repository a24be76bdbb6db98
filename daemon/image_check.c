/* Does a file look like the image it claims to be? See image_io.h. */
#include <string.h>
#include "daemon/image_io.h"

static bool at(const uint8_t *p, size_t len, size_t off, const void *magic, size_t n)
{
    return len >= off + n && memcmp(p + off, magic, n) == 0;
}

static const struct { size_t off; const char *magic; size_t n; const char *what; } foreign[] = {
    {0, "QFI\xfb", 4, "a qcow2 image"},      {0, "KDMV", 4, "a VMDK image"},        {0, "vhdxfile", 8, "a VHDX image"},
    {0, "conectix", 8, "a VHD image"},       {0x40, "\x7f\x10\xda\xbe", 4, "a VDI image"},
    {0, "\x1f\x8b", 2, "gzip-compressed"},   {0, "\xfd" "7zXZ", 5, "xz-compressed"}, {0, "\x28\xb5\x2f\xfd", 4, "zstd-compressed"},
    {0, "PK\x03\x04", 4, "a zip archive"},   {257, "ustar", 5, "a tar archive"},
};

static const char *recognise(const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (at(p, len, foreign[i].off, foreign[i].magic, foreign[i].n))
            return foreign[i].what;
    return NULL;
}

static bool raw_disk(const uint8_t *p, size_t len)
{
    return at(p, len, 510, "\x55\xaa", 2) || at(p, len, 512, "EFI PART", 8)  /* MBR, GPT */
           || at(p, len, 1080, "\x53\xef", 2) || at(p, len, 0, "XFSB", 4)    /* ext2-4, XFS */
           || at(p, len, 0x10040, "_BHRfS_M", 8) || at(p, len, 32769, "CD001", 5); /* btrfs, ISO 9660 */
}

static bool initrd(const uint8_t *p, size_t len)
{
    return at(p, len, 0, "070701", 6) || at(p, len, 0, "070702", 6) || at(p, len, 0, "\x1f\x8b", 2) || at(p, len, 0, "\xfd" "7zXZ", 5) ||
           at(p, len, 0, "\x28\xb5\x2f\xfd", 4) || at(p, len, 0, "\x02\x21\x4c\x18", 4) || at(p, len, 0, "BZh", 3) ||
           at(p, len, 0, "\x5d\x00\x00", 3) || at(p, len, 0, "\x89LZO", 4) || raw_disk(p, len);
}

int image_content_check(const char *file, const uint8_t *p, size_t len, struct err *e)
{
    const char *is = recognise(p, len);
    if (strcmp(file, "disk") == 0) {
        if (is)
            return err_set(e, E_INVAL, "file disk is %s, not a raw disk\nconvert it first: qemu-img convert -O raw FILE disk.raw", is);
        if (!raw_disk(p, len))
            return err_set(e, E_INVAL, "file disk is not a disk image: neither a partition table nor a known file system is in it");
    } else if (strcmp(file, "kernel") == 0) {
        if (!at(p, len, 0x202, "HdrS", 4) && !at(p, len, 0, "\x7f" "ELF", 4))
            return err_set(e, E_INVAL, "file kernel is not a Linux kernel: neither a bzImage (HdrS) nor an ELF file%s%s", is ? "; it is " : "", is ? is : "");
    } else if (strcmp(file, "initrd") == 0) {
        if (!initrd(p, len))
            return err_set(e, E_INVAL, "file initrd is not an initramfs: neither a cpio archive nor a known compression");
    } else if (strcmp(file, "cmdline") == 0) {
        for (size_t i = 0; i < len; i++)
            if (p[i] >= 0x7f || (p[i] < 0x20 && p[i] != '\n' && p[i] != '\t'))
                return err_set(e, E_INVAL, "file cmdline is not plain text (byte %zu)", i);
    }
    return E_OK;
}
