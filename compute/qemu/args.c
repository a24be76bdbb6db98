/* QEMU's command line. What a guest can see of it (machine type, addresses of devices, their features) must come out the
 * same on every node for the same specification: a live migration needs two equal machines. */
#include "compute/qemu/args.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"

/* Slots of the PCIe root bus: fixed by slot number, so that a missing or added device moves no other. */
#define PCI_RNG 0x3
#define PCI_DISK 0x8
#define PCI_NIC 0x10

#define DISK_QUEUES_MAX 4

static void add(struct qemu_args *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct qemu_args *a, const char *fmt, ...)
{
    struct buf b;
    va_list ap;
    buf_init(&b);
    va_start(ap, fmt);
    buf_vprintf(&b, fmt, ap);
    va_end(ap);
    if (a->n + 2 > a->cap) {
        a->cap = a->cap ? a->cap * 2 : 64;
        a->v = xrealloc(a->v, (size_t)a->cap * sizeof *a->v);
    }
    a->v[a->n++] = buf_take(&b);
    a->v[a->n] = NULL;
}

/* In QEMU's option lists a comma within a value is written twice. Caller frees. */
static char *quote(const char *s)
{
    struct buf b;
    buf_init(&b);
    for (; *s; s++)
        buf_printf(&b, *s == ',' ? ",," : "%c", *s);
    return buf_take(&b);
}

static void add_machine(struct qemu_args *a, const struct machine_spec *s)
{
    add(a, "-machine");
    /* q35 by its versioned name: "q35" means something else in the next QEMU. microvm has no versions. ACPI and PCIe on
     * microvm are given explicitly because "auto" differs between accelerators. */
    if (s->type == MACHINE_MICROVM)
        add(a, "microvm,memory-backend=ram,acpi=on,pcie=on,rtc=on,x-option-roms=off,auto-kernel-cmdline=off");
    else
        add(a, "pc-q35-7.2,memory-backend=ram,vmport=off");
    add(a, "-accel");
    add(a, "%s", machine_accel_name(s->accel));
    add(a, "-cpu");
    add(a, "%s", s->cpu[0] ? s->cpu : machine_default_cpu(s->accel));
    add(a, "-smp");
    add(a, "%d", s->vcpus);
    /* Shared memory: vhost-user backends map it. */
    long long kib = machine_ram_bytes(s) >> 10;
    add(a, "-m");
    add(a, "%lldK", kib);
    add(a, "-object");
    add(a, "memory-backend-memfd,id=ram,size=%lldK,share=on", kib);
    add(a, "-rtc");
    add(a, "base=utc");
}

static void add_boot(struct qemu_args *a, const struct machine_spec *s, const struct qemu_env *env)
{
    if (!s->kernel[0])
        return;
    add(a, "-kernel");
    add(a, "%s", s->kernel);
    if (s->initrd[0]) {
        add(a, "-initrd");
        add(a, "%s", s->initrd);
    }
    /* A microvm under TCG has neither HPET nor PM timer nor kvmclock: Linux calibrates its TSC against the PIT, which
     * fails on a busy host, and then hangs without any clock. TCG passes the host's counter through, so its rate is known. */
    bool tsc = s->type == MACHINE_MICROVM && s->accel == MACHINE_TCG && env->tsc_khz;
    if (!s->cmdline[0] && !tsc)
        return;
    add(a, "-append");
    if (tsc)
        add(a, "%s%stsc_early_khz=%u", s->cmdline, s->cmdline[0] ? " " : "", env->tsc_khz);
    else
        add(a, "%s", s->cmdline);
}

/* A control socket of ours in the guest's directory. */
static void add_monitor(struct qemu_args *a, const char *dir, const char *name)
{
    add(a, "-chardev");
    add(a, "socket,id=%s,path=%s/%s.sock,server=on,wait=off", name, dir, name);
    add(a, "-mon");
    add(a, "chardev=%s,mode=control", name);
}

