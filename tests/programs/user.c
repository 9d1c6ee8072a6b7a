// What guests run in the tests: a program without a C library. Its arguments name parts, which run one after the other;
// each ends the program with 1, and a line that says what, if something is wrong. 42 is nothing wrong.

#define PARTS
#include "bare.h"

static void faults(void)
{
    handle(SIGSEGV, note, 0);
    // Nothing is there: read 4, write 6, fetch 0x14. MAPERR is 1.
    char *gone = map(PAGE, PROT_RW);
    CHECK(CALL(MUNMAP, gone, PAGE) == 0);
    LOAD(gone); expect(SIGSEGV, 1, 4, gone);
    STORE(gone); expect(SIGSEGV, 1, 6, gone);
    EXECUTE(gone); expect(SIGSEGV, 1, 0x14, gone);
    LOAD(0); expect(SIGSEGV, 1, 4, 0);
    // A page is there that does not allow it: ACCERR is 2.
    char *page = map(PAGE, PROT_RW);
    STORE(page); CHECK(seen.count == 0);
    CHECK(CALL(MPROTECT, page, PAGE, PROT_READ) == 0);
    LOAD(page); CHECK(seen.count == 0);
    STORE(page); expect(SIGSEGV, 2, 7, page);
    EXECUTE(page); expect(SIGSEGV, 2, 0x15, page);
    CHECK(CALL(MPROTECT, page, PAGE, PROT_NONE) == 0);
    LOAD(page);
    CHECK(seen.count == 1 && seen.code == 2 && seen.address == (u64)page && (seen.error & ~1ul) == 4);
    // No page yet, and no right to one.
    char *never = map(PAGE, PROT_NONE);
    LOAD(never); expect(SIGSEGV, 2, 4, never);
    // The text.
    STORE((u64)restorer); CHECK(seen.count == 1 && seen.code == 2 && (seen.error | 1) == 7);
    // What is the kernel's: it is there, and it is not.
    char *kernel = (char *)0xffffffff81000000ul;
    LOAD(kernel); expect(SIGSEGV, 1, 5, kernel);
    STORE(kernel); expect(SIGSEGV, 1, 7, kernel);
    EXECUTE(kernel); expect(SIGSEGV, 1, 0x15, kernel);
    char *far = (char *)0xffffc8ffffff0000ul;
    LOAD(far); expect(SIGSEGV, 1, 4, far);
    // No address at all is another exception.
    TRY("movb (%1), %%cl", "r"(0x8000000000000000ul));
    CHECK(seen.count == 1 && seen.number == SIGSEGV && seen.code == 0x80 && seen.trap == 13);
}

static void exceptions(void)
{
    handle(SIGFPE, note, 0), handle(SIGILL, note, 0), handle(SIGTRAP, note, 0), handle(SIGSEGV, note, 0);
    TRY("xor %%edx, %%edx; xor %%ecx, %%ecx; mov $1, %%eax; div %%ecx", "r"(0ul));
    CHECK(seen.count == 1 && seen.number == SIGFPE && seen.trap == 0 && seen.code == 1);
    TRY("ud2", "r"(0ul));
    CHECK(seen.count == 1 && seen.number == SIGILL && seen.trap == 6);
    TRY("int3", "r"(0ul));
    CHECK(seen.count == 1 && seen.number == SIGTRAP && seen.trap == 3);
    TRY("hlt", "r"(0ul));
    CHECK(seen.count == 1 && seen.number == SIGSEGV && seen.trap == 13);
    // Division by zero, when it is not masked.
    static const unsigned short control = 0x37b, masked = 0x37f;
    TRY("fninit; fldcw %1; fld1; fldz; fdivrp; fwait", "m"(control));
    CHECK(seen.count == 1 && seen.number == SIGFPE && seen.trap == 16 && seen.code == 3);
    __asm__ volatile("fninit; fldcw %0" ::"m"(masked));
    TRY("mov $0x3f8, %%edx; outb %%al, %%dx", "r"(0ul));
    CHECK(seen.count == 1 && seen.number == SIGSEGV && seen.trap == 13);
}

