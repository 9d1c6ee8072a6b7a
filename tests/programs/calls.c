// Calls that libraries make and shells do not: on nodes, on memory. Its arguments name parts, which run one after the other;
// each ends the program with the number of the line that found something wrong. 42 is nothing wrong.

#include "freestanding.h"

enum { SETAFFINITY = 203, GET_MEMPOLICY = 239, MOVE_PAGES = 279 };
enum { ESRCH = 3 };
#define RW (PROT_READ | PROT_WRITE)

static void run_on(u64 cpu)
{
    u64 mask = 1ul << cpu;
    CHECK(CALL(SETAFFINITY, 0, sizeof mask, &mask) == 0);
}

// What the default policy is, which nodes there are, and where pages are. Of two nodes with a CPU each.
static void policies(void)
{
    enum { NODE = 1, ADDR = 2, ALLOWED = 4 };
    u64 mask[2] = { 9, 9 };
    int policy = 9;
    char *pages = map(4 * PAGE, RW), *closed = map(PAGE, PROT_NONE);
    CHECK(CALL(GET_MEMPOLICY, &policy, mask, 128, 0, 0) == 0 && policy == 0 && mask[0] == 0 && mask[1] == 0);
    policy = mask[0] = mask[1] = 9;
    CHECK(CALL(GET_MEMPOLICY, &policy, mask, 64, 0, ALLOWED) == 0 && policy == 0 && mask[0] == 3 && mask[1] == 9);
    CHECK(CALL(GET_MEMPOLICY, 0, 0, 0, 0, 0) == 0 && CALL(GET_MEMPOLICY, &policy, 0, 0, pages, ADDR) == 0 && policy == 0);
    for (u64 node = 0; node < 2; node++) {
        run_on(node);
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
    char *own = map(4 * PAGE, RW), *shared;
    shared = (char *)CALL(MMAP, 0, 2 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (u64 node = 0; node < 2; node++) {
        run_on(1 - node);
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

static void part(const char *name, u64 *start, const char *self)
{
    (void)start, (void)self;
    if (same(name, "policies"))
        policies();
    else if (same(name, "pages"))
        pages_of();
    else
        finish(1);
}
