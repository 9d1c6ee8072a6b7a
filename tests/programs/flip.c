// Rights that come and go: after each change of `mprotect` exactly the accesses work that it allows, and the memory stays as it
// was. Also stacks: they grow down to where they are used. Arguments: rounds [20].

#include "bare.h"

static volatile u64 go_on, faulted;

static void note(int number, struct info *info, struct context *context)
{
    (void)number;
    faulted = info->address;
    context->rip = go_on;
}

static int can(const char *instruction, char *at)
{
    faulted = 0;
    if (*instruction == 'r')
        __asm__ volatile("lea 9f(%%rip), %%rax; mov %%rax, %0; movb (%1), %%cl; 9:"
                         : "=m"(go_on) : "r"(at) : "rax", "rcx", "memory");
    else
        __asm__ volatile("lea 9f(%%rip), %%rax; mov %%rax, %0; orb $0, (%1); 9:"
                         : "=m"(go_on) : "r"(at) : "rax", "memory");
    CHECK(faulted == 0 || faulted == (u64)at);
    return !faulted;
}

static u64 deep(u64 depth)
{
    volatile u64 frame[PAGE / 8];
    frame[0] = depth;
    return depth ? deep(depth - 1) + (frame[0] == depth) : 0;
}

static void begin(u64 *start)
{
    char **arguments = (char **)(start + 1);
    u64 rounds = start[0] > 1 ? number(arguments[1]) : 20, random = 88172645463325252ul;
    enum { PAGES = 16 };
    int rights[PAGES];
    handle(SIGSEGV, note, SA_NODEFER);
    char *at = map(PAGES * PAGE, PROT_RW);
    CHECK(!failed(at));
    for (u64 page = 0; page < PAGES; page++)
        at[page * PAGE] = (char)(page + 1), rights[page] = PROT_RW;
    for (u64 round = 0; round < rounds; round++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        u64 first = random % PAGES, count = 1 + (random >> 8) % (PAGES - first);
        static const int choices[] = { PROT_NONE, PROT_READ, PROT_RW };
        int right = choices[(random >> 16) % 3];
        CHECK(CALL(MPROTECT, at + first * PAGE, count * PAGE, right) == 0);
        for (u64 page = first; page < first + count; page++)
            rights[page] = right;
        for (u64 page = 0; page < PAGES; page++) {
            CHECK(can("read", at + page * PAGE) == (rights[page] != PROT_NONE));
            CHECK(can("write", at + page * PAGE) == (rights[page] == PROT_RW));
        }
    }
    CHECK(CALL(MPROTECT, at, PAGES * PAGE, PROT_READ) == 0);
    for (u64 page = 0; page < PAGES; page++)
        CHECK(at[page * PAGE] == (char)(page + 1));
    CHECK(deep(500) == 500);
    finish(FINE);
}
