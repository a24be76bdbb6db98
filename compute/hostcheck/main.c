/* cohort-hostcheck [--json] [--device FILE]: says whether guests should use kvm or tcg on this host, and why.
 * Exit status: 0 = kvm, 1 = tcg, 2 = wrong usage. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include "compute/hostcheck/hostcheck.h"

int main(int argc, char **argv)
{
    static const struct option options[] = {{"json", 0, 0, 'j'}, {"device", 1, 0, 'd'}, {0}};
    const char *device = NULL;
    bool json = false;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'j')
            json = true;
        else if (c == 'd')
            device = optarg;
        else
            return 2;
    }
    if (optind != argc) {
        fprintf(stderr, "usage: cohort-hostcheck [--json] [--device FILE]\n");
        return 2;
    }
    struct hostcheck h;
    hostcheck_run(device, &h);
    if (json) {
        char *text = hostcheck_json(&h);
        puts(text);
        free(text);
    } else {
        printf("%s: %s\n", machine_accel_name(h.accel), h.reason);
    }
    return h.accel == MACHINE_KVM ? 0 : 1;
}