static int boot_slot(const struct machine_spec *s)
{
    int lowest = MACHINE_DISKS_MAX;
    for (int i = 0; i < s->n_disks; i++)
        if (s->disks[i].slot < lowest)
            lowest = s->disks[i].slot;
    return s->kernel[0] ? -1 : lowest;
}

static void add_disks(struct qemu_args *a, const struct machine_spec *s)
{
    int queues = s->vcpus < DISK_QUEUES_MAX ? s->vcpus : DISK_QUEUES_MAX;
    for (int i = 0; i < s->n_disks; i++) {
        const struct machine_disk *d = &s->disks[i];
        char *path = quote(d->socket);
        add(a, "-chardev");
        add(a, "socket,id=disk%d,path=%s,reconnect=1", d->slot, path); /* the daemon serves it and may restart */
        add(a, "-device");
        add(a, "vhost-user-blk-pci,id=vd%d,chardev=disk%d,num-queues=%d,queue-size=512,addr=%#x%s", d->slot, d->slot, queues,
            PCI_DISK + d->slot, d->slot == boot_slot(s) ? ",bootindex=0" : "");
        free(path);
    }
}

static void add_nics(struct qemu_args *a, const struct machine_spec *s, const struct qemu_env *env)
{
    static const char no_offload[] =
        ",csum=off,gso=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off"
        ",guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";
    for (int i = 0; i < s->n_nics; i++) {
        const struct machine_nic *n = &s->nics[i];
        add(a, "-netdev");
        add(a, "tap,id=net%d,ifname=%s,script=no,downscript=no,vhost=%s", n->slot, n->tap,
            env->vhost_net && n->offload ? "on" : "off");
        add(a, "-device");
        struct buf b;
        buf_init(&b);
        if (n->mtu)
            buf_printf(&b, ",host_mtu=%d", n->mtu);
        if (!n->offload)
            buf_append(&b, no_offload, sizeof no_offload - 1);
        char *more = buf_take(&b);
        /* romfile= : no network boot, and no option ROM that would have to be equal on both sides of a migration. */
        add(a, "virtio-net-pci,id=nic%d,netdev=net%d,mac=%s,addr=%#x,romfile=%s", n->slot, n->slot, n->mac, PCI_NIC + n->slot, more);
        free(more);
    }
}

void qemu_args_build(const struct machine_spec *s, const struct qemu_env *env, struct qemu_args *ret_args)
{
    struct qemu_args a = {0};
    char *dir = quote(env->dir);
    add(&a, "%s", env->program ? env->program : "qemu-system-x86_64");
    add(&a, "-name");
    add(&a, "guest=%s,debug-threads=on", s->name);
    add(&a, "-uuid");
    add(&a, "%s", s->id);
    add(&a, "-nodefaults");
    add(&a, "-no-user-config");
    add(&a, "-display");
    add(&a, "none");
    add(&a, "-sandbox");
    add(&a, "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    /* Never runs by itself: the daemon lets it go when the guard watches (and, as a migration's destination, when the
     * database says that the guest lives here). */
    add(&a, "-S");
    /* A guest that switched itself off stays visible as such until the daemon has seen it; see machine_status.c. */
    add(&a, "-no-shutdown");
    add_machine(&a, s);
    add_boot(&a, s, env);
    add_monitor(&a, dir, "qmp");
    add_monitor(&a, dir, "guard");
    add(&a, "-chardev");
    add(&a, "socket,id=console,path=%s/console.sock,server=on,wait=off,logfile=%s/serial.log,logappend=on", dir, dir);
    add(&a, "-serial");
    add(&a, "chardev:console");
    add(&a, "-device");
    add(&a, "virtio-rng-pci,id=rng,addr=%#x", PCI_RNG);
    add_disks(&a, s);
    add_nics(&a, s, env);
    if (s->incoming) {
        add(&a, "-incoming");
        add(&a, "defer");
    }
    free(dir);
    *ret_args = a;
}

void qemu_args_free(struct qemu_args *a)
{
    for (int i = 0; i < a->n; i++)
        free(a->v[i]);
    free(a->v);
    *a = (struct qemu_args){0};
}
