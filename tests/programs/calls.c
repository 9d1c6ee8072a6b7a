// Calls that libraries make and shells do not: on nodes, on memory. Its arguments name parts, which run one after the other;
// each ends the program with 1, and a line that says what, if something is wrong. 42 is nothing wrong.

#define PARTS
#include "bare.h"

enum { GET_MEMPOLICY = 239, CLONE3 = 435 };
enum { ESRCH = 3 };

// What the default policy is, which nodes there are, and where pages are. Of two nodes with a CPU each.
static void policies(void)
{
    enum { NODE = 1, ADDR = 2, ALLOWED = 4 };
    u64 mask[2] = { 9, 9 };
    int policy = 9;
    char *pages = map(4 * PAGE, PROT_RW), *closed = map(PAGE, PROT_NONE);
    CHECK(CALL(GET_MEMPOLICY, &policy, mask, 128, 0, 0) == 0 && policy == 0 && mask[0] == 0 && mask[1] == 0);
    policy = mask[0] = mask[1] = 9;
    CHECK(CALL(GET_MEMPOLICY, &policy, mask, 64, 0, ALLOWED) == 0 && policy == 0 && mask[0] == 3 && mask[1] == 9);
    CHECK(CALL(GET_MEMPOLICY, 0, 0, 0, 0, 0) == 0 && CALL(GET_MEMPOLICY, &policy, 0, 0, pages, ADDR) == 0 && policy == 0);
    for (u64 node = 0; node < 2; node++) {
        CHECK(on_cpu(node));
        pages[node * PAGE] = 1;
    }
    for (u64 node = 0; node < 2; node++)
        CHECK(CALL(GET_MEMPOLICY, &policy, 0, 0, pages + node * PAGE + 7, NODE | ADDR) == 0 && policy == (int)node);
    // A page that is not there yet is brought in.
    CHECK(CALL(GET_MEMPOLICY, &policy, 0, 0, pages + 3 * PAGE, NODE | ADDR) == 0 && (policy == 0 || policy == 1));
    u8 present[4];
    CHECK(CALL(MINCORE, pages, 4 * PAGE, present) == 0 && present[2] == 0 && present[3] == 1);
    // Fewer bits than nodes, more than a page of them, unknown flags, flags that make no sense together.
    CHECK(CALL(GET_MEMPOLICY, &policy, mask, 1, 0, 0) == -EINVAL);
    CHECK(CALL(GET_MEMPOLICY, &policy, mask, 8 * PAGE + 66, 0, 0) == -EINVAL);
    CHECK(CALL(GET_MEMPOLICY, &policy, 0, 0, 0, 8) == -EINVAL && CALL(GET_MEMPOLICY, &policy, 0, 0, 0, NODE) == -EINVAL);
    CHECK(CALL(GET_MEMPOLICY, &policy, 0, 0, 0, ALLOWED | NODE) == -EINVAL);
    CHECK(CALL(GET_MEMPOLICY, &policy, 0, 0, pages, 0) == -EINVAL);
    // Addresses that are not there, that may not be read, and that cannot be written.
    CHECK(CALL(GET_MEMPOLICY, &policy, 0, 0, 16, ADDR) == -EFAULT);
    CHECK(CALL(GET_MEMPOLICY, &policy, 0, 0, closed, ADDR) == 0 && policy == 0);
    CHECK(CALL(GET_MEMPOLICY, &policy, 0, 0, closed, NODE | ADDR) == -EFAULT);
    CHECK(CALL(GET_MEMPOLICY, 16, 0, 0, 0, 0) == -EFAULT && CALL(GET_MEMPOLICY, 0, 16, 64, 0, 0) == -EFAULT);
}