// Division by zero and overflow of SSE, each when it is not masked.
static void vectors(void)
{
    static const u32 mxcsr[] = { 0x1d80, 0x1b80, 0x1f80 };
    static const float big = 1e38f;
    handle(SIGFPE, note, 0);
    TRY("ldmxcsr %1; xorps %%xmm1, %%xmm1; movss %2, %%xmm0; divss %%xmm1, %%xmm0", "m"(mxcsr[0]), "m"(big));
    CHECK(seen.count == 1 && seen.number == SIGFPE && seen.trap == 19 && seen.code == 3);
    TRY("ldmxcsr %1; movss %2, %%xmm0; mulss %%xmm0, %%xmm0", "m"(mxcsr[1]), "m"(big));
    CHECK(seen.count == 1 && seen.number == SIGFPE && seen.trap == 19 && seen.code == 4);
    __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr[2]));
}

static void addresses(void)
{
    char *bad = (char *)0x10, *kernel = (char *)0xffff888000000000ul;
    char *pages = map(2 * PAGE, PROT_RW);
    CHECK(CALL(MUNMAP, pages + PAGE, PAGE) == 0);
    int ends[2];
    CHECK(CALL(PIPE, bad) == -EFAULT && CALL(PIPE, kernel) == -EFAULT);
    CHECK(CALL(PIPE, ends) == 0);
    CHECK(CALL(WRITE, ends[1], bad, 1) == -EFAULT);
    CHECK(CALL(WRITE, ends[1], kernel, 1) == -EFAULT);
    CHECK(CALL(WRITE, ends[1], -8ul, 16) == -EFAULT);
    CHECK(CALL(WRITE, ends[1], pages + PAGE - 3, 4) == -EFAULT);
    CHECK(CALL(WRITE, ends[1], pages + PAGE - 3, 3) == 3);
    CHECK(CALL(READ, ends[0], pages + PAGE - 1, 3) == 1);
    CHECK(CALL(OPEN, bad, 0) == -EFAULT && CALL(OPEN, kernel, 0) == -EFAULT);
    // A name that ends where memory does, and one that does not.
    memset(pages + PAGE - 4, 'x', 4);
    CHECK(CALL(OPEN, pages + PAGE - 4, 0) == -EFAULT);
    pages[PAGE - 1] = 0;
    CHECK(CALL(OPEN, pages + PAGE - 4, 0) == -ENOENT);
    CHECK(CALL(UNAME, pages + PAGE - 100) == -EFAULT);
    // What was never touched is brought in for the kernel as for the program.
    char *fresh = map(PAGE, PROT_RW);
    CHECK(CALL(UNAME, fresh) == 0 && same(fresh, "Linux"));
    char *readable = map(PAGE, PROT_READ);
    CHECK(CALL(UNAME, readable) == -EFAULT);
    struct action action;
    CHECK(CALL(SIGACTION, SIGUSR1, 0, kernel, 8) == -EFAULT && CALL(SIGACTION, SIGUSR1, 0, &action, 8) == 0);
    CHECK(CALL(FUTEX, kernel, 1, 1) == -EFAULT && CALL(FUTEX, bad + 1, 1, 1) == -EINVAL);
}

