/* Runs a fuzz target over the files of a corpus directory, plus every truncation of each to 64 bytes steps: the part of
 * fuzzing that fits into a test run. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void run_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    static uint8_t bytes[1 << 20];
    size_t n = f ? fread(bytes, 1, sizeof bytes, f) : 0;
    if (f)
        fclose(f);
    for (size_t len = n;; len = len > 64 ? len - 64 : 0) {
        uint8_t *exact = malloc(len ? len : 1); /* so that a read past the end is seen by AddressSanitizer */
        for (size_t i = 0; i < len; i++)
            exact[i] = bytes[i];
        LLVMFuzzerTestOneInput(exact, len);
        free(exact);
        if (!len)
            return;
    }
}

int main(int argc, char **argv)
{
    DIR *d = argc == 2 ? opendir(argv[1]) : NULL;
    int n = 0;
    if (!d) {
        fprintf(stderr, "no corpus directory %s\n", argc == 2 ? argv[1] : "given");
        return 2;
    }
    for (struct dirent *e; (e = readdir(d));) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", argv[1], e->d_name);
        if (e->d_name[0] != '.') {
            run_file(path);
            n++;
        }
    }
    closedir(d);
    printf("%d corpus files replayed\n", n);
    return n == 0;
}
