/* What /dev/kvm of this host is really worth, by measurement.
 *
 * Some hosts offer /dev/kvm without hardware behind it (nested virtualisation where only user-mode guest code runs
 * natively): kernel-mode guest code is then interpreted at about a thousandth of the speed, and instructions are missing.
 * No capability flag says so. A guest of a few bytes of kernel-mode code is therefore run and timed against the same loop
 * outside. */
#ifndef COHORT_COMPUTE_HOSTCHECK_H
#define COHORT_COMPUTE_HOSTCHECK_H

#include <stdbool.h>
#include <stdint.h>
#include "compute/spec.h"

enum hostcheck_kvm { HOSTCHECK_KVM_ABSENT, HOSTCHECK_KVM_UNUSABLE, HOSTCHECK_KVM_EMULATED, HOSTCHECK_KVM_NATIVE };

struct hostcheck {
    enum hostcheck_kvm kvm;
    enum machine_accel accel; /* what guests use by default */
    char reason[256];         /* why, in words for people */
    char kvm_cpu[64];         /* QEMU's -cpu for guests that insist on kvm */
    int api_version;          /* 0 = not known */
    bool irqfd, ioeventfd, dirty_log_protect;
    double guest_loops_s, native_loops_s; /* loop turns per second in guest kernel mode, and here; 0 = not measured */
};

/* Blocks for about 0.3 s, at most HOSTCHECK_MAX_MS. Measures in a child process: a /dev/kvm that hangs or crashes its
 * user cannot hurt the caller. Never fails: what goes wrong is a reason for tcg. `device` NULL: /dev/kvm. */
#define HOSTCHECK_MAX_MS 1500
void hostcheck_run(const char *device, struct hostcheck *ret_check);

const char *hostcheck_kvm_name(enum hostcheck_kvm k); /* absent, unusable, emulated, native */
/* As a JSON object in text; caller frees. */
char *hostcheck_json(const struct hostcheck *h);

/* Pure: sets kvm (from a measurement), accel, reason and kvm_cpu by the figures already in `h`. */
void hostcheck_judge(struct hostcheck *h);

/* kvm_probe.c: fills api_version, capabilities and rates. 0, or -1 with a reason in `why`. Only system calls. */
int hostcheck_probe(const char *device, struct hostcheck *h, char *why, unsigned long why_size);

#endif