static void memory(void)
{
    char *at = map(4 * PAGE, PROT_RW);
    CHECK(!failed(at));
    for (u64 page = 0; page < 4; page++) {
        CHECK(at[page * PAGE] == 0);
        at[page * PAGE] = (char)(page + 1);
    }
    CHECK(CALL(MUNMAP, at + PAGE, PAGE) == 0);
    CHECK(CALL(MMAP, at + PAGE, PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | 0x10, -1, 0) == (long)(at + PAGE));
    CHECK(at[0] == 1 && at[PAGE] == 0 && at[2 * PAGE] == 3);
    CHECK(CALL(MMAP, at, PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | 0x100000, -1, 0) == -EEXIST);
    char *moved = (char *)CALL(MREMAP, at + 2 * PAGE, 2 * PAGE, 8 * PAGE, 1, 0);
    CHECK(!failed(moved) && moved[0] == 3 && moved[PAGE] == 4 && moved[7 * PAGE] == 0);
    CHECK(CALL(MADVISE, moved, PAGE, 4) == 0 && moved[0] == 0);
    u8 present[8];
    CHECK(CALL(MINCORE, moved, 2 * PAGE, present) == 0 && present[1] == 1);
    CHECK(CALL(MMAP, 0, 0, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == -EINVAL);
    CHECK(CALL(MUNMAP, 1, PAGE) == -EINVAL);
    // Code of the program's own making.
    u8 *code = map(PAGE, PROT_RW);
    memcpy(code, "\xb8\x2a\0\0\0\xc3", 6);
    CHECK(CALL(MPROTECT, code, PAGE, PROT_READ | PROT_EXEC) == 0);
    CHECK(((int (*)(void))code)() == 42);
}

static int deep(int depth)
{
    volatile char frame[PAGE];
    frame[0] = (char)depth;
    return depth ? deep(depth - 1) + frame[0] - (char)depth : 0;
}
static void stack(void)
{
    CHECK(deep(1000) == 0);
    // Beyond the limit there is a signal, for which there must be another stack.
    char *other = map(16 * PAGE, PROT_RW);
    u64 alternative[3] = { (u64)other, 0, 16 * PAGE };
    CHECK(CALL(SIGALTSTACK, alternative, 0) == 0);
    handle(SIGSEGV, note, SA_ONSTACK);
    TRY("mov %%rsp, %%rdx; 1: sub $4096, %%rsp; movb $0, (%%rsp); jmp 1b; 9: mov %%rdx, %%rsp; jmp 8f; 9: ud2; 8:", "r"(0ul));
    CHECK(seen.count == 1 && seen.number == SIGSEGV && seen.code == 1);
}

static void heap(void)
{
    char *start = (char *)CALL(BRK, 0);
    CHECK((char *)CALL(BRK, start + 5 * PAGE + 1) == start + 5 * PAGE + 1);
    start[5 * PAGE] = 7, start[0] = 8;
    CHECK((char *)CALL(BRK, start + PAGE) == start + PAGE && start[0] == 8);
    CHECK((char *)CALL(BRK, start + 6 * PAGE) == start + 6 * PAGE && start[5 * PAGE] == 0);
    CHECK((char *)CALL(BRK, 16) == start + 6 * PAGE);
}

static volatile int shared_word = 1;

static void children(void)
{
    char *page = map(PAGE, PROT_RW);
    page[0] = 'a';
    int ends[2], status = 0;
    CHECK(CALL(PIPE, ends) == 0);
    long parent = CALL(GETPID), child = CALL(FORK);
    CHECK(child >= 0);
    if (child == 0) {
        char byte = 0;
        // The parent's write is not seen here.
        if (CALL(READ, ends[0], &byte, 1) != 1 || page[0] != 'a' || shared_word != 1 || CALL(GETPPID) != parent)
            finish(1);
        page[0] = 'c', shared_word = 3;
        finish(17);
    }
    page[0] = 'b', shared_word = 2;
    CHECK(CALL(WRITE, ends[1], "x", 1) == 1);
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == 17 << 8);
    CHECK(page[0] == 'b' && shared_word == 2);
    shared_word = 1;
    CHECK(CALL(WAIT4, -1, &status, 0, 0) == -ECHILD);
    // Ended by a signal, its own and another's.
    struct action by_default = { 0, SA_RESTORER, restorer, 0 };
    CHECK(CALL(SIGACTION, SIGSEGV, &by_default, 0, 8) == 0);
    child = CALL(FORK);
    if (child == 0)
        for (;;)
            *(volatile char *)8 = 1;
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == SIGSEGV);
    child = CALL(FORK);
    if (child == 0)
        for (;;)
            ;
    CHECK(CALL(WAIT4, child, &status, 1, 0) == 0);
    CHECK(CALL(KILL, child, SIGKILL) == 0 && CALL(WAIT4, child, &status, 0, 0) == child && status == SIGKILL);
    // Alone on a CPU, where nothing else would interrupt it.
    child = CALL(FORK);
    if (child == 0) {
        on_cpu(1);
        for (;;)
            ;
    }
    const u64 settle[2] = { 0, 50000000 }, all = 3;
    CHECK(on_cpu(0) && CALL(NANOSLEEP, settle, 0) == 0);
    CHECK(CALL(KILL, child, SIGKILL) == 0 && CALL(WAIT4, child, &status, 0, 0) == child && status == SIGKILL);
    CHECK(CALL(SETAFFINITY, 0, sizeof all, &all) == 0);
    // Many at once.
    for (int index = 0; index < 20; index++) {
        child = CALL(FORK);
        CHECK(child >= 0);
        if (child == 0) {
            CALL(YIELD);
            page[0] = (char)index;
            finish(page[0] == (char)index ? index : 99);
        }
    }
    int sum = 0;
    for (int index = 0; index < 20; index++) {
        CHECK(CALL(WAIT4, -1, &status, 0, 0) > 0);
        sum += status >> 8;
    }
    CHECK(sum == 190 && page[0] == 'b');
}

