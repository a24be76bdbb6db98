/* A guest for tests of the machine layer: a PVH kernel of a few hundred bytes that starts in milliseconds, in 32-bit
 * protected mode without paging, and keeps checking its own memory.
 *
 * It sweeps 16 MiB again and again: every word must hold what the last sweep wrote there (a function of address and sweep
 * number), and gets the value of this one. After each sweep it prints "ok <number>" to the serial port; "BAD" and the
 * address if a word was not as it left it, and nothing ever after. On q35 it watches the ACPI power button (QEMU: PM base
 * 0x600) and switches off. */
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define FIRST 0x1000000u
#define END 0x2000000u
#define STRIDE 256u

static inline void outb(u16 port, u8 v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static inline void outw(u16 port, u16 v) { __asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port)); }
static inline u8 inb(u16 port)
{
    u8 v;
    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline u16 inw(u16 port)
{
    u16 v;
    __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

static void put(const char *s)
{
    for (; *s; s++) {
        while (!(inb(0x3fd) & 0x20))
            ;
        outb(0x3f8, (u8)*s);
    }
}

static void put_number(u32 n)
{
    char t[11], *p = t + sizeof t - 1;
    *p = 0;
    do
        *--p = (char)('0' + n % 10);
    while (n /= 10);
    put(p);
}

static inline u32 pattern(u32 address, u32 sweep) { return (address * 2654435761u) ^ (sweep * 40503u + sweep); }

void guest_main(void);
void guest_main(void)
{
    outw(0x602, 0x100); /* enable the power button's status bit */
    put("hello\n");
    for (u32 sweep = 1;; sweep++) {
        for (u32 a = FIRST; a < END; a += STRIDE) {
            volatile u32 *p = (volatile u32 *)a;
            if (sweep > 1 && *p != pattern(a, sweep - 1)) {
                put("BAD ");
                put_number(a);
                put("\n");
                for (;;)
                    __asm__ volatile("hlt");
            }
            *p = pattern(a, sweep);
        }
        put("ok ");
        put_number(sweep);
        put("\n");
        u16 pm = inw(0x600); /* all ones: no such port (microvm) */
        if (pm != 0xffff && pm & 0x100) {
            put("off\n");
            outw(0x604, 0x2000);
        }
    }
}

/* Entry point (Xen's PVH note, type 18: XEN_ELFNOTE_PHYS32_ENTRY) and a stack. */
__asm__(".pushsection .note.Xen, \"a\", @note\n"
        ".long 4, 4, 18\n .asciz \"Xen\"\n .long _start\n"
        ".popsection\n"
        ".pushsection .text.start, \"ax\"\n"
        ".globl _start\n"
        "_start: movl $stack_top, %esp\n cld\n call guest_main\n"
        "1: hlt\n jmp 1b\n"
        ".popsection\n"
        ".pushsection .bss\n .balign 16\n .skip 4096\n stack_top:\n .popsection\n");