// Where pages are, one's own and another's.
static void pages_of(void)
{
    char *own = map(4 * PAGE, PROT_RW), *shared;
    shared = (char *)CALL(MMAP, 0, 2 * PAGE, PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (u64 node = 0; node < 2; node++) {
        CHECK(on_cpu(1 - node));
        own[node * PAGE] = shared[node * PAGE] = 1;
    }
    CHECK(*(volatile char *)(own + 2 * PAGE) == 0);
    const void *pages[7] = { own + 5, own + PAGE, own + 2 * PAGE, own + 3 * PAGE, shared, shared + PAGE, (void *)16 };
    int status[8] = { 9, 9, 9, 9, 9, 9, 9, 9 };
    CHECK(CALL(MOVE_PAGES, 0, 7, pages, 0, status, 0) == 0);
    CHECK(status[0] == 1 && status[1] == 0 && status[2] == -EFAULT && status[3] == -ENOENT);
    CHECK(status[4] == 1 && status[5] == 0 && status[6] == -EFAULT && status[7] == 9);
    // A child has what it has; it gives its number of `own` up, and its parent sees that.
    int ends[2], back[2];
    char byte = 0;
    CHECK(CALL(PIPE, ends) == 0 && CALL(PIPE, back) == 0);
    long child = CALL(FORK);
    if (child == 0) {
        CHECK(CALL(MUNMAP, own, PAGE) == 0 && CALL(WRITE, ends[1], &byte, 1) == 1 && CALL(READ, back[0], &byte, 1) == 1);
        finish(FINE);
    }
    CHECK(CALL(READ, ends[0], &byte, 1) == 1);
    CHECK(CALL(MOVE_PAGES, child, 3, pages, 0, status, 2) == 0);
    CHECK(status[0] == -EFAULT && status[1] == 0 && status[2] == -EFAULT);
    CHECK(CALL(WRITE, back[1], &byte, 1) == 1 && CALL(WAIT4, child, &status[0], 0, 0) == child);
    CHECK(status[0] == FINE << 8 && CALL(MOVE_PAGES, child, 1, pages, 0, status, 0) == -ESRCH);
    CHECK(CALL(MOVE_PAGES, 0, 1, pages, 0, status, 1) == -EINVAL && CALL(MOVE_PAGES, 0, 0, 0, 0, 0, 0) == 0);
    CHECK(CALL(MOVE_PAGES, 0, 1, 16, 0, status, 0) == -EFAULT && CALL(MOVE_PAGES, 0, 1, pages, 0, 16, 0) == -EFAULT);
}

// A file is written to or executed, and not both. `self` is this program.
static void busy(const char *self)
{
    enum { RDONLY = 0, WRONLY = 1, RDWR = 2, CREAT = 0100, TRUNC = 01000, TRUNCATE = 76, ETXTBSY = 26 };
    static char copy[1 << 17];
    char *const arguments[] = { "/tmp/copy", 0 };
    int status, ends[2];
    CHECK(CALL(OPEN, self, WRONLY) == -ETXTBSY && CALL(OPEN, self, RDWR | TRUNC) == -ETXTBSY);
    CHECK(CALL(TRUNCATE, self, 0) == -ETXTBSY);
    long from = CALL(OPEN, self, RDONLY), to = CALL(OPEN, "/tmp/copy", RDWR | CREAT, 0755);
    long size = CALL(READ, from, copy, sizeof copy);
    CHECK(size > 0 && size < (long)sizeof copy && CALL(WRITE, to, copy, size) == size);
    // Open for writing, and mapped so when it is not open any more.
    CHECK(CALL(EXECVE, "/tmp/copy", arguments, 0) == -ETXTBSY);
    char *mapped = (char *)CALL(MMAP, 0, PAGE, PROT_RW, MAP_SHARED, to, 0);
    CHECK(!failed(mapped) && CALL(CLOSE, to) == 0 && CALL(EXECVE, "/tmp/copy", arguments, 0) == -ETXTBSY);
    CHECK(CALL(MUNMAP, mapped, PAGE) == 0 && CALL(PIPE, ends) == 0);
    long child = CALL(FORK);
    if (child == 0) {
        char *const waits[] = { "/tmp/copy", "wait", 0 };
        CALL(DUP2, ends[0], 0);
        // The parent may have it open just now.
        while (CALL(EXECVE, "/tmp/copy", waits, 0) == -ETXTBSY)
            CALL(YIELD);
        finish(1);
    }
    // Until the child executes it, it can be written to.
    while ((to = CALL(OPEN, "/tmp/copy", WRONLY)) >= 0)
        CHECK(CALL(CLOSE, to) == 0 && CALL(YIELD) == 0);
    CHECK(to == -ETXTBSY && CALL(TRUNCATE, "/tmp/copy", 0) == -ETXTBSY);
    CHECK(CALL(WRITE, ends[1], "", 1) == 1 && CALL(WAIT4, child, &status, 0, 0) == child && status == FINE << 8);
    CHECK((to = CALL(OPEN, "/tmp/copy", WRONLY | TRUNC)) >= 0 && CALL(CLOSE, to) == 0);
}

// A child by `clone3`, with the words of its arguments.
static long clone3(u64 *words, u64 size)
{
    return CALL(CLONE3, words, size);
}

static volatile u32 cleared = 1;

static void children(void)
{
    enum { VM = 0x100, SIGHAND = 0x800, VFORK = 0x4000, THREAD = 0x10000, PARENT_SETTID = 0x100000, CHILD_CLEARTID = 0x200000 };
    enum { FLAGS, PIDFD, CHILD_TID, PARENT_TID, EXIT_SIGNAL, STACK, STACK_SIZE, TLS, SET_TID, SET_TID_SIZE, CGROUP, MORE };
    const u64 clear_sighand = 1ul << 32;
    u64 words[16] = { 0 };
    u32 number = 0;
    int status;
    words[FLAGS] = PARENT_SETTID | clear_sighand, words[EXIT_SIGNAL] = SIGCHLD, words[PARENT_TID] = (u64)&number;
    handle(SIGUSR1, note, 0);
    long child = clone3(words, 88);
    if (child == 0) {
        struct action action;
        CHECK(CALL(SIGACTION, SIGUSR1, 0, &action, 8) == 0 && action.handler == 0);
        finish(FINE);
    }
    CHECK(child > 0 && number == (u32)child && CALL(WAIT4, child, &status, 0, 0) == child && status == FINE << 8);
    struct action action;
    CHECK(CALL(SIGACTION, SIGUSR1, 0, &action, 8) == 0 && action.handler == (void *)note);
    // A child on a stack of its own, in the same memory, whose word is cleared when it is gone. The size is the first ever.
    char *stack = map(4 * PAGE, PROT_RW);
    memset(words, 0, sizeof words);
    words[FLAGS] = VM | VFORK | CHILD_CLEARTID, words[CHILD_TID] = (u64)&cleared, words[EXIT_SIGNAL] = SIGCHLD;
    words[STACK] = (u64)stack, words[STACK_SIZE] = 4 * PAGE;
    // The child goes on at the end of its stack, where it has nothing to return to.
    __asm__ volatile("syscall; test %%rax, %%rax; jnz 1f; push $42; pop %%rdi; push %%rdi; mov $60, %%eax; syscall; 1:"
                     : "=a"(child) : "a"(CLONE3), "D"(words), "S"(64) : "rcx", "r11", "memory");
    CHECK(child > 0 && CALL(WAIT4, child, &status, 0, 0) == child && status == FINE << 8);
    CHECK(cleared == 0 && *(u64 *)(stack + 4 * PAGE - 8) == 42);
    // Sizes: less than ever was, more than a page, more than is known that says something, and nothing.
    memset(words, 0, sizeof words);
    words[EXIT_SIGNAL] = 65;
    CHECK(clone3(words, 56) == -EINVAL && clone3(words, PAGE + 8) == -7 && clone3((u64 *)16, 88) == -EFAULT);
    CHECK(clone3(words, 88) == -EINVAL && clone3(words, 128) == -EINVAL);
    words[MORE] = 1;
    CHECK(clone3(words, 128) == -7);
    // What contradicts itself.
    const u64 refused[][2] = {
        { FLAGS, 17 }, { FLAGS, 1ul << 40 }, { FLAGS, clear_sighand | SIGHAND | VM }, { FLAGS, SIGHAND }, { STACK, (u64)stack },
        { STACK_SIZE, PAGE }, { SET_TID_SIZE, 1 }, { SET_TID, (u64)words },
    };
    for (u64 index = 0; index < sizeof refused / sizeof *refused; index++) {
        memset(words, 0, sizeof words);
        words[refused[index][0]] = refused[index][1];
        CHECK(clone3(words, 88) == -EINVAL);
    }
    memset(words, 0, sizeof words);
    words[FLAGS] = THREAD | SIGHAND | VM, words[EXIT_SIGNAL] = SIGCHLD;
    CHECK(clone3(words, 88) == -EINVAL);
    // What there is not: a file for a task, namespaces.
    const u64 missing[] = { 0x1000, 0x20000, 0x2000000, 0x20000000 };
    for (u64 index = 0; index < sizeof missing / sizeof *missing; index++) {
        child = CALL(CLONE, missing[index] | SIGCHLD, 0, &number);
        if (child == 0)
            finish(1);
        CHECK(child == -EINVAL);
    }
}

// The number that a file of `/proc` says behind the first `name` that begins a line.
static u64 told(const char *path, const char *name)
{
    static char text[1 << 15];
    long file = CALL(OPEN, path, 0), size = 0, got;
    CHECK(file >= 0);
    while ((got = CALL(READ, file, text + size, (long)sizeof text - 1 - size)) > 0)
        size += got;
    CHECK(got == 0 && CALL(CLOSE, file) == 0);
    text[size] = 0;
    for (const char *line = text; *line; line++) {
        u64 length = 0, value = 0;
        while (name[length] && line[length] == name[length])
            length++;
        if (!name[length]) {
            for (line += length; *line == ' ' || *line == '\t'; line++)
                ;
            for (; *line >= '0' && *line <= '9'; line++)
                value = 10 * value + (u64)(*line - '0');
            return value;
        }
        while (*line && *line != '\n')
            line++;
        CHECK(*line);
    }
    finish(2);
    return 0;
}

// So many pages are locked, as all files have it that tell of them.
static void expect_locked(u64 pages)
{
    CHECK(told("/proc/meminfo", "Mlocked:") == 4 * pages && told("/proc/meminfo", "Unevictable:") == 4 * pages);
    CHECK(told("/proc/vmstat", "nr_mlock ") == pages && told("/proc/vmstat", "nr_unevictable ") == pages);
}

static void locked(void)
{
    enum { MLOCK = 149, MUNLOCK = 150, MLOCK2 = 325, DONTNEED = 4, FREE = 8, ONFAULT = 1 };
    int status;
    char *pages = map(16 * PAGE, PROT_RW);
    for (u64 page = 0; page < 4; page++)
        pages[page * PAGE] = 1;
    CHECK(*(volatile char *)(pages + 5 * PAGE) == 0);
    expect_locked(0);
    CHECK(CALL(MLOCK2, pages, 16 * PAGE, ONFAULT) == 0);
    expect_locked(4);
    CHECK(told("/proc/self/status", "VmLck:") == 64 && told("/proc/self/smaps_rollup", "Locked:") == 16);
    pages[5 * PAGE] = pages[6 * PAGE] = 1;
    expect_locked(6);
    CHECK(CALL(MADVISE, pages, 16 * PAGE, DONTNEED) == -EINVAL && CALL(MADVISE, pages, 16 * PAGE, FREE) == -EINVAL);
    CHECK(CALL(MLOCK, pages, 16 * PAGE) == 0);
    expect_locked(16);
    // A child has the pages, not the locks; its copies are its own.
    long child = CALL(FORK);
    if (child == 0) {
        CHECK(told("/proc/self/status", "VmLck:") == 0);
        pages[0] = 2;
        expect_locked(16);
        CHECK(CALL(MLOCK, pages, 2 * PAGE) == 0);
        // Both are copies: what is locked is brought in to be written to.
        expect_locked(18);
        CHECK(pages[PAGE] == 1);
        finish(FINE);
    }
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == FINE << 8);
    expect_locked(16);
    CHECK(CALL(MUNLOCK, pages + 2 * PAGE, 3 * PAGE) == 0);
    expect_locked(13);
    CHECK(CALL(MUNMAP, pages, 4 * PAGE) == 0);
    expect_locked(11);
    CHECK(CALL(MUNMAP, pages, 16 * PAGE) == 0);
    expect_locked(0);
}