static void vfork_(void)
{
    // The child has the parent's memory until it ends, and the parent waits.
    static volatile int word;
    int status;
    long child = CALL(VFORK);
    if (child == 0) {
        word = 5;
        CALL(EXIT, 3);
    }
    CHECK(word == 5 && CALL(WAIT4, child, &status, 0, 0) == child && status == 3 << 8);
}

static u32 lock_word, turns;
static void lock(void)
{
    while (__atomic_exchange_n(&lock_word, 2, __ATOMIC_ACQUIRE))
        CALL(FUTEX, &lock_word, 0, 2, 0);
}
static void unlock(void)
{
    __atomic_store_n(&lock_word, 0, __ATOMIC_RELEASE);
    CALL(FUTEX, &lock_word, 1, 1);
}
static void work(void *count)
{
    for (u64 turn = 0; turn < (u64)count; turn++) {
        lock();
        u32 old = turns;
        if (turn % 8 == 0)
            CALL(YIELD);
        turns = old + 1;
        unlock();
    }
}
static void threads(void)
{
    static u32 tids[4];
    for (int index = 0; index < 4; index++) {
        char *pages = map(4 * PAGE, PROT_RW);
        CHECK(spawn(work, (void *)100, pages + 4 * PAGE, &tids[index]) > 0);
    }
    for (int index = 0; index < 4; index++)
        join(&tids[index]);
    CHECK(turns == 400);
    u64 soon[2] = { 0, 1000000 };
    CHECK(CALL(FUTEX, &turns, 0, 400, soon) == -110 && CALL(FUTEX, &turns, 0, 1, 0) == -EAGAIN);
}

static volatile u64 handled[3];
static void count(int number, struct info *info, struct context *context)
{
    handled[0]++;
    handled[1] = (u64)number;
    handled[2] = (u64)info->code << 32 ^ context->regs[15];
}
static void pause_in_child(long parent, int times)
{
    if (CALL(FORK) == 0) {
        for (int time = 0; time < times; time++) {
            u64 moment[2] = { 0, 20000000 };
            CALL(NANOSLEEP, moment, 0);
            CALL(KILL, parent, SIGUSR1);
        }
        finish(0);
    }
}
static void signals(void)
{
    long me = CALL(GETPID);
    int status, ends[2];
    handle(SIGUSR1, count, 0);
    CHECK(CALL(KILL, me, SIGUSR1) == 0 && handled[0] == 1 && handled[1] == SIGUSR1);
    CHECK(CALL(KILL, me, 0) == 0 && CALL(KILL, 30000, 0) == -3 && CALL(KILL, me, 99) == -EINVAL);
    // Blocked, it waits, once.
    u64 mask = 1ul << (SIGUSR1 - 1), old;
    CHECK(CALL(SIGPROCMASK, 0, &mask, 0, 8) == 0);
    CALL(KILL, me, SIGUSR1), CALL(KILL, me, SIGUSR1);
    CHECK(handled[0] == 1);
    CHECK(CALL(SIGPROCMASK, 1, &mask, &old, 8) == 0 && old == mask && handled[0] == 2);
    // A call that waits ends, or goes on where the handler wants that.
    CHECK(CALL(PIPE, ends) == 0);
    char byte;
    pause_in_child(me, 1);
    CHECK(CALL(READ, ends[0], &byte, 1) == -EINTR && handled[0] == 3);
    while (CALL(WAIT4, -1, &status, 0, 0) > 0)
        ;
    handle(SIGUSR1, count, SA_RESTART);
    if (CALL(FORK) == 0) {
        u64 moment[2] = { 0, 20000000 };
        CALL(NANOSLEEP, moment, 0), CALL(KILL, me, SIGUSR1), CALL(NANOSLEEP, moment, 0);
        finish(CALL(WRITE, ends[1], "y", 1) == 1 ? 0 : 1);
    }
    CHECK(CALL(READ, ends[0], &byte, 1) == 1 && byte == 'y' && handled[0] == 4);
    CHECK(CALL(WAIT4, -1, &status, 0, 0) > 0 && status == 0);
    // The end of a child.
    handle(SIGCHLD, count, SA_RESTART);
    long child = CALL(FORK);
    if (child == 0)
        finish(9);
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && handled[0] == 5 && handled[1] == SIGCHLD);
    // Nobody reads.
    handle(SIGPIPE, count, 0);
    CALL(CLOSE, ends[0]);
    CHECK(CALL(WRITE, ends[1], "z", 1) == -EPIPE && handled[0] == 6 && handled[1] == SIGPIPE);
    struct action ignore = { (void *)1, SA_RESTORER, restorer, 0 };
    CHECK(CALL(SIGACTION, SIGPIPE, &ignore, 0, 8) == 0);
    CHECK(CALL(WRITE, ends[1], "z", 1) == -EPIPE && handled[0] == 6);
    CHECK(CALL(SIGACTION, SIGKILL, &ignore, 0, 8) == -EINVAL);
}

