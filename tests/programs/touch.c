// First touch: new memory is zeros, keeps what is written to it, and lies on the node of the CPU that touches it first,
// whoever uses it later. Arguments: pages [256].

#include "bare.h"

static int node_of(char *page)
{
    int status = -1;
    void *pages[1] = { page };
    long done = CALL(MOVE_PAGES, 0, 1, pages, 0, &status, 0);
    // Where the kernel does not tell, nobody can compare.
    return done == 0 ? status : -1;
}

static void touch_all(char *at, u64 pages)
{
    for (u64 page = 0; page < pages; page++) {
        CHECK(at[page * PAGE] == 0 && at[page * PAGE + PAGE - 1] == 0);
        at[page * PAGE] = (char)(page + 1);
    }
    for (u64 page = 0; page < pages; page++)
        CHECK(at[page * PAGE] == (char)(page + 1));
}

static void begin(u64 *start)
{
    char **arguments = (char **)(start + 1);
    u64 pages = start[0] > 1 ? number(arguments[1]) : 256;
    u64 cpus = 0;
    CHECK(CALL(GETAFFINITY, 0, sizeof cpus, &cpus) > 0 && cpus);
    char *first = 0;
    u32 first_node = 0;
    for (u64 cpu = 0; cpu < 64; cpu++) {
        if (!(cpus >> cpu & 1))
            continue;
        CHECK(on_cpu(cpu));
        u32 here, node;
        CHECK(CALL(GETCPU, &here, &node, 0) == 0 && here == cpu);
        char *at = map(pages * PAGE, PROT_RW);
        CHECK(!failed(at));
        touch_all(at, pages);
        int of = node_of(at);
        CHECK(of < 0 || (u32)of == node);
        if (first) {
            // Memory of another CPU's stays where it is when it is used from here.
            CHECK(first[0] == 1);
            first[0] = 1;
            of = node_of(first);
            CHECK(of < 0 || (u32)of == first_node);
            CHECK(CALL(MUNMAP, at, pages * PAGE) == 0);
        } else {
            first = at, first_node = node;
        }
    }
    finish(FINE);
}
