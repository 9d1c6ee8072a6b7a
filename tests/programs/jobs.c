// What guests run in the tests of stopping and sleeping, and of what is left behind. As user.c: each part ends with 42, or
// with 1 and a line that says what was wrong.

#define PARTS
#include "bare.h"

static u64 now(void)
{
    u64 time[2];
    CHECK(CALL(CLOCK, 1, time) == 0);
    return time[0] * 1000 * MS + time[1];
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

static u64 clock(long which)
{
    u64 time[2];
    CHECK(CALL(CLOCK, which, time) == 0);
    return time[0] * 1000 * MS + time[1];
}
static void spin(u64 nanos)
{
    for (u64 start = now(); now() - start < nanos;)
        ;
}
static volatile u32 spinning;
static void spin_on_one(void *nothing)
{
    (void)nothing;
    on_cpu(1);
    while (spinning)
        ;
}

// What is slept and what is used, by all clocks.
static void clocks(void)
{
    enum { SIGSUSPEND = 130, GETRUSAGE = 98, TIMES = 100, CLOCK_GETRES = 229, PROCESS = 2, THREAD = 3 };
    const u64 all = 3, none = 0;
    u64 usage[18], ticks[4], before[2], long_time[2] = { ~0ul >> 1, 0 };
    int status;
    // Who waits for ever, by whatever call, keeps nobody's time: neither of two that would be awake at once.
    CHECK(on_cpu(0));
    long children[3];
    for (int index = 0; index < 3; index++)
        if ((children[index] = CALL(FORK)) == 0) {
            if (index == 0)
                CALL(PAUSE);
            else if (index == 1)
                CALL(SIGSUSPEND, &none, 8);
            else
                CALL(NANOSLEEP, long_time, 0);
            finish(1);
        }
    for (int turn = 0; turn < 3; turn++)
        nap(5 * MS, 0);
    for (int index = 0; index < 3; index++)
        CHECK(CALL(KILL, children[index], SIGKILL) == 0 && CALL(WAIT4, children[index], &status, 0, 0) > 0 && status == SIGKILL);
    // Time is counted while it is spent, not only when somebody else has had the CPU.
    before[0] = clock(THREAD), before[1] = clock(PROCESS);
    spin(60 * MS);
    CHECK(clock(THREAD) - before[0] >= 10 * MS && clock(PROCESS) - before[1] >= 10 * MS);
    CHECK(CALL(GETRUSAGE, 0, usage) == 0 && usage[0] * 1000000 + usage[1] + usage[2] * 1000000 + usage[3] >= 10000);
    // That of another thread belongs to the process, also while it runs on another CPU; and it has a clock of its own.
    static u32 tid;
    char *stack = map(4 * PAGE, PROT_RW);
    spinning = 1;
    long thread = spawn(spin_on_one, 0, stack + 4 * PAGE, &tid), me = CALL(GETPID);
    CHECK(thread > 0);
    before[0] = clock(THREAD), before[1] = clock(PROCESS);
    for (int turn = 0; turn < 100 && clock(PROCESS) - before[1] < 400 * MS; turn++)
        nap(50 * MS, 0);
    CHECK(clock(PROCESS) - before[1] >= 400 * MS && clock(THREAD) - before[0] < 200 * MS);
    CHECK(CALL(TIMES, ticks) > 0 && ticks[0] + ticks[1] >= 10);
    // The number, inverted, of whom it is.
    long of_thread = ~thread * 8, of_process = ~me * 8;
    CHECK(clock(of_thread | 6) >= 50 * MS && clock(of_process | 2) >= 100 * MS && clock(of_process | 1) >= 50 * MS);
    CHECK(CALL(CLOCK, of_process | 3, before) == -EINVAL && CALL(CLOCK, -8l * 30001 | 2, before) == -EINVAL);
    CHECK(CALL(CLOCK_GETRES, of_process | 2, before) == 0 && before[1] == 1 && CALL(CLOCK_GETRES, 99, before) == -EINVAL);
    CHECK(CALL(CLOCK_NANOSLEEP, THREAD, 0, before, 0) == -EOPNOTSUPP);
    spinning = 0;
    join(&tid);
    CHECK(CALL(SETAFFINITY, 0, sizeof all, &all) == 0);
}

// `waitid` asks for a child without taking it, if that is wanted.
static void asks(void)
{
    enum { WAITID = 247, ALL = 0, PID = 1, PGID = 2, EXITED = 4, NOWAIT = 0x1000000 };
    i32 info[32];
    int status;
    long child = CALL(FORK);
    if (child == 0) {
        CALL(KILL, CALL(GETPID), SIGSTOP);
        finish(9);
    }
    CHECK(CALL(SETPGID, child, child) == 0);
#define TOLD(code, value) (info[0] == SIGCHLD && info[1] == 0 && info[2] == (code) && info[4] == child && info[5] == 0 && info[6] == (value))
    CHECK(CALL(WAITID, PID, child, info, UNTRACED | NOWAIT, 0) == 0 && TOLD(5, SIGSTOP));
    CHECK(CALL(WAITID, PGID, child, info, UNTRACED, 0) == 0 && TOLD(5, SIGSTOP));
    CHECK(CALL(WAITID, ALL, 0, info, UNTRACED | EXITED | NOHANG, 0) == 0 && info[0] == 0 && info[4] == 0);
    CHECK(CALL(KILL, child, SIGCONT) == 0 && CALL(WAITID, PID, child, info, CONTINUED, 0) == 0 && TOLD(6, SIGCONT));
    CHECK(CALL(WAITID, PID, child, info, EXITED | NOWAIT, 0) == 0 && TOLD(1, 9));
    u64 usage[18] = { 0 };
    CHECK(CALL(WAITID, PID, child, info, EXITED, usage) == 0 && TOLD(1, 9) && usage[0] + usage[1] + usage[2] + usage[3] > 0);
    CHECK(CALL(WAITID, PID, child, info, EXITED, 0) == -ECHILD && CALL(WAIT4, child, &status, 0, 0) == -ECHILD);
    child = CALL(FORK);
    if (child == 0)
        for (;;)
            CALL(PAUSE);
    CHECK(CALL(KILL, child, SIGKILL) == 0 && CALL(WAITID, PGID, 0, info, EXITED, 0) == 0 && TOLD(2, SIGKILL));
    CHECK(CALL(WAITID, PID, child, info, 0, 0) == -EINVAL && CALL(WAITID, PID, 0, info, EXITED, 0) == -EINVAL);
    CHECK(CALL(WAITID, 9, 1, info, EXITED, 0) == -EINVAL && CALL(WAITID, ALL, 0, info, EXITED | 16, 0) == -EINVAL);
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
    if (same(name, "stops"))
        apart(stops);
    else if (same(name, "naps"))
        apart(naps);
    else if (same(name, "clocks"))
        apart(clocks);
    else if (same(name, "asks"))
        apart(asks);
    else if (same(name, "robust"))
        apart(robust);
    else if (same(name, "times"))
        apart(times);
    else if (same(name, "oops"))
        apart(oops);
    else
        finish(2);
}