static void files(void)
{
    char text[64];
    CHECK(CALL(OPEN, "/tmp/none", 0) == -ENOENT);
    CHECK(CALL(MKDIR, "/tmp/d", 0755) == 0 && CALL(MKDIR, "/tmp/d", 0755) == -EEXIST);
    CHECK(CALL(CHDIR, "/tmp/d") == 0 && CALL(GETCWD, text, 64) == 7 && same(text, "/tmp/d"));
    long file = CALL(OPEN, "f", 0102, 0644);
    CHECK(file == 3 && CALL(WRITE, file, "0123456789", 10) == 10);
    CHECK(CALL(LSEEK, file, 3, 0) == 3 && CALL(READ, file, text, 4) == 4 && text[0] == '3' && text[3] == '6');
    CHECK(CALL(LSEEK, file, 2 * PAGE, 0) == 2 * PAGE && CALL(WRITE, file, "end", 3) == 3);
    u64 stat[18];
    CHECK(CALL(FSTAT, file, stat) == 0 && stat[6] == 2 * PAGE + 3 && (u32)stat[3] == 0100644);
    CHECK(CALL(LSEEK, file, PAGE, 0) == PAGE && CALL(READ, file, text, 4) == 4 && text[0] == 0);
    CHECK(CALL(DUP2, file, 9) == 9 && CALL(CLOSE, file) == 0 && CALL(READ, file, text, 1) == -EBADF);
    CHECK(CALL(LSEEK, 9, 0, 2) == 2 * PAGE + 3 && CALL(UNLINK, "/tmp/d/f") == 0 && CALL(OPEN, "f", 0) == -ENOENT);
    CHECK(CALL(LSEEK, 9, 9, 0) == 9 && CALL(READ, 9, text, 1) == 1 && text[0] == '9');
    long zero = CALL(OPEN, "/dev/zero", 0);
    text[5] = 1;
    CHECK(CALL(READ, zero, text, 64) == 64 && text[5] == 0 && CALL(IOCTL, 1, 0x5401, text) == -25);
}

static void pipes(void)
{
    // More than a pipe holds, from a child.
    int ends[2], status;
    static char block[3000];
    CHECK(CALL(PIPE, ends) == 0);
    long child = CALL(FORK);
    if (child == 0) {
        for (int round = 0; round < 60; round++) {
            memset(block, round, sizeof block);
            if (CALL(WRITE, ends[1], block, sizeof block) != sizeof block)
                finish(1);
        }
        finish(0);
    }
    CALL(CLOSE, ends[1]);
    u64 total = 0;
    for (long got; (got = CALL(READ, ends[0], block, sizeof block)) != 0; total += (u64)got) {
        CHECK(got > 0);
        for (long index = 0; index < got; index++)
            CHECK(block[index] == (char)((total + (u64)index) / sizeof block));
    }
    CHECK(total == 60 * sizeof block && CALL(WAIT4, child, &status, 0, 0) == child && status == 0);
}

