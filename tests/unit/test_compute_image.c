/* Images: recognising files, copying one out of a volume. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/file.h"
#include "compute/image.h"

static void test_checks(void **state)
{
    unsigned char h[IMAGE_HEAD_BYTES] = {0};
    struct err e;
    enum image_kind k;
    assert_int_equal(image_check_kernel(h, sizeof h, 1 << 20, &k, &e), E_INVAL);
    assert_non_null(strstr(e.msg, "not an image"));
    memcpy(h + 0x202, "HdrS", 4);
    memcpy(h + 0x1fe, "\x55\xaa", 2);
    h[0x1f5] = 0x10; /* 0x1000 * 16 bytes of kernel */
    assert_int_equal(image_check_kernel(h, sizeof h, 1 << 20, &k, &e), E_OK);
    assert_int_equal(k, IMAGE_BZIMAGE);
    assert_int_equal(image_check_kernel(h, sizeof h, 65536, &k, &e), E_INVAL); /* cut off */
    assert_int_equal(image_check_kernel(h, 100, 1 << 20, &k, &e), E_INVAL);
    memset(h, 0, sizeof h);
    memcpy(h, "\177ELF\2\1", 6);
    assert_int_equal(image_check_kernel(h, sizeof h, 1 << 20, &k, &e), E_INVAL);
    h[0x12] = 62;
    assert_int_equal(image_check_kernel(h, sizeof h, 1 << 20, &k, &e), E_OK);
    assert_int_equal(k, IMAGE_VMLINUX);
    assert_int_equal(image_check_kernel(h, 6, 6, &k, &e), E_INVAL);

    memset(h, 0, sizeof h);
    assert_int_equal(image_check_disk(h, sizeof h, 1 << 20, &e), E_INVAL);
    memcpy(h + 0x1fe, "\x55\xaa", 2);
    assert_int_equal(image_check_disk(h, sizeof h, 1 << 20, &e), E_OK);
    assert_int_equal(image_check_disk(h, sizeof h, 600, &e), E_INVAL);
    memcpy(h, "QFI\xfb", 4);
    assert_int_equal(image_check_disk(h, sizeof h, 1 << 20, &e), E_INVAL);
    assert_non_null(strstr(e.msg, "qemu-img convert"));
    memcpy(h, "\x1f\x8b\x08", 3);
    assert_int_equal(image_check_disk(h, sizeof h, 1 << 20, &e), E_INVAL);
    assert_int_equal(image_check_initrd(h, sizeof h, 1 << 20, &e), E_OK);
    assert_int_equal(image_check_initrd("text", 4, 4, &e), E_INVAL);
}

static void test_file_text(void **state)
{
    static const char *const bad[] = {"", "1", "1,2", "1,2,3", "-1,2,aa", "0,5,zz", "0,99999999999999999999999,aa", "1,5,", "0,5,?aa", "0,5,??"};
    struct image_file f;
    struct err e;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(image_file_parse(bad[i], &f, &e), E_INVAL);
    char text[112], again[112];
    snprintf(text, sizeof text, "4096,77,%064d", 7);
    assert_int_equal(image_file_parse(text, &f, &e), E_OK);
    image_file_format(&f, again);
    assert_string_equal(text, again);
    assert_true(f.complete);
    assert_int_equal(image_file_parse("512,9,?", &f, &e), E_OK);
    assert_false(f.complete);
    image_file_format(&f, again);
    assert_string_equal(again, "512,9,?");
    text[0] = '3'; /* offset 3096: not a multiple of 512 */
    assert_int_equal(image_file_parse(text, &f, &e), E_INVAL);
}

/* ---- fetch ---- */

struct volume {
    uint8_t *data;
    uint64_t bytes;
    int reads, fail_at; /* the n-th read fails; 0 = none */
    uv_timer_t timer;
    image_read_done *done;
    void *arg;
    int status;
};
static void read_now(uv_timer_t *t)
{
    struct volume *v = t->data;
    v->done(v->arg, v->status);
}
static void volume_read(void *ctx, uint64_t offset, void *buf, size_t n, image_read_done *done, void *arg)
{
    struct volume *v = ctx;
    assert_true(offset % 512 == 0 && n % 512 == 0 && offset + n <= v->bytes);
    v->status = ++v->reads == v->fail_at ? E_CORRUPT : E_OK;
    memcpy(buf, v->data + offset, n);
    v->done = done;
    v->arg = arg;
    uv_timer_start(&v->timer, read_now, 0, 0);
}

