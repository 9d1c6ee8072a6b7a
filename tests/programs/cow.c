// Forks and copies: children, and theirs, write to memory that all of them began with, and everybody sees only what is his
// own. Arguments: pages [64], children at a time [4], rounds [4].

#include "bare.h"

static u64 pages;

static void fill(char *at, u64 seed)
{
    for (u64 page = 0; page < pages; page++)
        *(u64 *)(at + page * PAGE) = seed + page;
}
static int holds(char *at, u64 seed)
{
    for (u64 page = 0; page < pages; page++)
        if (*(u64 *)(at + page * PAGE) != seed + page)
            return 0;
    return 1;
}

// A child: what it began with is the parent's, what it writes is its own, and so is it with its own child.
static void generation(char *at, u64 seed, u64 own, int depth)
{
    CHECK(holds(at, seed));
    // One half is written, the other stays shared.
    for (u64 page = 0; page < pages; page += 2)
        *(u64 *)(at + page * PAGE) = own + page;
    if (depth) {
        int status;
        long child = CALL(FORK);
        CHECK(child >= 0);
        if (child == 0) {
            fill(at, own + 7);
            CHECK(holds(at, own + 7));
            finish(0);
        }
        CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == 0);
    }
    for (u64 page = 0; page < pages; page++)
        CHECK(*(u64 *)(at + page * PAGE) == (page % 2 ? seed : own) + page);
    finish(0);
}

static void begin(u64 *start)
{
    char **arguments = (char **)(start + 1);
    pages = start[0] > 1 ? number(arguments[1]) : 64;
    u64 children = start[0] > 2 ? number(arguments[2]) : 4;
    u64 rounds = start[0] > 3 ? number(arguments[3]) : 4;
    char *at = map(pages * PAGE, PROT_RW);
    CHECK(!failed(at));
    for (u64 round = 0; round < rounds; round++) {
        u64 seed = round << 32;
        fill(at, seed);
        for (u64 child = 0; child < children; child++) {
            long pid = CALL(FORK);
            CHECK(pid >= 0);
            if (pid == 0)
                generation(at, seed, seed + (child + 1) * 1000000, child % 2 == 0);
        }
        // The parent writes while they do.
        for (u64 page = 1; page < pages; page += 2)
            *(u64 *)(at + page * PAGE) = seed + 99 + page;
        for (u64 child = 0; child < children; child++) {
            int status = -1;
            CHECK(CALL(WAIT4, -1, &status, 0, 0) > 0 && status == 0);
        }
        for (u64 page = 0; page < pages; page++)
            CHECK(*(u64 *)(at + page * PAGE) == seed + (page % 2 ? 99 : 0) + page);
        // Alone with them again.
        fill(at, seed + 5);
        CHECK(holds(at, seed + 5));
    }
    finish(FINE);
}