static void registers(void)
{
    // Two processes on the same CPU with numbers of their own in all kinds of registers.
    long child = CALL(FORK);
    u64 own = child ? 0x1111111111111111ul : 0x2222222222222222ul, changed = 0;
    CALL(ARCH_PRCTL, 0x1002, &own);
    __asm__ volatile("mov %[own], %%r12; mov %[own], %%r15; movq %[own], %%xmm3; movq %[own], %%xmm15; mov $300, %%rbx;"
                     "1: mov $24, %%eax; syscall; mov $40000, %%ecx; 2: dec %%ecx; jnz 2b;"
                     "cmp %[own], %%r12; jne 3f; cmp %[own], %%r15; jne 3f;"
                     "movq %%xmm3, %%rdx; cmp %[own], %%rdx; jne 3f; movq %%xmm15, %%rdx; cmp %[own], %%rdx; jne 3f;"
                     "cmp %%fs:0, %[own]; jne 3f; dec %%rbx; jnz 1b; jmp 4f; 3: mov $1, %[changed]; 4:"
                     : [changed] "+r"(changed)
                     : [own] "r"(own)
                     : "rax", "rbx", "rcx", "rdx", "r11", "r12", "r15", "xmm3", "xmm15", "memory");
    if (child == 0)
        finish(changed ? 1 : 0);
    int status;
    CHECK(!changed && CALL(WAIT4, child, &status, 0, 0) == child && status == 0);
}

static void exec(const char *self)
{
    char *arguments[] = { (char *)self, "hello", 0 };
    CHECK(CALL(EXECVE, "/none", arguments, 0) == -ENOENT && CALL(EXECVE, "/tmp", arguments, 0) == -13);
    CHECK(CALL(EXECVE, 8, arguments, 0) == -EFAULT && CALL(EXECVE, self, 8, 0) == -EFAULT);
    CALL(EXECVE, self, arguments, environment);
    CHECK(0);
}

static void arguments(u64 *start)
{
    u64 count = start[0];
    char **argument = (char **)(start + 1);
    CHECK(((u64)start & 15) == 0 && count == 4 && argument[4] == 0);
    CHECK(same(argument[2], "two words") && same(argument[3], ""));
    char **word = environment;
    int home = 0;
    for (; *word; word++)
        home |= same(*word, "HOME=/");
    CHECK(home);
    u64 found[64] = { 0 };
    for (u64 *pair = (u64 *)(word + 1); pair[0]; pair += 2)
        if (pair[0] < 64)
            found[pair[0]] = pair[1];
    extern void _start(void);
    CHECK(found[6] == PAGE && found[9] == (u64)_start && found[4] == 56 && found[5] > 1 && found[17] == 100);
    CHECK(*(u32 *)found[3] <= 8 && same((char *)found[31], argument[0]) && same((char *)found[15], "x86_64"));
    CHECK(found[25] && (*(u64 *)found[25] || *(u64 *)(found[25] + 8)));
}

static void unknown(void)
{
    CHECK(CALL(REBOOT) == -ENOSYS && CALL(REBOOT) == -ENOSYS && CALL(ACCT) == -ENOSYS && CALL(100000) == -ENOSYS);
}

static void part(const char *name, u64 *start, const char *self)
{
    if (same(name, "hello"))
        CHECK(CALL(WRITE, 1, "hello, world\n", 13) == 13);
    else if (same(name, "arguments"))
        arguments(start), finish(FINE);
    else if (same(name, "faults"))
        faults();
    else if (same(name, "exceptions"))
        exceptions();
    else if (same(name, "vectors"))
        vectors();
    else if (same(name, "addresses"))
        addresses();
    else if (same(name, "memory"))
        memory();
    else if (same(name, "stack"))
        stack();
    else if (same(name, "heap"))
        heap();
    else if (same(name, "children"))
        children();
    else if (same(name, "vfork"))
        vfork_();
    else if (same(name, "threads"))
        threads();
    else if (same(name, "signals"))
        signals();
    else if (same(name, "files"))
        files();
    else if (same(name, "pipes"))
        pipes();
    else if (same(name, "registers"))
        registers();
    else if (same(name, "exec"))
        exec(self);
    else if (same(name, "unknown"))
        unknown();
    else if (same(name, "end-read"))
        *(volatile char *)16;
    else if (same(name, "end-divide"))
        __asm__ volatile("xor %%edx, %%edx; xor %%ecx, %%ecx; div %%ecx" ::: "rax", "rcx", "rdx");
    else if (same(name, "end-privileged"))
        __asm__ volatile("hlt");
    else if (same(name, "end-invalid"))
        __asm__ volatile("ud2");
    else
        finish(2);
}
