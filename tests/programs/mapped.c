// A program with memory of all kinds at addresses that its test knows, and a child that has a part of it. It reads its own
// files in /proc, prints them, and sleeps, so that others can look at it while it is as it was when it read them.

#define PARTS
#include "bare.h"


// Where what is; the test has the same numbers.
#define UNTOUCHED 0x10000000ul
#define COPIED 0x20000000ul
#define NONE 0x30000000ul
#define ZERO 0x38000000ul
#define SHARED 0x40000000ul
#define NODES 0x50000000ul

static const char *const files[] = {
    "maps", "smaps", "smaps_rollup", "statm", "numa_maps", "status", "../meminfo",
};
enum { FILES = sizeof files / sizeof *files, ROOM = 1 << 15 };
static char texts[FILES][ROOM];
static long sizes[FILES];
static u64 frames[4];

static void map_at(u64 at, u64 pages, int prot, long kind)
{
    CHECK(CALL(MMAP, at, pages * PAGE, prot, kind | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == (long)at);
}
static void write_pages(u64 at, u64 pages)
{
    for (u64 page = 0; page < pages; page++)
        *(volatile u64 *)(at + page * PAGE) = page + 1;
}
static u64 length(const char *text)
{
    u64 count = 0;
    while (text[count])
        count++;
    return count;
}
static void put(const char *text, u64 count)
{
    for (long done; count != 0; text += done, count -= (u64)done)
        CHECK((done = CALL(WRITE, 1, text, count)) > 0);
}

// Reads all files, each at once if possible, so that what they say is of one moment.
static void read_files(void)
{
    for (int index = 0; index < FILES; index++) {
        char name[64] = "/proc/self/";
        memcpy(name + length(name), files[index], length(files[index]) + 1);
        long file = CALL(OPEN, name, 0), got;
        CHECK(file >= 0);
        sizes[index] = 0;
        while ((got = CALL(READ, file, texts[index] + sizes[index], ROOM - sizes[index])) != 0) {
            CHECK(got > 0);
            sizes[index] += got;
        }
        CHECK(CALL(CLOSE, file) == 0);
    }
}
// The words for four pages: copied by the child, shared with it, of zeros, of shared memory.
static void read_frames(void)
{
    const u64 at[] = { COPIED, COPIED + 9 * PAGE, ZERO, SHARED };
    long file = CALL(OPEN, "/proc/self/pagemap", 0);
    CHECK(file >= 0);
    for (int index = 0; index < 4; index++) {
        CHECK(CALL(LSEEK, file, at[index] / PAGE * 8, 0) >= 0);
        CHECK(CALL(READ, file, frames + index, 8) == 8);
    }
    CHECK(CALL(CLOSE, file) == 0);
}
static void print_frames(u64 count)
{
    for (u64 index = 0; index < count; index++) {
        char line[17];
        for (int digit = 0; digit < 16; digit++)
            line[digit] = "0123456789abcdef"[frames[index] >> (60 - 4 * digit) & 15];
        line[16] = '\n';
        put(line, sizeof line);
    }
}
static void print_all(void)
{
    for (int index = 0; index < FILES; index++) {
        put("== ", 3);
        put(files[index], length(files[index]));
        put("\n", 1);
        put(texts[index], (u64)sizes[index]);
    }
    put("== frames\n", 10);
    print_frames(4);
    put("== end\n", 7);
}

// Tells by its name how far it is.
static void rename_to(const char *name)
{
    long file = CALL(OPEN, "/proc/self/comm", 1);
    CHECK(file >= 0);
    CHECK(CALL(WRITE, file, name, length(name)) == (long)length(name));
    CHECK(CALL(CLOSE, file) == 0);
}

// Two that never sleep: one calls the kernel, the other makes children that map memory and end.
static void be_busy(void)
{
    if (CALL(FORK) == 0) {
        for (;;)
            CALL(GETPPID);
    }
    for (;;) {
        long child = CALL(FORK);
        CHECK(child >= 0);
        if (child == 0) {
            map_at(COPIED, 16, PROT_RW, MAP_PRIVATE);
            write_pages(COPIED, 16);
            CHECK(CALL(MUNMAP, COPIED, 8 * PAGE) == 0);
            map_at(SHARED, 4, PROT_RW, MAP_SHARED);
            write_pages(SHARED, 4);
            finish(FINE);
        }
        CHECK(CALL(WAIT4, child, 0, 0, 0) == child);
    }
}

static volatile int has_begun;
static char stack[4 * PAGE] __attribute__((aligned(16)));
static u32 thread;

static void sleep_for_ever(void *argument)
{
    (void)argument;
    has_begun = 1;
    for (;;)
        CALL(PAUSE);
}

// A leader of two threads and of a session, with signals that it blocks, ignores, handles, and that wait for the thread and
// for the process; with few rights for its files, a file of a large number, one CPU, and a limit of its own.
static __attribute__((noreturn)) void stand(void)
{
    u64 blocked = 1ul << (SIGUSR1 - 1) | 1ul << (SIGUSR2 - 1), limits[2] = { 123, 456 };
    CHECK(CALL(SETSID) > 0 && CALL(UMASK, 027) >= 0 && CALL(SETRLIMIT, 11, limits) == 0);
    handle(SIGPIPE, (void *)1, 0);
    handle(SIGCHLD, note, 0);
    CHECK(CALL(SIGPROCMASK, 0, &blocked, 0, 8) == 0);
    CHECK(CALL(TKILL, CALL(GETTID), SIGUSR1) == 0 && CALL(KILL, CALL(GETPID), SIGUSR2) == 0);
    CHECK(CALL(DUP2, 1, 100) == 100 && on_cpu(1));
    CHECK(spawn(sleep_for_ever, 0, stack + sizeof stack, &thread) > 0);
    while (!has_begun)
        CALL(YIELD);
    rename_to("standing");
    for (;;)
        CALL(PAUSE);
}

static int begins(const char *text, const char *with)
{
    while (*with && *text == *with)
        text++, with++;
    return !*with;
}

// Prints the status of a child that sleeps.
static __attribute__((noreturn)) void watch(void)
{
    long child = CALL(FORK);
    CHECK(child >= 0);
    if (child == 0)
        stand();
    char digits[24], name[64] = "/proc/";
    const char *number = decimal((u64)child, digits + sizeof digits);
    memcpy(name + length(name), number, length(number) + 1);
    memcpy(name + length(name), "/status", 8);
    long got;
    do {
        CALL(YIELD);
        long file = CALL(OPEN, name, 0);
        CHECK(file >= 0 && (got = CALL(READ, file, texts[0], ROOM)) > 0 && CALL(CLOSE, file) == 0);
    } while (!begins(texts[0], "Name:\tstanding\nUmask:\t0027\nState:\tS"));
    put("== standing\n", 12);
    put(texts[0], (u64)got);
    put("== end\n", 7);
    rename_to("resting");
    for (;;)
        CALL(PAUSE);
}

static void part(const char *name, u64 *start, const char *self)
{
    (void)start, (void)self;
    rename_to("mapped");
    if (same(name, "busy"))
        be_busy();
    if (same(name, "watch"))
        watch();
    CHECK(same(name, "rest"));
    map_at(UNTOUCHED, 8, PROT_RW, MAP_PRIVATE);
    map_at(COPIED, 16, PROT_RW, MAP_PRIVATE);
    map_at(NONE, 4, PROT_NONE, MAP_PRIVATE);
    map_at(ZERO, 4, PROT_RW, MAP_PRIVATE);
    map_at(SHARED, 8, PROT_RW, MAP_SHARED);
    map_at(NODES, 16, PROT_RW, MAP_PRIVATE);
    write_pages(COPIED, 16);
    write_pages(SHARED, 5);
    u64 heap = (u64)CALL(BRK, 0);
    CHECK(CALL(BRK, heap + 3 * PAGE) == (long)(heap + 3 * PAGE));
    write_pages((heap + PAGE - 1) & -PAGE, 2);
    for (int page = 0; page < 2; page++)
        CHECK(*(volatile u64 *)(ZERO + (u64)page * PAGE) == 0);
    i32 ends[2];
    char byte = 1;
    CHECK(CALL(PIPE, ends) == 0);
    long child = CALL(FORK);
    CHECK(child >= 0);
    if (child == 0) {
        write_pages(COPIED, 4);
        write_pages(SHARED, 2);
        CHECK(CALL(WRITE, ends[1], &byte, 1) == 1);
        for (;;)
            CALL(PAUSE);
    }
    CHECK(CALL(READ, ends[0], &byte, 1) == 1);
    CHECK(on_cpu(1));
    write_pages(NODES + 8 * PAGE, 8);
    CHECK(on_cpu(0));
    write_pages(NODES, 8);
    memset(texts, 1, sizeof texts);
    // The first time it touches what the second time finds.
    read_files();
    read_frames();
    put("", 0);
    print_frames(0);
    rename_to("reading");
    read_files();
    read_frames();
    print_all();
    rename_to("resting");
    for (;;)
        CALL(PAUSE);
}