// `/tmp` holds half of all memory, and says so.
static void room(void)
{
    enum { RDWR = 2, CREAT = 0100, STATFS = 137, FSTATFS = 138, SYSINFO = 99, ENOSPC = 28 };
    u64 info[14], tmp[15], of_file[15], root[15];
    CHECK(CALL(STATFS, "/tmp", tmp) == 0 && CALL(STATFS, "/", root) == 0 && CALL(STATFS, "/nothing", root) == -ENOENT);
    CHECK(tmp[0] == 0x01021994 && tmp[1] == PAGE && tmp[8] == 255 && root[0] == 0x858458f6 && root[2] == 0);
    // Of what there was when it was mounted: what the archive of files was in came later.
    CHECK(CALL(SYSINFO, info) == 0 && tmp[2] <= info[4] / PAGE / 2 && tmp[2] > info[4] / PAGE * 15 / 32);
    CHECK(tmp[3] == tmp[2] && tmp[4] == tmp[3]);
    long file = CALL(OPEN, "/tmp/full", RDWR | CREAT, 0600);
    CHECK(file >= 0 && CALL(WRITE, file, "x", 1) == 1);
    CHECK(CALL(FSTATFS, file, of_file) == 0 && of_file[3] == tmp[3] - 1 && CALL(FSTATFS, 99, of_file) == -EBADF);
    // All but a page, then that, then more.
    CHECK(CALL(FALLOCATE, file, 0, 0, (tmp[2] - 1) * PAGE) == 0 && CALL(FALLOCATE, file, 0, 0, (tmp[2] + 1) * PAGE) == -ENOSPC);
    CHECK(CALL(STATFS, "/tmp", tmp) == 0 && tmp[3] == 1);
    char *mapped = (char *)CALL(MMAP, 0, 2 * PAGE, PROT_RW, MAP_SHARED, file, (tmp[2] - 1) * PAGE);
    CHECK(!failed(mapped) && CALL(FTRUNCATE, file, (tmp[2] + 1) * PAGE) == 0);
    handle(SIGBUS, note, 0);
    STORE(mapped); CHECK(seen.count == 0);
    STORE(mapped + PAGE); CHECK(seen.count == 1 && seen.number == SIGBUS && seen.code == 2);
    CHECK(CALL(LSEEK, file, (tmp[2] + 1) * PAGE, 0) > 0 && CALL(WRITE, file, "x", 1) == -ENOSPC);
    // The other one has room of its own.
    long other = CALL(OPEN, "/dev/shm/some", RDWR | CREAT, 0600);
    CHECK(other >= 0 && CALL(WRITE, other, "x", 1) == 1);
    CHECK(CALL(FTRUNCATE, file, 0) == 0 && CALL(STATFS, "/tmp", tmp) == 0 && tmp[3] == tmp[2]);
}

