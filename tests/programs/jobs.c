// What guests run in the tests of stopping and sleeping, and of what is left behind. As user.c: each part ends with 42, or
// with 1 and a line that says what was wrong.

#define PARTS
#include "bare.h"

#define MS 1000000ul

static u64 now(void)
{
    u64 time[2];
    CHECK(CALL(CLOCK, 1, time) == 0);
    return time[0] * 1000 * MS + time[1];
}
static long nap(u64 nanos, u64 *rest)
{
    u64 time[2] = { nanos / (1000 * MS), nanos % (1000 * MS) };
    return CALL(NANOSLEEP, time, rest);
}

static volatile u64 children_told;
static volatile int child_code, child_status;
static void told(int number, struct info *info, struct context *context)
{
    (void)number, (void)context;
    children_told++;
    child_code = info->code;
    child_status = ((i32 *)info)[6];
}

enum { NOHANG = 1, UNTRACED = 2, CONTINUED = 8 };

// A child that counts in shared memory is stopped and goes on, and the parent learns of both.
static void stops(void)
{
    volatile u64 *shared = (u64 *)CALL(MMAP, 0, PAGE, PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    handle(SIGCHLD, told, SA_RESTART);
    int status;
    long child = CALL(FORK);
    if (child == 0)
        for (;;) {
            shared[0]++;
            CALL(YIELD);
        }
    CHECK(CALL(SETPGID, child, child) == 0);
    static const int signals[] = { SIGSTOP, SIGTSTP };
    for (int turn = 0; turn < 2; turn++) {
        while (shared[0] < 10)
            nap(MS, 0);
        CHECK(CALL(WAIT4, child, &status, NOHANG | UNTRACED | CONTINUED, 0) == 0);
        children_told = 0;
        CHECK(CALL(KILL, child, signals[turn]) == 0);
        CHECK(CALL(WAIT4, child, &status, UNTRACED, 0) == child && status == (signals[turn] << 8 | 0x7f));
        CHECK(children_told == 1 && child_code == 5 && child_status == signals[turn]);
        u64 seen_count = shared[0];
        nap(5 * MS, 0);
        CHECK(shared[0] == seen_count && CALL(WAIT4, child, &status, NOHANG | UNTRACED, 0) == 0);
        // It goes on where it was.
        CHECK(CALL(KILL, child, SIGCONT) == 0);
        CHECK(CALL(WAIT4, child, &status, CONTINUED, 0) == child && status == 0xffff);
        CHECK(children_told == 2 && child_code == 6 && child_status == SIGCONT);
        while (shared[0] < seen_count + 10)
            nap(MS, 0);
    }
    // Stopped or not, it can be ended.
    CHECK(CALL(KILL, child, SIGSTOP) == 0 && CALL(WAIT4, child, &status, UNTRACED, 0) == child);
    CHECK(CALL(KILL, child, SIGKILL) == 0 && CALL(WAIT4, child, &status, 0, 0) == child && status == SIGKILL);
}

static volatile u64 handled;
static void count(int number, struct info *info, struct context *context)
{
    (void)number, (void)info, (void)context;
    handled++;
}

// Who sleeps for a time sleeps that long, whatever stops him, unless he handles a signal.
static void naps(void)
{
    long me = CALL(GETPID);
    int status;
    u64 rest[2] = { 0, 0 };
    long sleeper = CALL(FORK);
    if (sleeper == 0) {
        u64 start = now();
        finish(nap(2000 * MS, rest) == 0 && now() - start >= 2000 * MS ? 0 : 1);
    }
    CHECK(CALL(SETPGID, sleeper, sleeper) == 0);
    for (int turn = 0; turn < 3; turn++) {
        nap(20 * MS, 0);
        CHECK(CALL(KILL, sleeper, SIGSTOP) == 0 && CALL(WAIT4, sleeper, &status, UNTRACED, 0) == sleeper);
        nap(10 * MS, 0);
        CHECK(CALL(KILL, sleeper, SIGCONT) == 0);
    }
    CHECK(CALL(WAIT4, sleeper, &status, 0, 0) == sleeper && status == 0);
    // A handler ends it, and the rest is told.
    handle(SIGUSR1, count, SA_RESTART);
    long child = CALL(FORK);
    if (child == 0) {
        nap(20 * MS, 0);
        CALL(KILL, me, SIGUSR1);
        finish(0);
    }
    CHECK(nap(10000 * MS, rest) == -EINTR && handled == 1 && rest[0] >= 5 && rest[0] < 10);
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == 0);
    u64 until = now() + 10 * MS, time[2] = { until / (1000 * MS), until % (1000 * MS) };
    CHECK(CALL(CLOCK_NANOSLEEP, 1, 1, time, 0) == 0 && now() >= until);
}

// A list of robust mutexes, in memory that is shared with a child.
struct robust { u64 next, offset, pending; };
struct mutex { u64 next; u32 word, pad; };
struct both { struct robust head; struct mutex mutexes[3]; };

