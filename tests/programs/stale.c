// What one CPU takes away another does not find any more: a thread reads and writes pages while another, on another CPU,
// unmaps them, exchanges them for new ones, or takes the right to write away. Whoever still used what its processor remembered
// would see the old page, or write where it may not. Arguments: rounds [50].

#include "bare.h"

#define STACK (4 * PAGE)

static volatile u64 turn, answer;
static u64 *volatile page;
static volatile u64 go_on, faulted;
static u32 tid;
static int other_cpu;

static void note(int number, struct info *info, struct context *context)
{
    (void)info;
    faulted = (u64)number;
    context->rip = go_on;
}

// Whether the access faults.
#define TRY(instruction, result)                                                                                       \
    do {                                                                                                               \
        faulted = 0;                                                                                                   \
        __asm__ volatile("lea 9f(%%rip), %%rax; mov %%rax, %0; " instruction "; 9:"                                    \
                         : "=m"(go_on), "+r"(result)                                                                   \
                         : "r"(page)                                                                                   \
                         : "rax", "memory");                                                                           \
    } while (0)

enum { LOOK = 1, LOOK_AT_NOTHING, WRITE_TO_READ_ONLY, END };
#define ASK(what) (turn << 8 | (what))
static volatile u64 question;

// The other CPU: answers each question once.
static void watch(void *unused)
{
    (void)unused;
    CHECK(on_cpu((u64)other_cpu));
    for (u64 asked = 0;;) {
        u64 now = question;
        if (now == asked) {
            __asm__ volatile("pause");
            continue;
        }
        asked = now;
        u64 value = 0x1234;
        switch (asked & 0xff) {
        case LOOK:
            TRY("mov (%2), %1", value);
            CHECK(!faulted);
            answer = value;
            break;
        case LOOK_AT_NOTHING:
            TRY("mov (%2), %1", value);
            answer = faulted;
            break;
        case WRITE_TO_READ_ONLY:
            TRY("mov %1, (%2)", value);
            answer = faulted;
            break;
        default:
            return;
        }
        __atomic_store_n(&turn, turn + 1, __ATOMIC_RELEASE);
    }
}

static u64 ask(u64 what)
{
    u64 before = turn;
    __atomic_store_n(&question, before << 8 | what, __ATOMIC_RELEASE);
    for (u64 times = 0; __atomic_load_n(&turn, __ATOMIC_ACQUIRE) == before; times++) {
        if (times % 4096 == 4095)
            CALL(YIELD);
        __asm__ volatile("pause");
    }
    return answer;
}

static void begin(u64 *start)
{
    char **arguments = (char **)(start + 1);
    u64 rounds = start[0] > 1 ? number(arguments[1]) : 50;
    u64 cpus = 0;
    CHECK(CALL(GETAFFINITY, 0, sizeof cpus, &cpus) > 0);
    int first = __builtin_ctzl(cpus);
    other_cpu = cpus & (cpus - 1) ? __builtin_ctzl(cpus & (cpus - 1)) : first;
    CHECK(on_cpu((u64)first));
    handle(SIGSEGV, note, SA_NODEFER);
    char *stack = map(STACK, PROT_RW);
    CHECK(!failed(stack) && spawn(watch, 0, stack + STACK, &tid) > 0);
    page = map(PAGE, PROT_RW);
    CHECK(!failed(page));
    for (u64 round = 1; round <= rounds; round++) {
        *page = round;
        CHECK(ask(LOOK) == round);
        // Another page in its place: nobody sees the old one.
        CHECK(CALL(MMAP, page, PAGE, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == (long)page);
        CHECK(ask(LOOK) == 0);
        *page = round + 1000;
        CHECK(ask(LOOK) == round + 1000);
        // No right to write: the other's write faults, and this one still reads what was there.
        CHECK(CALL(MPROTECT, page, PAGE, PROT_READ) == 0);
        CHECK(ask(WRITE_TO_READ_ONLY) == SIGSEGV && *page == round + 1000);
        CHECK(CALL(MPROTECT, page, PAGE, PROT_NONE) == 0);
        CHECK(ask(LOOK_AT_NOTHING) == SIGSEGV);
        CHECK(CALL(MPROTECT, page, PAGE, PROT_RW) == 0);
        CHECK(ask(LOOK) == round + 1000);
        // Given up, and gone.
        CHECK(CALL(MADVISE, page, PAGE, 4) == 0 && ask(LOOK) == 0);
        CHECK(CALL(MUNMAP, page, PAGE) == 0);
        CHECK(ask(LOOK_AT_NOTHING) == SIGSEGV);
        CHECK(CALL(MMAP, page, PAGE, PROT_RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == (long)page);
        // Copied on write by a fork: who is on the other CPU writes to his own, not to the child's.
        int status;
        *page = round;
        CHECK(ask(LOOK) == round);
        long child = CALL(FORK);
        CHECK(child >= 0);
        if (child == 0) {
            u64 until = *page;
            for (int times = 0; times < 20; times++) {
                CALL(YIELD);
                if (*page != until)
                    finish(3);
            }
            finish(0);
        }
        CHECK(ask(WRITE_TO_READ_ONLY) == 0 && *page == 0x1234);
        CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == 0);
    }
    question = turn << 8 | END;
    join(&tid);
    finish(FINE);
}