// What was moved of pieces before one was not there, and lists that make no sense.
static void pieces(void)
{
    enum { READV = 19, VM_READV = 310, VM_WRITEV = 311 };
    struct piece { void *at; u64 size; } here[2], there[2], wild = { 0, 1ul << 63 };
    char *from = map(3 * PAGE, PROT_RW), *to = map(3 * PAGE, PROT_RW);
    long me = CALL(GETPID);
    int ends[2];
    for (u64 at = 0; at < 3 * PAGE; at++)
        from[at] = (char)(at / 7);
    CHECK(CALL(MUNMAP, to + 2 * PAGE, PAGE) == 0 && CALL(PIPE, ends) == 0);
    // The second piece here is not there; one that ends where something ends.
    here[0] = (struct piece){ to, PAGE }, here[1] = (struct piece){ to + 2 * PAGE, PAGE };
    there[0] = (struct piece){ from, 3 * PAGE };
    CHECK(CALL(VM_READV, me, here, 2, there, 1, 0) == (long)PAGE && to[PAGE - 1] == from[PAGE - 1]);
    here[0] = (struct piece){ to + PAGE / 2, 2 * PAGE };
    CHECK(CALL(VM_READV, me, here, 1, there, 1, 0) == (long)(3 * PAGE / 2) && to[2 * PAGE - 1] == from[3 * PAGE / 2 - 1]);
    CHECK(CALL(VM_WRITEV, me, here, 1, there, 1, 0) == (long)(3 * PAGE / 2));
    CHECK(CALL(VM_READV, me, here + 1, 1, there, 1, 0) == -EFAULT && CALL(VM_WRITEV, me, here + 1, 1, there, 1, 0) == -EFAULT);
    // Pieces of other sizes on both sides, and none.
    here[0] = (struct piece){ to, 3 }, here[1] = (struct piece){ to + 3, 2 * PAGE - 3 };
    there[0] = (struct piece){ from + 1, PAGE }, there[1] = (struct piece){ from + PAGE + 1, PAGE };
    CHECK(CALL(VM_READV, me, here, 2, there, 2, 0) == (long)(2 * PAGE));
    for (u64 at = 0; at < 2 * PAGE; at++)
        CHECK(to[at] == from[at + 1]);
    CHECK(CALL(VM_READV, me, here, 0, there, 1, 0) == 0 && CALL(VM_READV, -1, here, 1, there, 0, 0) == 0);
    CHECK(CALL(VM_READV, 99999, here, 1, there, 1, 0) == -ESRCH);
    // Lengths below 0, more pieces than there may be, lists that are not there.
    CHECK(CALL(VM_READV, me, &wild, 1, there, 1, 0) == -EINVAL && CALL(VM_READV, me, here, 1, &wild, 1, 0) == -EINVAL);
    CHECK(CALL(READV, ends[0], &wild, 1) == -EINVAL && CALL(WRITEV, ends[1], &wild, 1) == -EINVAL);
    CHECK(CALL(READV, ends[0], here, 1025) == -EINVAL && CALL(VM_READV, me, here, 1025, there, 1, 0) == -EINVAL);
    CHECK(CALL(VM_READV, me, 16, 1, there, 1, 0) == -EFAULT && CALL(VM_READV, me, here, 1, 16, 1, 0) == -EFAULT);
    // Nothing is asked of what nobody can map.
    CHECK(CALL(MMAP, 0, 0, PROT_READ, MAP_SHARED, ends[0], 0) == -EINVAL);
    CHECK(CALL(MMAP, 0, PAGE, PROT_READ, MAP_SHARED, ends[0], 0) == -ENODEV);
}

