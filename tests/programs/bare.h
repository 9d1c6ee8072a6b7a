// What the programs here have in place of a C library: system calls, and a beginning that calls `begin`.

typedef unsigned long u64;
typedef unsigned int u32;
typedef int i32;
typedef unsigned char u8;

#define FINE 42
#define PAGE 4096ul

static inline __attribute__((always_inline)) long call(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#define CALL6(n, a, b, c, d, e, f, ...) call(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define CALL(...) CALL6(__VA_ARGS__, 0, 0, 0, 0, 0, 0)

enum {
    READ = 0, WRITE = 1, OPEN = 2, CLOSE = 3, LSEEK = 8, MMAP = 9, MPROTECT = 10, MUNMAP = 11, BRK = 12, SIGACTION = 13,
    PIPE = 22, YIELD = 24, MREMAP = 25, MADVISE = 28, NANOSLEEP = 35, GETPID = 39, CLONE = 56, FORK = 57, EXIT = 60,
    WAIT4 = 61, FTRUNCATE = 77, UNLINK = 87, GETPPID = 110, SETAFFINITY = 203, GETAFFINITY = 204, FUTEX = 202,
    EXIT_GROUP = 231, MOVE_PAGES = 279, GETCPU = 309,
};
enum { PROT_NONE = 0, PROT_READ = 1, PROT_WRITE = 2, PROT_RW = 3 };
enum { MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_FIXED = 0x10, MAP_ANONYMOUS = 0x20 };
enum { O_RDWR = 2, O_CREAT = 0100 };
enum { SIGBUS = 7, SIGSEGV = 11 };

static inline __attribute__((noreturn)) void finish(long status)
{
    for (;;)
        CALL(EXIT_GROUP, status);
}

static void print(const char *text)
{
    u64 length = 0;
    while (text[length])
        length++;
    CALL(WRITE, 1, text, length);
}

static char *decimal(u64 value, char *end)
{
    *--end = 0;
    do
        *--end = (char)('0' + value % 10);
    while (value /= 10);
    return end;
}

// What was wrong, by its line: on the console, as the status of a program has no room for it.
static __attribute__((noreturn, unused)) void wrong(const char *what, u64 line)
{
    char digits[24];
    print("line "), print(decimal(line, digits + 24)), print(": "), print(what), print("\n");
    finish(1);
}
#define CHECK(what) do { if (!(what)) wrong(#what, __LINE__); } while (0)

static inline void *map(u64 size, int prot)
{
    return (void *)CALL(MMAP, 0, size, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
static inline int failed(const void *at) { return (u64)at > -4096ul; }

static inline __attribute__((unused)) int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static __attribute__((unused)) u64 number(const char *text)
{
    u64 value = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        value = 10 * value + (u64)(*text - '0');
    return value;
}

__attribute__((unused)) void *memset(void *at, int value, u64 count)
{
    for (u8 *byte = at; count--;)
        *byte++ = (u8)value;
    return at;
}
__attribute__((unused)) void *memcpy(void *to, const void *from, u64 count)
{
    u8 *byte = to;
    for (const u8 *next = from; count--;)
        *byte++ = *next++;
    return to;
}

// A thread that begins in `function` on the stack below `top`; `tid` is 0, and waiters are woken, when it has ended.
static __attribute__((unused)) long spawn(void (*function)(void *), void *argument, char *top, u32 *tid)
{
    u64 *frame = (u64 *)top - 2;
    frame[0] = (u64)function, frame[1] = (u64)argument;
    // VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, PARENT_SETTID, CHILD_CLEARTID
    u64 flags = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x100000 | 0x200000;
    long result;
    register u32 *r10 __asm__("r10") = tid;
    __asm__ volatile("syscall; test %%rax, %%rax; jnz 1f; pop %%rax; pop %%rdi; call *%%rax; mov $60, %%eax; syscall; 1:"
                     : "=a"(result)
                     : "a"(CLONE), "D"(flags), "S"(frame), "d"(tid), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}
static __attribute__((unused)) void join(u32 *tid)
{
    for (u32 now; (now = __atomic_load_n(tid, __ATOMIC_ACQUIRE)) != 0;)
        CALL(FUTEX, tid, 0, now, 0);
}

static __attribute__((unused)) int on_cpu(u64 cpu)
{
    u64 mask = 1ul << cpu;
    return CALL(SETAFFINITY, 0, sizeof mask, &mask) == 0;
}

// Where a bad access goes on, and what was seen of it.
struct action { void *handler; u64 flags; void *restorer; u64 mask; };
struct context { u64 flags, link, stack[3], regs[16], rip, rflags, segments, error, trap, oldmask, address, fpu; };
struct info { i32 number, errno_, code, pad; u64 address; };
__asm__(".text\nrestorer: mov $15, %eax\n syscall\n");
extern char restorer[];
static __attribute__((unused)) long handle(int number, void (*handler)(int, struct info *, struct context *))
{
    // SIGINFO, RESTORER, NODEFER
    struct action action = { (void *)handler, 4 | 0x04000000ul | 0x40000000ul, restorer, 0 };
    return CALL(SIGACTION, number, &action, 0, 8);
}

__attribute__((used)) static void begin(u64 *start);
__asm__(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n call begin\n");