static void robust(void)
{
    struct both *both = (struct both *)CALL(MMAP, 0, PAGE, PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int status;
    CHECK(CALL(SET_ROBUST_LIST, both, 8) == -EINVAL);
    long child = CALL(FORK);
    if (child == 0) {
        u32 own = (u32)CALL(GETTID);
        both->head.next = (u64)&both->mutexes[0], both->head.offset = 8;
        both->mutexes[0].next = (u64)&both->mutexes[1], both->mutexes[1].next = (u64)&both->head;
        both->mutexes[0].word = own | 0x80000000u, both->mutexes[1].word = own + 1, both->mutexes[2].word = own;
        both->head.pending = (u64)&both->mutexes[2];
        CHECK(CALL(SET_ROBUST_LIST, both, 24) == 0);
        // The parent waits for the first.
        nap(30 * MS, 0);
        finish(0);
    }
    // It may have ended before it was seen to have the mutex.
    const u32 died = 0x40000000u;
    u32 value;
    while (((value = __atomic_load_n(&both->mutexes[0].word, __ATOMIC_ACQUIRE)) & 0x3fffffff) != (u32)child && !(value & died))
        nap(MS, 0);
    long waited = value & died ? 0 : CALL(FUTEX, &both->mutexes[0].word, 0, value, 0);
    CHECK(waited == 0 || waited == -EAGAIN);
    CHECK(both->mutexes[0].word == 0xc0000000u);
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == 0);
    // That of somebody else is left alone, the one that was being taken is not.
    CHECK(both->mutexes[1].word == (u32)child + 1 && both->mutexes[2].word == 0x40000000u);
}

// Times of files, and all that statx tells.
static void times(void)
{
    u64 stat[18], wanted[4] = { 100, 5, 200, 6 }, one[4] = { 0, 0x3ffffffe, 300, 7 }, extended[32];
    long file = CALL(OPEN, "/tmp/times", 0102, 0640);
    CHECK(CALL(WRITE, file, "12345", 5) == 5 && CALL(UTIMENSAT, -100, "/tmp/times", wanted, 0) == 0);
    CHECK(CALL(FSTAT, file, stat) == 0 && stat[9] == 100 && stat[10] == 5 && stat[11] == 200 && stat[12] == 6);
    CHECK(CALL(UTIMENSAT, file, 0, one, 0) == 0 && CALL(FSTAT, file, stat) == 0 && stat[9] == 100 && stat[11] == 300);
    CHECK(CALL(UTIMENSAT, -100, "/tmp/none", wanted, 0) == -ENOENT && CALL(UTIMENSAT, file, 0, wanted, 1) == -EINVAL);
    CHECK(CALL(STATX, -100, "/tmp/times", 0, 0xfff, extended) == 0 && (u32)extended[0] == 0x7ff && extended[5] == 5);
    CHECK((u32)extended[2] == 1 && extended[3] >> 32 == 0100640 && extended[4] == stat[1] && extended[6] == 8);
    CHECK(extended[8] == 100 && extended[14] == 300 && (u32)extended[17] == 0 && extended[17] >> 32 == 4);
    CHECK(CALL(STATX, file, "", 0x1000, 0xfff, extended) == 0 && extended[5] == 5);
    CHECK(CALL(STATX, file, "", 0, 0xfff, extended) == -ENOENT);
    CHECK(CALL(WRITE, file, "6", 1) == 1 && CALL(FSTAT, file, stat) == 0 && stat[9] == 100 && stat[11] != 300);
}

// What the kernel does wrong for a program ends that, and nothing else.
static void oops(void)
{
    static const char *const names[] = { "page-fault", "reserved", "page-fault" };
    int status;
    CHECK(CALL(WRITE, CALL(OPEN, "/proc/provoke-crash", 1), "nothing", 7) == -EINVAL);
    for (int index = 0; index < 3; index++) {
        u64 len = 0;
        while (names[index][len])
            len++;
        long child = CALL(FORK);
        if (child == 0) {
            CALL(WRITE, CALL(OPEN, "/proc/provoke-crash", 1), names[index], len);
            finish(1);
        }
        CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == SIGKILL);
    }
    // All goes on: memory, files, children.
    char *page = map(PAGE, PROT_RW);
    page[0] = 1;
    CHECK(CALL(OPEN, "/tmp/after", 0102, 0644) >= 0 && CALL(MUNMAP, page, PAGE) == 0);
}

static void part(const char *name, u64 *start, const char *self)
{
    (void)start, (void)self;
    // The first program is not stopped, and its signals are its own affair: a child is what is tried.
    int status;
    long child = CALL(FORK);
    if (child != 0) {
        CHECK(CALL(WAIT4, child, &status, 0, 0) == child);
        if (status != FINE << 8)
            finish(status & 0x7f ? status & 0x7f : status >> 8);
        return;
    }
    if (same(name, "stops"))
        stops();
    else if (same(name, "naps"))
        naps();
    else if (same(name, "robust"))
        robust();
    else if (same(name, "times"))
        times();
    else if (same(name, "oops"))
        oops();
    else
        finish(2);
    finish(FINE);
}
