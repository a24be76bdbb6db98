/* What a guest is made of, on this node: a plain value, filled by the daemon from the database row and local paths.
 * Threading: none. Ownership: no pointers inside; copy it freely. */
#ifndef COHORT_COMPUTE_SPEC_H
#define COHORT_COMPUTE_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "base/id.h"

#define MACHINE_DISKS_MAX 8
#define MACHINE_NICS_MAX 8
#define MACHINE_PATH_MAX 256
#define MACHINE_SOCK_MAX 108 /* sockaddr_un */
#define MACHINE_CMDLINE_MAX 2048

enum machine_type { MACHINE_Q35, MACHINE_MICROVM };
enum machine_accel { MACHINE_TCG, MACHINE_KVM };

struct machine_disk {
    int slot;                      /* 0..MACHINE_DISKS_MAX-1: its place on the guest's bus, the same on every node */
    char socket[MACHINE_SOCK_MAX]; /* vhost-user-blk; must listen before the guest is started */
};

struct machine_nic {
    int slot;
    char tap[16];  /* "ct" + 8 hex digits; made by machine_start(), removed when the machine has ended */
    char mac[18];
    int mtu;       /* offered to the guest; 0 = not */
    bool offload;  /* checksum and segmentation offload: false where packets leave through the userspace datapath of Open
                    * vSwitch, which takes them from the tap without finishing their checksums. Visible to the guest, so
                    * it must be the same on every node that the guest may migrate to. */
};

struct machine_spec {
    char id[ID_LEN + 1];
    char name[64];           /* letters, digits, '-', '_', '.' */
    int64_t generation;      /* Machine.generation of this life */
    int vcpus;
    int64_t memory_bytes;    /* as asked for; see machine_ram_bytes() */
    enum machine_type type;
    enum machine_accel accel;
    char cpu[64];            /* QEMU's -cpu; "" = machine_default_cpu() */
    char kernel[MACHINE_PATH_MAX], initrd[MACHINE_PATH_MAX]; /* kernel "": boots from the disk of the lowest slot */
    char cmdline[MACHINE_CMDLINE_MAX];
    int n_disks, n_nics;
    struct machine_disk disks[MACHINE_DISKS_MAX];
    struct machine_nic nics[MACHINE_NICS_MAX];
    bool incoming;           /* started as the destination of a migration */
    /* Limits of its cgroup; 0 = none. Memory counts the guest's RAM and the monitor's own. */
    int64_t memory_max_bytes;
    int cpu_max_permille;    /* 1000 = one processor */
};

/* Checks every field; the message names the wrong one. Also for specifications that came from a peer or a file. */
MUST_CHECK int machine_spec_check(const struct machine_spec *s, struct err *e);

/* Bytes of RAM that the guest really gets. Under TCG, QEMU 7.2's live migration can corrupt memory when the size is a
 * multiple of 256 KiB, so there the size is rounded up to one and 8 KiB are added; otherwise rounded up to 1 MiB. */
int64_t machine_ram_bytes(const struct machine_spec *s);

/* "host" for kvm; a fixed model without 5-level paging for tcg, the same on every node. */
const char *machine_default_cpu(enum machine_accel accel);

/* As JSON text (caller frees), and back with every field checked. Unknown members are refused. */
char *machine_spec_format(const struct machine_spec *s);
MUST_CHECK int machine_spec_parse(const char *text, size_t len, struct machine_spec *ret_spec, struct err *e);

const char *machine_type_name(enum machine_type t);
const char *machine_accel_name(enum machine_accel a);
bool machine_type_parse(const char *text, enum machine_type *ret_t);
bool machine_accel_parse(const char *text, enum machine_accel *ret_a);

#endif