// How much was mapped at most, by this program and by children that are gone; and what is shared.
static void most(void)
{
    enum { GETRUSAGE = 98, SYSINFO = 99, SELF = 0, CHILDREN = -1, MAXRSS = 4, SHARED = 6, PAGES = 300 };
    u64 usage[18], info[14], before;
    int status;
    CHECK(CALL(GETRUSAGE, SELF, usage) == 0 && usage[MAXRSS] > 0 && usage[MAXRSS] < 4 * PAGES);
    before = usage[MAXRSS];
    CHECK(CALL(GETRUSAGE, CHILDREN, usage) == 0 && usage[MAXRSS] == 0);
    long child = CALL(FORK);
    if (child == 0) {
        char *pages = map(PAGES * PAGE, PROT_RW);
        memset(pages, 1, PAGES * PAGE);
        CHECK(CALL(MUNMAP, pages, PAGES * PAGE) == 0 && CALL(GETRUSAGE, SELF, usage) == 0);
        CHECK(usage[MAXRSS] >= 4 * PAGES && usage[MAXRSS] < 8 * PAGES);
        finish(FINE);
    }
    CHECK(CALL(WAIT4, child, &status, 0, usage) == child && status == FINE << 8 && usage[MAXRSS] >= 4 * PAGES);
    CHECK(CALL(GETRUSAGE, CHILDREN, usage) == 0 && usage[MAXRSS] >= 4 * PAGES && usage[MAXRSS] < 8 * PAGES);
    CHECK(CALL(GETRUSAGE, SELF, usage) == 0 && usage[MAXRSS] < before + 64);
    CHECK(CALL(SYSINFO, info) == 0);
    before = info[SHARED];
    char *shared = (char *)CALL(MMAP, 0, 5 * PAGE, PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memset(shared, 1, 5 * PAGE);
    CHECK(CALL(SYSINFO, info) == 0 && info[SHARED] == before + 5 * PAGE);
}

// A thread of the kernel's that waits for work sleeps, and is no load.
static void idle(void)
{
    char text[256];
    long file = CALL(OPEN, "/proc/2/stat", 0), size = CALL(READ, file, text, sizeof text), at = 0;
    CHECK(size > 0 && CALL(CLOSE, file) == 0);
    while (at + 2 < size && text[at] != ')')
        at++;
    CHECK(text[at] == ')' && text[at + 1] == ' ' && text[at + 2] == 'I');
}

static long setting(const char *path, const char *value)
{
    long file = CALL(OPEN, path, 1), size = 0;
    if (file < 0)
        return file;
    while (value[size])
        size++;
    long done = CALL(WRITE, file, value, size);
    CHECK(CALL(CLOSE, file) == 0);
    return done == size ? 0 : done;
}

// How much is promised: any amount, or no more than a limit. Settings stay what they were if they make no sense.
static void promises(void)
{
    enum { SYSINFO = 99, TOTAL = 4 };
    const char *mode = "/proc/sys/vm/overcommit_memory", *areas = "/proc/sys/vm/max_map_count";
    u64 info[14];
    CHECK(CALL(SYSINFO, info) == 0);
    u64 more = 2 * info[TOTAL];
    CHECK(failed(map(more, PROT_RW)) && setting(mode, "3") == -EINVAL && setting(mode, "-1") == -EINVAL);
    CHECK(told(mode, "") == 0 && setting(mode, "1") == 0 && told(mode, "") == 1);
    char *any = map(more, PROT_RW);
    CHECK(!failed(any) && CALL(MUNMAP, any, more) == 0);
    CHECK(setting("/proc/sys/vm/overcommit_kbytes", "16384") == 0 && told("/proc/sys/vm/overcommit_ratio", "") == 0);
    CHECK(setting(mode, "2") == 0 && failed(map(16 << 20, PROT_RW)));
    char *some = map(8 << 20, PROT_RW);
    CHECK(!failed(some) && told("/proc/meminfo", "CommitLimit:") == 16384 && failed(map(8 << 20, PROT_RW)));
    CHECK(setting("/proc/sys/vm/overcommit_ratio", "50") == 0 && told("/proc/sys/vm/overcommit_kbytes", "") == 0);
    CHECK(!failed(map(8 << 20, PROT_RW)) && setting(mode, "0") == 0);
    CHECK(setting(areas, "2147483648") == -EINVAL && setting(areas, "3") == 0 && failed(map(PAGE, PROT_READ)));
    CHECK(setting(areas, "65530") == 0 && !failed(map(PAGE, PROT_READ)));
    CHECK(setting("/proc/sys/vm/mmap_min_addr", "4096") == -EPERM && told("/proc/sys/vm/mmap_min_addr", "") == 65536);
}

static u64 now(void)
{
    u64 time[2];
    CHECK(CALL(CLOCK, 1, time) == 0);
    return time[0] * 1000000000 + time[1];
}
static volatile u32 word, handled;
static void count(int number)
{
    (void)number;
    handled++;
}

// A wait for a word goes on to its end when a signal has only stopped it, and does not begin anew.
static void waits(void)
{
    enum { WAIT = 0, WAIT_BITSET = 9, PRIVATE = 128, RESTART = 219, ETIMEDOUT = 110 };
    const u64 moment[2] = { 0, 40000000 }, time[2] = { 0, 400000000 }, past[2] = { 0, 1 };
    CHECK(CALL(FUTEX, &word, WAIT | PRIVATE, 0, past) == -ETIMEDOUT && CALL(FUTEX, &word, WAIT | PRIVATE, 1, time) == -EAGAIN);
    CHECK(CALL(RESTART) == -EINTR);
    // Whoever stops and goes on often enough would wait for ever if the time began anew each time.
    long me = CALL(GETPID), child = CALL(FORK);
    if (child == 0) {
        for (int round = 0; round < 15; round++) {
            CALL(NANOSLEEP, moment, 0);
            CHECK(CALL(KILL, me, SIGSTOP) == 0);
            CALL(NANOSLEEP, moment, 0);
            CHECK(CALL(KILL, me, SIGCONT) == 0);
        }
        finish(FINE);
    }
    int status;
    u64 begin = now();
    CHECK(CALL(FUTEX, &word, WAIT | PRIVATE, 0, time) == -ETIMEDOUT && now() - begin >= 400000000);
    // It has not waited until nobody stopped it any more.
    CHECK(CALL(WAIT4, child, &status, 1, 0) == 0);
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == FINE << 8);
    // Whoever handles a signal learns of it, even if calls are to be made again: but for a wait without a time.
    handle(SIGUSR1, (void *)count, SA_RESTART);
    child = CALL(FORK);
    if (child == 0) {
        CALL(NANOSLEEP, moment, 0);
        CHECK(CALL(KILL, me, SIGUSR1) == 0);
        finish(FINE);
    }
    const u64 late[2] = { 1000, 0 };
    CHECK(CALL(FUTEX, &word, WAIT | PRIVATE, 0, late) == -EINTR && handled == 1);
    CHECK(CALL(RESTART) == -EINTR);
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == FINE << 8);
}

