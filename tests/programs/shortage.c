// Uses up all memory: who wants more from the kernel when there is none is ended, and nobody else is. And arguments of `execve`,
// as long as they may be, and longer.

#include "bare.h"

enum { RLIMIT_NOFILE = 7, E2BIG = 7, NORESERVE = 0x4000, POPULATE_WRITE = 23 };
#define HUGE (8ul << 30)
#define STRING 120000ul
#define STRINGS 16

static char string[STRING + 1];
static char *strings[256];

// Takes all there is, then has the kernel take more. Does not come back.
static void take_all(void)
{
    char *at = (char *)CALL(MMAP, 0, HUGE, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS | NORESERVE, -1, 0);
    u64 many[2] = { 4096, 4096 };
    CHECK(!failed(at) && CALL(SETRLIMIT, RLIMIT_NOFILE, many) == 0);
    u64 done = 0;
    for (u64 step = 1ul << 20; step >= PAGE; step /= 16)
        while (CALL(MADVISE, at + done, step, POPULATE_WRITE) == 0)
            CHECK((done += step) < HUGE);
    // Each needs a record of its own.
    for (;;)
        CHECK(CALL(OPEN, "/proc/self/status", 0) >= 0);
}

static void long_arguments(char *self)
{
    for (u64 at = 0; at < STRING; at++)
        string[at] = 'a';
    for (int each = 0; each < 255; each++)
        strings[each] = string;
    CHECK(CALL(EXECVE, self, strings, 0) == -E2BIG);
    strings[STRINGS] = 0;
    long child = CALL(FORK);
    CHECK(child >= 0);
    if (child == 0)
        CHECK(CALL(EXECVE, self, strings, 0) == 0);
    int status;
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == 7 << 8);
}

static void begin(u64 *start)
{
    char **arguments = (char **)(start + 1);
    if (start[0] == STRINGS) {
        for (int each = 0; each < STRINGS; each++)
            for (u64 at = 0; at <= STRING; at++)
                CHECK(arguments[each][at] == (at < STRING ? 'a' : 0));
        finish(7);
    }
    CHECK(start[0] == 1);
    int status;
    long child = CALL(FORK);
    CHECK(child >= 0);
    if (child == 0)
        take_all();
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == SIGKILL);
    long_arguments(arguments[0]);
    finish(FINE);
}