struct result {
    int came, status;
    char path[256];
};
static void fetched(void *arg, int status, const char *path, const struct err *e)
{
    struct result *r = arg;
    r->came++;
    r->status = status;
    snprintf(r->path, sizeof r->path, "%s", path ? path : "");
}
static struct result fetch(struct volume *v, const struct image_file *f, const char *dir, const char *name)
{
    struct result r = {0};
    image_fetch(uv_default_loop(), &(struct image_reader){volume_read, v}, v->bytes, f, dir, name, fetched, &r);
    assert_int_equal(r.came, 0);
    while (!r.came)
        uv_run(uv_default_loop(), UV_RUN_ONCE);
    assert_int_equal(r.came, 1);
    return r;
}

static void test_fetch(void **state)
{
    char dir[] = "/tmp/cohort-test-XXXXXX", *text, sub[64];
    size_t len;
    assert_non_null(mkdtemp(dir));
    snprintf(sub, sizeof sub, "%s/images/i1", dir);
    struct volume v = {.bytes = 4 << 20};
    v.data = xmalloc(v.bytes);
    for (uint64_t i = 0; i < v.bytes; i++)
        v.data[i] = (uint8_t)(i * 7 + i / 4096);
    uv_timer_init(uv_default_loop(), &v.timer);
    v.timer.data = &v;
    struct image_file f = {.offset = 1024, .length = (2 << 20) + 77};
    uint8_t md[32];
    assert_int_equal(EVP_Digest(v.data + f.offset, f.length, md, NULL, EVP_sha256(), NULL), 1);
    for (int i = 0; i < 32; i++)
        snprintf(f.sha256 + 2 * i, 3, "%02x", md[i]);

    /* Fails at every read, then succeeds; never is there a file before. */
    struct result r;
    for (v.fail_at = 1;; v.fail_at++) {
        v.reads = 0;
        r = fetch(&v, &f, sub, "kernel");
        if (r.status == E_OK)
            break;
        assert_int_equal(r.status, E_CORRUPT);
        assert_int_equal(file_read(r.path[0] ? r.path : "/nonexistent", 1, &text, NULL, NULL), E_NOTFOUND);
    }
    assert_int_equal(v.fail_at, 4);
    assert_int_equal(file_read(r.path, 8 << 20, &text, &len, NULL), E_OK);
    assert_int_equal(len, f.length);
    assert_memory_equal(text, v.data + f.offset, len);
    free(text);
    /* Again: nothing is read. */
    v.reads = v.fail_at = 0;
    assert_int_equal(fetch(&v, &f, sub, "kernel").status, E_OK);
    assert_int_equal(v.reads, 0);
    /* Another sum: refused, and the old file stays. */
    struct image_file wrong = f;
    wrong.sha256[0] = wrong.sha256[0] == '0' ? '1' : '0';
    assert_int_equal(fetch(&v, &wrong, sub, "kernel").status, E_CORRUPT);
    assert_int_equal(fetch(&v, &f, sub, "kernel").status, E_OK);
    /* Outside the volume, and names that lead elsewhere. */
    wrong = f;
    wrong.offset = v.bytes - 512;
    assert_int_equal(fetch(&v, &wrong, sub, "kernel").status, E_INVAL);
    assert_int_equal(fetch(&v, &f, sub, "../kernel").status, E_INVAL);
    uv_close((uv_handle_t *)&v.timer, NULL);
    uv_run(uv_default_loop(), UV_RUN_NOWAIT);
    free(v.data);
    char *rm = xasprintf("rm -rf %s", dir);
    assert_int_equal(system(rm), 0);
    free(rm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_checks), cmocka_unit_test(test_file_text), cmocka_unit_test(test_fetch)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