// What a program is told of itself, of how it is scheduled, and of others.
static void told_of(void)
{
    enum { GETGROUPS = 115, GETRESUID = 118, GETRESGID = 120, GETPRIORITY = 140, SETPRIORITY = 141, GETPARAM = 143,
           SETSCHEDULER = 144, GETSCHEDULER = 145, PRIORITY_MAX = 146, PRIORITY_MIN = 147, RR_INTERVAL = 148, PRCTL = 157,
           PRLIMIT = 302, MEMBARRIER = 324, NOFILE = 7 };
    u32 real = 9, effective = 9, saved = 9, parameter = 9;
    u64 limits[2], mine[2], interval[2] = { 9, 9 };
    int status, ends[2];
    CHECK(CALL(GETRESUID, &real, &effective, &saved) == 0 && (real | effective | saved) == 0);
    real = 9;
    CHECK(CALL(GETRESGID, &real, &effective, &saved) == 0 && real == 0 && CALL(GETRESUID, &real, 16, &saved) == -EFAULT);
    CHECK(CALL(GETGROUPS, 0, 0) == 0 && CALL(GETGROUPS, 8, mine) == 0 && CALL(GETGROUPS, -1, 0) == -EINVAL);
    CHECK(CALL(PRCTL, 3) == 1 && CALL(GETSCHEDULER, 0) == 0 && CALL(GETSCHEDULER, 30000) == -ESRCH);
    CHECK(CALL(GETPARAM, 0, &parameter) == 0 && parameter == 0 && CALL(SETSCHEDULER, 0, 0, &parameter) == 0);
    parameter = 1;
    CHECK(CALL(SETSCHEDULER, 0, 0, &parameter) == -EINVAL && CALL(PRIORITY_MAX, 1) == 99 && CALL(PRIORITY_MIN, 2) == 1);
    CHECK(CALL(PRIORITY_MAX, 0) == 0 && CALL(PRIORITY_MAX, 9) == -EINVAL && CALL(RR_INTERVAL, 0, interval) == 0);
    CHECK(interval[0] == 0 && interval[1] < 1000000000);
    // A child is less urgent, and may have fewer files.
    CHECK(CALL(PIPE, ends) == 0);
    long child = CALL(FORK);
    if (child == 0) {
        CALL(CLOSE, ends[1]), CALL(READ, ends[0], &status, 1);
        finish(CALL(OPEN, "/dev/null", 0) == -24 ? FINE : 1);
    }
    long own = CALL(GETPRIORITY, 0, 0);
    CHECK(CALL(SETPRIORITY, 0, child, 5) == 0 && CALL(GETPRIORITY, 0, child) == 15 && CALL(GETPRIORITY, 0, 0) == own);
    CHECK(CALL(SETPRIORITY, 0, child, 99) == 0 && CALL(GETPRIORITY, 0, child) == 1 && CALL(GETPRIORITY, 2, 0) >= 20);
    CHECK(CALL(GETPRIORITY, 0, 30000) == -ESRCH && CALL(GETPRIORITY, 7, 0) == -EINVAL);
    CHECK(CALL(PRLIMIT, child, NOFILE, 0, limits) == 0 && CALL(PRLIMIT, 0, NOFILE, 0, mine) == 0 && limits[0] == mine[0]);
    limits[0] = 1;
    CHECK(CALL(PRLIMIT, child, NOFILE, limits, 0) == 0 && CALL(PRLIMIT, 0, NOFILE, 0, limits) == 0 && limits[0] == mine[0]);
    CHECK(CALL(PRLIMIT, 30000, NOFILE, 0, limits) == -ESRCH && CALL(CLOSE, ends[1]) == 0 && CALL(CLOSE, ends[0]) == 0);
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == FINE << 8);
    // Groups: a new one, one of the session, none of nowhere; not of who executes something else, nor of strangers.
    enum { GETPGID = 121, TGKILL = 234 };
    child = CALL(FORK);
    if (child == 0)
        for (;;)
            CALL(PAUSE);
    CHECK(CALL(SETPGID, child, child) == 0 && CALL(GETPGID, child) == child && CALL(SETPGID, child, 30000) == -EPERM);
    CHECK(CALL(SETPGID, child, -1) == -EINVAL && CALL(SETPGID, child, CALL(GETPGID, 0)) == 0);
    CHECK(CALL(SETPGID, 30000, 0) == -ESRCH && CALL(SETPGID, 2, 0) == -ESRCH);
    CHECK(CALL(TGKILL, -1, child, 0) == -EINVAL && CALL(TGKILL, child, child, 0) == 0 && CALL(TKILL, -1, 0) == -EINVAL);
    CHECK(CALL(KILL, child, SIGKILL) == 0 && CALL(WAIT4, child, &status, 0, 0) == child);
    // Barriers: what there is, and who may have them.
    CHECK((CALL(MEMBARRIER, 0) & 25) == 25 && CALL(MEMBARRIER, 8) == -EPERM && CALL(MEMBARRIER, 1) == 0);
    CHECK(CALL(MEMBARRIER, 16) == 0 && CALL(MEMBARRIER, 8) == 0 && CALL(MEMBARRIER, 8, 4) == -EINVAL && CALL(MEMBARRIER, 3) == -EINVAL);
}

