// What the programs here have in place of a C library: system calls, checks, threads, signals, and a beginning that calls
// `begin`. Those that define PARTS consist of parts, and have ways to catch what a bad access does. Not all use all of it.
#pragma GCC diagnostic ignored "-Wunused-function"

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
    READ = 0, WRITE = 1, OPEN = 2, CLOSE = 3, FSTAT = 5, LSEEK = 8, MMAP = 9, MPROTECT = 10, MUNMAP = 11, BRK = 12,
    SIGACTION = 13, SIGPROCMASK = 14, SIGRETURN = 15, IOCTL = 16, WRITEV = 20, PIPE = 22, YIELD = 24, MREMAP = 25,
    MSYNC = 26, MINCORE = 27, MADVISE = 28, DUP2 = 33, PAUSE = 34, NANOSLEEP = 35, GETPID = 39, CLONE = 56, FORK = 57,
    VFORK = 58, EXECVE = 59, EXIT = 60, WAIT4 = 61, KILL = 62, UNAME = 63, FCNTL = 72, FTRUNCATE = 77, GETCWD = 79,
    CHDIR = 80, RENAME = 82, MKDIR = 83, LINK = 86, UNLINK = 87, UMASK = 95, SETPGID = 109, GETPPID = 110, SETSID = 112, SIGALTSTACK = 131,
    ARCH_PRCTL = 158, SETRLIMIT = 160, ACCT = 163, REBOOT = 169, GETTID = 186, TKILL = 200, FUTEX = 202, SETAFFINITY = 203,
    GETAFFINITY = 204, CLOCK = 228, CLOCK_NANOSLEEP = 230, EXIT_GROUP = 231, OPENAT = 257, SET_ROBUST_LIST = 273,
    MOVE_PAGES = 279, UTIMENSAT = 280, FALLOCATE = 285, PIPE2 = 293, GETCPU = 309, GETRANDOM = 318, MEMFD_CREATE = 319,
    STATX = 332,
};
enum { EPERM = 1, ENOENT = 2, EINTR = 4, EBADF = 9, ECHILD = 10, EAGAIN = 11, ENOMEM = 12, EACCES = 13,
       EFAULT = 14, EBUSY = 16, EEXIST = 17, EXDEV = 18, ENODEV = 19,
       EINVAL = 22, EPIPE = 32, ENOSYS = 38, EOPNOTSUPP = 95 };
enum { SIGILL = 4, SIGTRAP = 5, SIGBUS = 7, SIGFPE = 8, SIGKILL = 9, SIGUSR1 = 10, SIGSEGV = 11, SIGUSR2 = 12,
       SIGPIPE = 13, SIGCHLD = 17, SIGCONT = 18, SIGSTOP = 19, SIGTSTP = 20 };
enum { PROT_NONE = 0, PROT_READ = 1, PROT_WRITE = 2, PROT_RW = 3, PROT_EXEC = 4 };
enum { MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_FIXED = 0x10, MAP_ANONYMOUS = 0x20 };
enum { O_RDWR = 2, O_CREAT = 0100 };

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
static __attribute__((noreturn)) void wrong(const char *what, u64 line)
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

static inline int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static u64 number(const char *text)
{
    u64 value = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        value = 10 * value + (u64)(*text - '0');
    return value;
}

void *memset(void *at, int value, u64 count)
{
    for (u8 *byte = at; count--;)
        *byte++ = (u8)value;
    return at;
}
void *memcpy(void *to, const void *from, u64 count)
{
    u8 *byte = to;
    for (const u8 *next = from; count--;)
        *byte++ = *next++;
    return to;
}

// A thread that begins in `function` on the stack below `top`; `tid` is 0, and waiters are woken, when it has ended.
static long spawn(void (*function)(void *), void *argument, char *top, u32 *tid)
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
static void join(u32 *tid)
{
    for (u32 now; (now = __atomic_load_n(tid, __ATOMIC_ACQUIRE)) != 0;)
        CALL(FUTEX, tid, 0, now, 0);
}

static int on_cpu(u64 cpu)
{
    u64 mask = 1ul << cpu;
    return CALL(SETAFFINITY, 0, sizeof mask, &mask) == 0;
}

// Signals.

struct action { void *handler; u64 flags; void *restorer; u64 mask; };
struct context { u64 flags, link, stack[3], regs[16], rip, rflags, segments, error, trap, oldmask, address, fpu; };
struct info { i32 number, errno_, code, pad; u64 address; };
#define SA_SIGINFO 4ul
#define SA_RESTORER 0x04000000ul
#define SA_ONSTACK 0x08000000ul
#define SA_RESTART 0x10000000ul
#define SA_NODEFER 0x40000000ul

__asm__(".text\nrestorer: mov $15, %eax\n syscall\n");
extern char restorer[];

static void handle(int number, void *handler, u64 flags)
{
    struct action action = { handler, flags | SA_SIGINFO | SA_RESTORER, restorer, 0 };
    CHECK(CALL(SIGACTION, number, &action, 0, 8) == 0);
}

#ifdef PARTS

// An access that may fault: `go on` is where the handler lets it end.
static volatile u64 go_on;
static volatile struct { u64 count, address, error, trap; i32 number, code; } seen;

static void note(int number, struct info *info, struct context *context)
{
    seen.count++;
    seen.number = number;
    seen.code = info->code;
    seen.address = info->address;
    seen.error = context->error;
    seen.trap = context->trap;
    context->rip = go_on;
}

#define TRY(instructions, ...)                                                                                         \
    do {                                                                                                               \
        seen.count = 0;                                                                                                \
        __asm__ volatile("lea 9f(%%rip), %%rax; mov %%rax, %0;" instructions "; 9:"                                    \
                         : "=m"(go_on)                                                                                 \
                         : __VA_ARGS__                                                                                 \
                         : "rax", "rcx", "rdx", "memory");                                                             \
    } while (0)
#define LOAD(at) TRY("movb (%1), %%cl", "r"(at))
#define STORE(at) TRY("movb $1, (%1)", "r"(at))
#define EXECUTE(at) TRY("jmp *%1", "r"(at))

static void expect(u64 number, int code, u64 error, const void *at)
{
    CHECK(seen.count == 1 && seen.number == (i32)number && seen.code == code);
    CHECK(seen.error == error && seen.trap == 14 && seen.address == (u64)at);
}

#define MS 1000000ul
static long nap(u64 nanos, u64 *rest)
{
    u64 time[2] = { nanos / (1000 * MS), nanos % (1000 * MS) };
    return CALL(NANOSLEEP, time, rest);
}

// Does `work` in a child: the first program is not stopped, and its signals are its own affair.
static void apart(void (*work)(void))
{
    int status;
    long child = CALL(FORK);
    if (child == 0) {
        work();
        finish(FINE);
    }
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child);
    if (status != FINE << 8)
        finish(status & 0x7f ? status & 0x7f : status >> 8);
}

static char **environment;

// What an argument asks for; the program's.
static void part(const char *name, u64 *start, const char *self);

__attribute__((used)) static void begin(u64 *start)
{
    char **argument = (char **)(start + 1);
    environment = argument + start[0] + 1;
    for (u64 index = 1; index < start[0]; index++)
        part(argument[index], start, argument[0]);
    finish(FINE);
}

#else

// The program's; it does not return.
__attribute__((used)) static void begin(u64 *start);

#endif

__asm__(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n call begin\n");
