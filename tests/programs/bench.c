// Instructions of user space's work with memory: under QEMU's `-icount` with one processor the time stamp counter counts
// instructions, those of the kernel and of this program alike. Names, loops and numbers of operations are those of
// Linux's figures (scripts/linux-6.1-icount.tsv), which were taken from user mode too: each is the median of RUNS runs and
// contains what an operation executes here: the loop (`user_empty_loop`), the access or `syscall` itself, and what loads
// the call's arguments.
//
// Each result is a line `bench NAME VALUE` with two decimals.

#include "bare.h"

#ifndef RUNS
#define RUNS 21
#endif

static const char *wanted_names;
static u64 runs[RUNS];

static inline __attribute__((always_inline)) u64 now(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return low | (u64)high << 32;
}

// Whether one of the comma-separated names is how `name` begins.
static int wanted(const char *name)
{
    for (const char *next = wanted_names;;) {
        const char *at = name;
        while (*next && *next != ',' && *at == *next)
            at++, next++;
        if (*next == ',' || !*next)
            return 1;
        while (*next && *next != ',')
            next++;
        if (!*next++)
            return 0;
    }
}

// The median of `runs`, each of `ops` operations.
static void report(const char *name, u64 ops)
{
    for (int end = RUNS - 1; end > 0; end--)
        for (int at = 0; at < end; at++)
            if (runs[at] > runs[at + 1]) {
                u64 larger = runs[at];
                runs[at] = runs[at + 1], runs[at + 1] = larger;
            }
    u64 value = (runs[RUNS / 2] * 100 + ops / 2) / ops;
    char digits[24], cents[4] = { '.', (char)('0' + value / 10 % 10), (char)('0' + value % 10), 0 };
    print("bench "), print(name), print(" "), print(decimal(value / 100, digits + 24)), print(cents), print("\n");
}

// The runs of `name`, `run` being its number; `op` in a loop that takes two instructions.
#define BENCH(name) if (wanted(name)) for (int run = 0; run < RUNS || (report(name, OPS), 0); run++)
#define LOOP(count, op)                                                                                                \
    do {                                                                                                               \
        u64 left = (count);                                                                                            \
        u64 start = now();                                                                                             \
        do {                                                                                                           \
            op;                                                                                                        \
            __asm__ volatile("" : "+r"(left)::"memory");                                                               \
        } while (--left);                                                                                              \
        runs[run] = now() - start;                                                                                     \
    } while (0)

static inline __attribute__((always_inline)) void store(char *at) { __asm__ volatile("movb $1, (%0)" ::"r"(at) : "memory"); }
static inline __attribute__((always_inline)) void load(char *at) { __asm__ volatile("cmpb $0, (%0)" ::"r"(at) : "memory", "cc"); }

// One access to each page of `[at, at + pages * PAGE)`: three instructions beside the kernel's.
static inline __attribute__((always_inline)) u64 touch(char *at, u64 pages, void access(char *))
{
    char *end = at + pages * PAGE;
    u64 start = now();
    for (; at != end; at += PAGE)
        access(at);
    return now() - start;
}

// A call without arguments: nothing but its number and `syscall`.
static inline __attribute__((always_inline)) void bare_call(long number)
{
    __asm__ volatile("syscall" : "+a"(number)::"rcx", "r11", "memory");
}

#define FAULTS 4096ul
#define OPS FAULTS

static char *area(u64 pages)
{
    char *at = map(pages * PAGE, PROT_RW);
    CHECK(!failed(at));
    return at;
}

// What it costs to touch an area, new each time.
#define TOUCHED(name, mapped, how) \
    BENCH(name) { \
        char *at = mapped; \
        runs[run] = touch(at, FAULTS, how); \
        CALL(MUNMAP, at, FAULTS * PAGE); \
    }

// What it costs to unmap an area that was touched.
#define UNMAPPED(name, mapped, how) \
    BENCH(name) { \
        char *at = mapped; \
        touch(at, FAULTS, how); \
        u64 start = now(); \
        CALL(MUNMAP, at, FAULTS * PAGE); \
        runs[run] = now() - start; \
    }

static void first_touch(void)
{
    // Memory that nobody had yet: before anything here gives some back.
    char *given[RUNS] = { 0 };
    BENCH("anon_first_touch_known_zero")
        runs[run] = touch(given[run] = area(FAULTS), FAULTS, store);
    for (int run = 0; run < RUNS; run++)
        if (given[run])
            CALL(MUNMAP, given[run], FAULTS * PAGE);
    // Memory that has just been given back.
    if (wanted("anon_first_touch_write")) {
        char *at = area(FAULTS);
        touch(at, FAULTS, store);
        CALL(MUNMAP, at, FAULTS * PAGE);
    }
    TOUCHED("anon_first_touch_write", area(FAULTS), store)
    UNMAPPED("munmap_touched_anon", area(FAULTS), store)
    TOUCHED("anon_read_zero_page", area(FAULTS), load)
    BENCH("anon_write_after_zero_page") {
        char *at = area(FAULTS);
        touch(at, FAULTS, load);
        runs[run] = touch(at, FAULTS, store);
        CALL(MUNMAP, at, FAULTS * PAGE);
    }
}