static u32 words[2];
static void wait_for(void *word)
{
    CALL(FUTEX, word, 128, 0, 0);
}

// What is done to words and with those who wait for them.
static void operations(void)
{
    enum { WAKE = 1, REQUEUE = 3, WAKE_OP = 5, LOCK_PI = 6, PRIVATE = 128, REALTIME = 256 };
    // A number, and what is done with it; then what it is compared with, and how.
    enum { SET = 0, ADD = 1, OR = 2, ANDN = 3, XOR = 4, SHIFTED = 8, EQUAL = 0, LESS = 2, GREATER = 5 };
#define HOW(operation, argument, comparison, with) ((u32)(operation) << 28 | (comparison) << 24 | ((argument) & 0xfff) << 12 | ((with) & 0xfff))
#define OPERATE(how) CALL(FUTEX, &words[0], WAKE_OP | PRIVATE, 1, 1, &words[1], how)
    static u32 tids[3];
    const u64 moment[2] = { 0, 1000000 };
    for (int index = 0; index < 3; index++)
        CHECK(spawn(wait_for, &words[0], (char *)map(4 * PAGE, PROT_RW) + 4 * PAGE, &tids[index]) > 0);
    // One is woken; another goes to the second word. What is counted is both.
    long done;
    for (u32 moved = 0; moved < 2; moved += (u32)done) {
        CHECK((done = CALL(FUTEX, &words[0], REQUEUE | PRIVATE, 0, 2 - moved, &words[1])) >= 0);
        CALL(NANOSLEEP, moment, 0);
    }
    CHECK(CALL(FUTEX, &words[0], REQUEUE | PRIVATE, -1, 1, &words[1]) == -EINVAL);
    CHECK(CALL(FUTEX, &words[0], REQUEUE | PRIVATE, 1, -1, &words[1]) == -EINVAL);
    while (OPERATE(HOW(ADD, 5, LESS, 0)) != 1)
        CALL(NANOSLEEP, moment, 0);
    CHECK(words[1] % 5 == 0 && words[1] > 0 && OPERATE(HOW(SET, -7, GREATER, 4)) == 1 && words[1] == (u32)-7);
    CHECK(OPERATE(HOW(SET, 0xf0, EQUAL, -7)) == 1 && words[1] == 0xf0);
    for (int index = 0; index < 3; index++)
        join(&tids[index]);
    CHECK(OPERATE(HOW(OR | SHIFTED, 3, EQUAL, 0)) == 0 && words[1] == 0xf8 && OPERATE(HOW(ANDN, 0x30, EQUAL, 0)) == 0);
    CHECK(words[1] == 0xc8 && OPERATE(HOW(XOR, 0x0f, EQUAL, 0)) == 0 && words[1] == 0xc7);
    CHECK(OPERATE(HOW(5, 1, EQUAL, 0)) == -ENOSYS && words[1] == 0xc7 && OPERATE(HOW(ADD, 1, 6, 0)) == -ENOSYS);
    CHECK(CALL(FUTEX, &words[0], WAKE_OP, 1, 1, 16, 0) == -EFAULT);
    const u32 *closed = map(PAGE, PROT_READ);
    CHECK(CALL(FUTEX, &words[0], WAKE_OP, 1, 1, closed, HOW(ADD, 1, EQUAL, 0)) == -EFAULT);
    CHECK(CALL(FUTEX, &words[0], WAKE | REALTIME, 1) == -ENOSYS && CALL(FUTEX, &words[0], 77, 1) == -ENOSYS);
    CHECK(CALL(FUTEX, &words[0], LOCK_PI, 1) == -ENOSYS && CALL(FUTEX, &words[0], LOCK_PI, 1) == -ENOSYS);
}

static void part(const char *name, u64 *start, const char *self)
{
    (void)start;
    if (same(name, "policies"))
        policies();
    else if (same(name, "pages"))
        pages_of();
    else if (same(name, "busy"))
        busy(self);
    else if (same(name, "wait"))
        CALL(READ, 0, &(char){ 0 }, 1);
    else if (same(name, "children"))
        children();
    else if (same(name, "locked"))
        locked();
    else if (same(name, "room"))
        room();
    else if (same(name, "waits"))
        waits();
    else if (same(name, "pieces"))
        pieces();
    else if (same(name, "most"))
        most();
    else if (same(name, "idle"))
        idle();
    else if (same(name, "promises"))
        promises();
    else if (same(name, "told"))
        told_of();
    else if (same(name, "operations"))
        operations();
    else
        finish(1);
}
