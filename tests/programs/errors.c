// Every error code of a page fault that a program can bring about, its own and the kernel's on its behalf; then it sleeps, for
// somebody to look at what was recorded.

#include "bare.h"

static volatile u64 go_on, faulted;

static void note(int number, struct info *info, struct context *context)
{
    (void)number, (void)info;
    faulted = context->error + 1;
    context->rip = go_on;
}

#define TRY(instruction, at)                                                                                           \
    __asm__ volatile("lea 9f(%%rip), %%rax; mov %%rax, %0; " instruction "; 9:"                                        \
                     : "=m"(go_on) : "r"(at) : "rax", "rcx", "memory")
#define EXPECT(instruction, at, code) do { faulted = 0; TRY(instruction, at); CHECK(faulted == (code) + 1); } while (0)

static void begin(u64 *start)
{
    (void)start;
    handle(SIGSEGV, note, SA_NODEFER);
    char *gone = map(PAGE, PROT_RW), *page = map(PAGE, PROT_RW), *fresh = map(2 * PAGE, PROT_RW);
    CHECK(CALL(MUNMAP, gone, PAGE) == 0);
    page[0] = 1;
    CHECK(CALL(MPROTECT, page, PAGE, PROT_READ) == 0);
    EXPECT("movb (%1), %%cl", gone, 4);
    EXPECT("movb $1, (%1)", gone, 6);
    EXPECT("jmp *%1", gone, 0x14);
    EXPECT("movb $1, (%1)", page, 7);
    EXPECT("jmp *%1", page, 0x15);
    EXPECT("movb (%1), %%cl", 0xffffffff81000000ul, 5);
    // The kernel's: what is missing is brought in, what may not be fails.
    int ends[2];
    CHECK(CALL(PIPE, ends) == 0);
    CHECK(CALL(WRITE, ends[1], gone, 1) == -14 && CALL(PIPE, page) == -14 && CALL(PIPE, gone) == -14);
    CHECK(CALL(WRITE, ends[1], fresh, 1) == 1 && CALL(PIPE, fresh + PAGE) == 0);
    print("done\n");
    for (;;) {
        u64 long_time[2] = { 1000, 0 };
        CALL(NANOSLEEP, long_time, 0);
    }
}
