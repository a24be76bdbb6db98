/* Images on a node: files of a kernel image as files that QEMU can read, and a first look at what someone imports.
 *
 * An image's bytes lie in a sealed volume; Image.files says where: name -> "offset,length,sha256". For direct kernel boot
 * they are copied once per node to <state_dir>/images/<image id>/<name>, checked against the sum, and appear there under
 * their name only when complete and on disk. Threading: the loop's; writing and summing happen on libuv's workers. */
#ifndef COHORT_COMPUTE_IMAGE_H
#define COHORT_COMPUTE_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>
#include "base/err.h"

/* ---- one file of an image ---- */

struct image_file {
    uint64_t offset, length; /* bytes within the volume */
    bool complete;           /* its bytes are in the volume */
    char sha256[65];         /* lower-case hex: of what is there, or what is expected ("": anything) while it is not */
};
/* "offset,length,sha256" as in Image.files; while the file is being imported the last part is "?" and the sum that is
 * expected, or only "?". E_INVAL. */
MUST_CHECK int image_file_parse(const char *text, struct image_file *ret_file, struct err *e);
/* Into at least 112 bytes. */
void image_file_format(const struct image_file *f, char ret_text[112]);

/* ---- copying it out ---- */

typedef void image_read_done(void *arg, int status);
struct image_reader {
    /* Reads [offset, offset+length) of the image's volume into `buf`, which stays valid until `done`; offset and length are
     * multiples of 512. `done` on the same loop, not inside the call. */
    void (*read)(void *ctx, uint64_t offset, void *buf, size_t length, image_read_done *done, void *arg);
    void *ctx;
};

/* `path`: the file, once it is there with the right length and sum (valid during the callback); else NULL. */
typedef void image_fetched(void *arg, int status, const char *path, const struct err *e);
struct image_fetch;

/* Makes `dir`/`name` out of `f`. If it is there already (from an earlier fetch: its sum is part of a hidden mark beside it)
 * nothing is read. E_CORRUPT: the sum is wrong. E_IO, E_NOSPC, or what the reader reported. `volume_bytes` bounds what may
 * be read. `fn` is called once, never inside this call. Two fetches of one file at a time are the caller's to avoid. */
void image_fetch(uv_loop_t *loop, const struct image_reader *reader, uint64_t volume_bytes, const struct image_file *f,
                 const char *dir, const char *name, image_fetched *fn, void *arg);

/* ---- what is it? (pure; `head` = the file's first bytes, up to IMAGE_HEAD_BYTES, `size` = its length) ---- */

#define IMAGE_HEAD_BYTES 4096

enum image_kind { IMAGE_BZIMAGE, IMAGE_VMLINUX, IMAGE_DISK };

/* A Linux kernel: bzImage of x86 or a 64-bit ELF vmlinux. E_INVAL "not an image: …" otherwise. */
MUST_CHECK int image_check_kernel(const void *head, size_t n, uint64_t size, enum image_kind *ret_kind, struct err *e);
/* A raw disk with an MBR or GPT. qcow2 and others are refused with the command that converts them. */
MUST_CHECK int image_check_disk(const void *head, size_t n, uint64_t size, struct err *e);
/* An initial RAM file system: cpio (newc), plain or compressed with gzip, xz, zstd, lz4, bzip2 or lzma. */
MUST_CHECK int image_check_initrd(const void *head, size_t n, uint64_t size, struct err *e);

#endif
