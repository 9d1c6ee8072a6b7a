// Threads that map, touch, protect and unmap at the same time, in one address space, on all CPUs: everybody finds what he has
// written, new memory is zeros, and nobody gets what is another's. Arguments: threads [64], rounds [20], pages [8]; with a fourth,
// a child storms for each byte that is read, once all its threads are there, and the byte is written when nothing is left of it.

#include "bare.h"

#define MAX_THREADS 256
#define STACK (4 * PAGE)

static u64 rounds = 20, pages = 8;
static u32 tids[MAX_THREADS];
static volatile u64 done[MAX_THREADS];
static u32 all_there;

static void work(void *argument)
{
    u64 me = (u64)argument, random = me * 0x9e3779b97f4a7c15ul + 1;
    while (!__atomic_load_n(&all_there, __ATOMIC_ACQUIRE))
        CALL(FUTEX, &all_there, 0, 0, 0);
    for (u64 round = 0; round < rounds; round++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        u64 count = 1 + random % pages;
        char *at = map(count * PAGE, PROT_RW);
        CHECK(!failed(at));
        for (u64 page = 0; page < count; page++) {
            u64 *word = (u64 *)(at + page * PAGE);
            CHECK(*word == 0);
            *word = me << 32 | round << 8 | page;
        }
        switch (random >> 8 & 3) {
        case 0:
            CHECK(CALL(MPROTECT, at, count * PAGE, PROT_READ) == 0);
            break;
        case 1:
            CHECK(CALL(YIELD) == 0);
            break;
        case 2:
            // What is given up is zeros again.
            CHECK(CALL(MADVISE, at, PAGE, 4) == 0 && *(u64 *)at == 0);
            *(volatile u64 *)at = me << 32 | round << 8;
            break;
        }
        for (u64 page = 0; page < count; page++)
            CHECK(*(u64 *)(at + page * PAGE) == (me << 32 | round << 8 | page));
        // From the middle first, so that areas are split; and then only what is left: others may have the middle by now.
        if (count > 2) {
            CHECK(CALL(MUNMAP, at + PAGE, PAGE) == 0);
            CHECK(CALL(MUNMAP, at, PAGE) == 0 && CALL(MUNMAP, at + 2 * PAGE, (count - 2) * PAGE) == 0);
        } else {
            CHECK(CALL(MUNMAP, at, count * PAGE) == 0);
        }
    }
    done[me] = rounds;
}

static __attribute__((noreturn)) void storm(u64 threads)
{
    for (u64 thread = 0; thread < threads; thread++) {
        char *stack = map(STACK, PROT_RW);
        CHECK(!failed(stack));
        CHECK(spawn(work, (void *)thread, stack + STACK, &tids[thread]) > 0);
    }
    __atomic_store_n(&all_there, 1, __ATOMIC_RELEASE);
    CHECK(CALL(FUTEX, &all_there, 1, MAX_THREADS) >= 0);
    for (u64 thread = 0; thread < threads; thread++) {
        join(&tids[thread]);
        CHECK(done[thread] == rounds);
    }
    finish(FINE);
}

static void storm_when_asked(u64 threads)
{
    u64 all = ~0ul;
    for (char byte; CALL(READ, 0, &byte, 1) == 1;) {
        long child = CALL(FORK);
        if (child == 0)
            storm(threads);
        i32 status;
        CHECK(child > 0 && CALL(WAIT4, child, &status, 0, 0) == child && status == FINE << 8);
        // A CPU that idles keeps the page tables it has used last: it is to have used ours.
        for (u64 cpu = 0; on_cpu(cpu); cpu++)
            ;
        CHECK(CALL(SETAFFINITY, 0, sizeof all, &all) == 0);
        CHECK(CALL(WRITE, 1, &byte, 1) == 1);
    }
    finish(FINE);
}

static void begin(u64 *start)
{
    char **arguments = (char **)(start + 1);
    u64 threads = start[0] > 1 ? number(arguments[1]) : 64;
    rounds = start[0] > 2 ? number(arguments[2]) : rounds;
    pages = start[0] > 3 ? number(arguments[3]) : pages;
    CHECK(threads <= MAX_THREADS && pages > 0);
    if (start[0] > 4)
        storm_when_asked(threads);
    all_there = 1;
    storm(threads);
}