static void cow(void)
{
    char *at = area(FAULTS);
    int ends[2], status;
    CHECK(CALL(PIPE, ends) == 0);
    BENCH("cow_fault_copy") {
        touch(at, FAULTS, store);
        long child = CALL(FORK);
        CHECK(child >= 0);
        if (child == 0) {
            u64 taken = touch(at, FAULTS, store);
            CALL(WRITE, ends[1], &taken, sizeof taken);
            finish(0);
        }
        CHECK(CALL(READ, ends[0], &runs[run], sizeof(u64)) == sizeof(u64));
        CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == 0);
    }
    BENCH("cow_fault_reuse") {
        touch(at, FAULTS, store);
        long child = CALL(FORK);
        CHECK(child >= 0);
        if (child == 0)
            finish(0);
        CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == 0);
        runs[run] = touch(at, FAULTS, store);
    }
    CALL(CLOSE, ends[0]), CALL(CLOSE, ends[1]);
    CALL(MUNMAP, at, FAULTS * PAGE);
}

// A file in memory whose pages are all there.
static void files(void)
{
    int file = (int)CALL(MEMFD_CREATE, "bench", 0);
    CHECK(file >= 0 && CALL(FTRUNCATE, file, FAULTS * PAGE) == 0);
#define MAPPED(flags) ((char *)CALL(MMAP, 0, FAULTS * PAGE, PROT_RW, flags, file, 0))
    char *all = MAPPED(MAP_SHARED);
    CHECK(!failed(all));
    touch(all, FAULTS, store);
    CALL(MUNMAP, all, FAULTS * PAGE);
    TOUCHED("tmpfs_read_fault_per_page", MAPPED(MAP_SHARED), load)
    TOUCHED("tmpfs_shared_write_fault", MAPPED(MAP_SHARED), store)
    UNMAPPED("munmap_touched_tmpfs", MAPPED(MAP_SHARED), load)
    TOUCHED("tmpfs_private_write_fault", MAPPED(MAP_PRIVATE), store)
    CALL(CLOSE, file);
}

#undef OPS
#define OPS 1000ul

static void calls(void)
{
    BENCH("user_empty_loop") LOOP(OPS, (void)0);
    BENCH("getppid") LOOP(OPS, bare_call(GETPPID));
    char *page = area(1);
    store(page);
    // A call there and a call back is two.
    BENCH("mprotect_1page_own_vma")
        LOOP(OPS / 2, (CALL(MPROTECT, page, PAGE, PROT_READ), CALL(MPROTECT, page, PAGE, PROT_RW)));
    CALL(MUNMAP, page, PAGE);
    char *pages = area(16), *middle = pages + 8 * PAGE;
    touch(pages, 16, store);
    BENCH("mprotect_1page_mid_vma")
        LOOP(OPS / 2, (CALL(MPROTECT, middle, PAGE, PROT_READ), CALL(MPROTECT, middle, PAGE, PROT_RW)));
    CALL(MUNMAP, pages, 16 * PAGE);
    // What is behind the end of the heap is not mapped yet.
    u64 first = ((u64)CALL(BRK, 0) + PAGE - 1) & ~(PAGE - 1), end = first;
    BENCH("brk_grow_1page_touch")
        LOOP(OPS, (CALL(BRK, end + PAGE), store((char *)end), end += PAGE));
    BENCH("brk_grow_1page") LOOP(OPS, CALL(BRK, end += PAGE));
    CALL(BRK, first);
}

#undef OPS
#define OPS 500ul

static void maps(void)
{
    char *page;
    // The page lies below another area of its kind, and grows it.
    char *above = area(1);
    BENCH("mmap_munmap_1page") LOOP(OPS, (page = map(PAGE, PROT_RW), CALL(MUNMAP, page, PAGE)));
    BENCH("mmap_touch_munmap_1page")
        LOOP(OPS, (page = map(PAGE, PROT_RW), store(page), CALL(MUNMAP, page, PAGE)));
    CALL(MUNMAP, above, PAGE);
    above = map(PAGE, PROT_READ);
    BENCH("mmap_munmap_1page_nomerge") LOOP(OPS, (page = map(PAGE, PROT_RW), CALL(MUNMAP, page, PAGE)));
    BENCH("mmap_touch_munmap_1page_nomerge")
        LOOP(OPS, (page = map(PAGE, PROT_RW), store(page), CALL(MUNMAP, page, PAGE)));
    CALL(MUNMAP, above, PAGE);
}

static void fork_exit_wait(void)
{
    long child = CALL(FORK);
    if (child == 0)
        finish(0);
    CALL(WAIT4, child, 0, 0, 0);
}

static void forks(void)
{
#undef OPS
#define OPS 20ul
    char *at = area(256);
    touch(at, 256, store);
    BENCH("fork_exit_wait_1MiB") LOOP(OPS, fork_exit_wait());
    CALL(MUNMAP, at, 256 * PAGE);
#undef OPS
#define OPS 1ul
    at = area(65536);
    if (wanted("fork_exit_wait_256MiB"))
        touch(at, 65536, store);
    BENCH("fork_exit_wait_256MiB") LOOP(OPS, fork_exit_wait());
    CALL(MUNMAP, at, 65536 * PAGE);
}

static void begin(u64 *start)
{
    char **arguments = (char **)(start + 1);
    wanted_names = start[0] > 1 ? arguments[1] : "";
    first_touch();
    cow();
    files();
    calls();
    maps();
    forks();
    finish(FINE);
}
