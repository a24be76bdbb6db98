/* A guest of one loop on a bare /dev/kvm: 64-bit kernel mode (CPL 0), one page of code, 2 MiB identity-mapped.
 *
 * Runs in a forked child of what may be a threaded daemon: system calls and memory of its own only, no malloc, no stdio
 * streams, no locks. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "compute/hostcheck/hostcheck.h"

/* Guest-physical layout within its 2 MiB. */
#define MEM_BYTES (2u << 20)
#define PML4 0x1000
#define PDPT 0x2000
#define PD 0x3000
#define CODE 0x10000
#define DONE_PORT 0x501

#define FIRST_TURNS 2000u
#define ENOUGH_NS 60000000ull /* a run of this length is a measurement */

/*      mov edx, 0x501
 *   1: dec ecx
 *      jnz 1b
 *      out dx, eax
 *      jmp .             (not reached: registers are set anew for each run) */
static const unsigned char code[] = {0xba, 0x01, 0x05, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xfc, 0xef, 0xeb, 0xfe};

struct vm {
    int kvm, fd, vcpu;
    unsigned char *mem;
    struct kvm_run *run;
    size_t run_bytes;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int failed(char *why, unsigned long size, const char *what)
{
    snprintf(why, size, "%s: %s", what, strerrordesc_np(errno));
    return -1;
}

static void put64(struct vm *vm, unsigned at, uint64_t v) { memcpy(vm->mem + at, &v, sizeof v); }

static int set_long_mode(struct vm *vm)
{
    struct kvm_sregs s;
    if (ioctl(vm->vcpu, KVM_GET_SREGS, &s) < 0)
        return -1;
    struct kvm_segment cs = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment ds = {.limit = ~0u, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
    s.cs = cs;
    s.ds = s.es = s.fs = s.gs = s.ss = ds;
    s.tr = (struct kvm_segment){.limit = 0x67, .type = 11, .present = 1};
    s.ldt.unusable = 1;
    s.cr0 = 0x80000013; /* PG, ET, MP, PE */
    s.cr3 = PML4;
    s.cr4 = 0x20;  /* PAE */
    s.efer = 0x500; /* LMA, LME */
    return ioctl(vm->vcpu, KVM_SET_SREGS, &s);
}

/* Long mode is refused to a guest whose CPUID does not offer it. */
static int set_cpuid(struct vm *vm)
{
    static union {
        struct kvm_cpuid2 h;
        uint8_t room[sizeof(struct kvm_cpuid2) + 128 * sizeof(struct kvm_cpuid_entry2)];
    } c;
    c.h.nent = 128;
    if (ioctl(vm->kvm, KVM_GET_SUPPORTED_CPUID, &c) < 0)
        return -1;
    return ioctl(vm->vcpu, KVM_SET_CPUID2, &c);
}

static int build(struct vm *vm, char *why, unsigned long size)
{
    vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, 0);
    if (vm->fd < 0)
        return failed(why, size, "KVM_CREATE_VM");
    if (ioctl(vm->fd, KVM_SET_TSS_ADDR, 0xfffbd000ul) < 0)
        return failed(why, size, "KVM_SET_TSS_ADDR");
    vm->mem = mmap(NULL, MEM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (vm->mem == MAP_FAILED)
        return failed(why, size, "guest memory");
    struct kvm_userspace_memory_region r = {.memory_size = MEM_BYTES, .userspace_addr = (uintptr_t)vm->mem};
    if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &r) < 0)
        return failed(why, size, "KVM_SET_USER_MEMORY_REGION");
    put64(vm, PML4, PDPT | 3);
    put64(vm, PDPT, PD | 3);
    put64(vm, PD, 0x83); /* one page of 2 MiB */
    memcpy(vm->mem + CODE, code, sizeof code);
    vm->vcpu = ioctl(vm->fd, KVM_CREATE_VCPU, 0);
    if (vm->vcpu < 0)
        return failed(why, size, "KVM_CREATE_VCPU");
    int bytes = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (bytes < (int)sizeof *vm->run)
        return failed(why, size, "KVM_GET_VCPU_MMAP_SIZE");
    vm->run_bytes = (size_t)bytes;
    vm->run = mmap(NULL, vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
    if (vm->run == MAP_FAILED)
        return failed(why, size, "the processor's shared page");
    if (set_cpuid(vm) < 0 || set_long_mode(vm) < 0)
        return failed(why, size, "setting up the processor");
    return 0;
}

/* One run of the loop: its time in ns, 0 = it did not get to its end. */
static uint64_t run_loop(struct vm *vm, uint32_t turns)
{
    struct kvm_regs g = {.rip = CODE, .rcx = turns, .rflags = 2, .rsp = CODE};
    if (ioctl(vm->vcpu, KVM_SET_REGS, &g) < 0)
        return 0;
    uint64_t start = now_ns();
    for (;;) {
        int r = ioctl(vm->vcpu, KVM_RUN, 0);
        if (r < 0 && errno != EINTR && errno != EAGAIN)
            return 0;
        if (r < 0)
            continue;
        if (vm->run->exit_reason == KVM_EXIT_IO && vm->run->io.port == DONE_PORT)
            return now_ns() - start;
        errno = ENOSYS; /* an exit that this code cannot cause: KVM did not get through it */
        return 0;
    }
}

static double guest_rate(struct vm *vm)
{
    for (uint32_t turns = FIRST_TURNS;; turns *= 4) {
        uint64_t ns = run_loop(vm, turns);
        if (ns == 0)
            return 0;
        if (ns >= ENOUGH_NS || turns > 1u << 28)
            return turns * 1e9 / (double)ns;
    }
}

static double native_rate(void)
{
    for (uint32_t turns = 1u << 20;; turns *= 4) {
        uint32_t n = turns;
        uint64_t start = now_ns();
        __asm__ volatile("1: decl %0\n jnz 1b" : "+r"(n) : : "cc");
        uint64_t ns = now_ns() - start;
        if (ns >= ENOUGH_NS || turns > 1u << 28)
            return turns * 1e9 / (double)(ns ? ns : 1);
    }
}

static void release(struct vm *vm)
{
    if (vm->run != MAP_FAILED)
        munmap(vm->run, vm->run_bytes);
    if (vm->mem != MAP_FAILED)
        munmap(vm->mem, MEM_BYTES);
    const int fds[] = {vm->vcpu, vm->fd, vm->kvm};
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

int hostcheck_probe(const char *device, struct hostcheck *h, char *why, unsigned long why_size)
{
    struct vm vm = {.fd = -1, .vcpu = -1, .mem = MAP_FAILED, .run = MAP_FAILED};
    vm.kvm = open(device, O_RDWR | O_CLOEXEC);
    if (vm.kvm < 0)
        return failed(why, why_size, "open");
    int rc = 0;
    h->api_version = ioctl(vm.kvm, KVM_GET_API_VERSION, 0);
    if (h->api_version != KVM_API_VERSION) {
        snprintf(why, why_size, "not KVM with API version %d", KVM_API_VERSION);
        rc = -1;
    }
    if (rc == 0) {
        h->irqfd = ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_IRQFD) > 0;
        h->ioeventfd = ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_IOEVENTFD) > 0;
        h->dirty_log_protect = ioctl(vm.kvm, KVM_CHECK_EXTENSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) > 0;
        rc = build(&vm, why, why_size);
    }
    if (rc == 0) {
        h->guest_loops_s = guest_rate(&vm);
        h->native_loops_s = native_rate();
        if (h->guest_loops_s <= 0)
            rc = failed(why, why_size, "running guest code");
    }
    release(&vm);
    return rc;
}
