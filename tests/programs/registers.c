// The floating-point and vector registers are a thread's own: x87's, SSE's, and AVX's where there are any. Two threads on
// one CPU fill them all, each with its own pattern, let something happen, and look at them: calls, a wait, page faults,
// signals whose handler fills them otherwise, the other thread in their place (by its own wish and by the clock), another
// CPU. A child begins with its parent's, a program with what the ABI says. Arguments: rounds [10].

// The compiler uses none of the registers between filling and looking.
#pragma GCC target("general-regs-only")
#include "bare.h"

#define STACK (4 * PAGE)
enum { DONTNEED = 4 };

// As FXSAVE stores them, and the vectors in full.
struct registers {
    unsigned short control, status;
    u8 tags, reserved;
    unsigned short opcode;
    u64 code, data;
    u32 mxcsr, mxcsr_mask;
    u64 x87[8][2];
    u64 xmm[16][2];
    u64 rest[12];
    u64 ymm[16][4];
} __attribute__((aligned(64)));

#define ALL(line)                                                                                                      \
    line(0) line(1) line(2) line(3) line(4) line(5) line(6) line(7) line(8) line(9) line(10) line(11) line(12) line(13) \
        line(14) line(15)
#define LOAD(n) "vmovdqu 512+32*" #n "(%rbx), %ymm" #n "\n"
#define STORE(n) "vmovdqu %ymm" #n ", 512+32*" #n "(%rbp)\n"

extern void fill(const struct registers *in, u64 avx);
extern void look(struct registers *out, u64 avx);
// Fills the registers from `in`, calls `event(argument)`, and stores them in `out`.
extern void across(const struct registers *in, struct registers *out, void (*event)(void *), void *argument, u64 avx);
__asm__(".text\n"
        "fill: push %rbx\n mov %rdi, %rbx\n test %rsi, %rsi\n jz 1f\n" ALL(LOAD)
        "1: fxrstor64 (%rbx)\n pop %rbx\n ret\n"
        "look: push %rbp\n mov %rdi, %rbp\n fxsave64 (%rbp)\n test %rsi, %rsi\n jz 1f\n" ALL(STORE)
        "1: pop %rbp\n ret\n"
        "across: push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n"
        "mov %rsi, %rbx\n mov %rdx, %r12\n mov %rcx, %r13\n mov %r8, %r14\n"
        "mov %r8, %rsi\n call fill\n"
        "mov %r13, %rdi\n call *%r12\n"
        "mov %rbx, %rdi\n mov %r14, %rsi\n call look\n"
        "pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n");

static u64 avx;
static u64 cpus[2];

static struct thread {
    struct registers in, out;
    u64 seed;
    // Has gone on, while it waits for the clock; is through.
    volatile u64 turns, done;
    volatile u64 handled;
    char *page;
    u32 tid;
} threads[2];
static u64 rounds = 10;

static u64 mixed(u64 value)
{
    value ^= value >> 31;
    value *= 0x9e3779b97f4a7c15ul;
    return value ^ value >> 29;
}

static void pattern(struct registers *to, u64 seed)
{
    memset(to, 0, sizeof *to);
    // Extended precision, another rounding in each pattern; exceptions masked.
    to->control = (unsigned short)(0x37f | (seed & 3) << 10);
    to->mxcsr = (u32)(0x1f80 | (seed >> 2 & 3) << 13);
    to->tags = 0xff;
    for (u64 n = 0; n < 8; n++) {
        to->x87[n][0] = mixed(seed + n) | 1ul << 63;
        to->x87[n][1] = 0x3fff + n;
    }
    for (u64 n = 0; n < 16; n++) {
        for (u64 part = 0; part < 4; part++)
            to->ymm[n][part] = mixed(seed * 64 + n * 4 + part + 100);
        memcpy(to->xmm[n], to->ymm[n], 16);
    }
}

static const char *different(const struct registers *a, const struct registers *b, u64 *which)
{
    *which = 0;
    if (a->control != b->control || a->tags != b->tags || a->status != b->status)
        return "x87's control or status";
    if (a->mxcsr != b->mxcsr)
        return "mxcsr";
    for (u64 n = 0; n < 16; n++) {
        *which = n;
        if (n < 8 && (a->x87[n][0] != b->x87[n][0] || (a->x87[n][1] ^ b->x87[n][1]) & 0xffff))
            return "st";
        if (a->xmm[n][0] != b->xmm[n][0] || a->xmm[n][1] != b->xmm[n][1])
            return "xmm";
        if (avx && (a->ymm[n][2] != b->ymm[n][2] || a->ymm[n][3] != b->ymm[n][3]))
            return "the upper half of ymm";
    }
    return 0;
}

// Registers filled anew, `event`, the same registers.
static void keeps(struct thread *thread, const char *name, void (*event)(void *))
{
    u64 which;
    char digits[24];
    pattern(&thread->in, ++thread->seed);
    across(&thread->in, &thread->out, event, thread, avx);
    const char *what = different(&thread->in, &thread->out, &which);
    if (what) {
        print("behind "), print(name), print(" another value in "), print(what), print(" ");
        print(decimal(which, digits + 24)), print(", thread "), print(decimal(thread - threads, digits + 24)), print("\n");
        finish(1);
    }
}

static void nothing(void *thread) { (void)thread; }
static void call_kernel(void *thread)
{
    (void)thread;
    CALL(GETPID);
}
static void yield(void *thread)
{
    (void)thread;
    CALL(YIELD);
}
static void nap(void *thread)
{
    (void)thread;
    u64 time[2] = { 0, 1000 };
    CALL(NANOSLEEP, time, 0);
}
// A page of zeros to read, one to write, one in place of it.
static void fault(void *argument)
{
    struct thread *thread = argument;
    CHECK(CALL(MADVISE, thread->page, PAGE, DONTNEED) == 0);
    CHECK(*(volatile char *)thread->page == 0);
    *(volatile char *)thread->page = 1;
}
// Until the clock has given the other thread the CPU, and back.
static void be_preempted(void *argument)
{
    struct thread *thread = argument, *other = &threads[thread == threads];
    for (u64 before = other->turns; other->turns == before && !other->done;)
        thread->turns++;
}
static void move(void *thread)
{
    (void)thread;
    CHECK(on_cpu(cpus[1]) && on_cpu(cpus[0]));
}
static void take_signal(void *argument)
{
    struct thread *thread = argument;
    u64 before = thread->handled;
    CALL(TKILL, thread->tid, SIGUSR1);
    CHECK(thread->handled == before + 1);
}
static void access_badly(void *argument)
{
    struct thread *thread = argument;
    u64 before = thread->handled;
    __asm__ volatile("movb $1, (%0)" : : "D"(16ul) : "memory");
    CHECK(thread->handled == before + 1);
}
// The child has them too, and spoils its own.
static void fork_child(void *argument)
{
    struct thread *thread = argument;
    long child = CALL(FORK);
    CHECK(child >= 0);
    if (child == 0) {
        u64 which;
        look(&thread->out, avx);
        if (different(&thread->in, &thread->out, &which))
            finish(2);
        pattern(&thread->in, 12345);
        fill(&thread->in, avx);
        finish(0);
    }
    int status;
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == 0);
}

// Finds on its stack what it has interrupted, changes the last register there, and leaves something else in all.
static void spoil(int number, struct info *info, struct context *context)
{
    (void)info;
    struct thread *thread = &threads[(u32)CALL(GETTID) == threads[1].tid];
    struct registers *saved = (struct registers *)context->fpu, other;
    // Who goes by what the frame says of itself finds AVX's in it.
    CHECK(!avx || ((context->flags & 1) && (u32)saved->rest[6] == 0x46505853 && (saved->rest[7] & 7) == 7));
    CHECK(saved && saved->mxcsr == thread->in.mxcsr && saved->control == thread->in.control);
    for (u64 n = 0; n < 16; n++)
        CHECK(saved->xmm[n][0] == thread->in.xmm[n][0] && saved->xmm[n][1] == thread->in.xmm[n][1]);
    saved->xmm[15][1]++;
    thread->in.xmm[15][1]++;
    if (avx) {
        // The upper halves are behind what FXSAVE knows and a header.
        u64 *upper = (u64 *)(context->fpu + 512 + 64);
        for (u64 n = 0; n < 32; n++)
            CHECK(upper[n] == thread->in.ymm[n / 2][2 + n % 2]);
        upper[0]++;
        thread->in.ymm[0][2]++;
    }
    if (number == SIGSEGV)
        context->rip += 3;
    pattern(&other, ++thread->seed);
    fill(&other, avx);
    CALL(YIELD);
    thread->handled++;
}

static void use(void *argument)
{
    struct thread *thread = argument;
    thread->page = map(PAGE, PROT_RW);
    CHECK(!failed(thread->page) && on_cpu(cpus[0]));
    for (u64 round = 0; round < rounds; round++) {
        keeps(thread, "nothing", nothing);
        keeps(thread, "a call", call_kernel);
        keeps(thread, "sched_yield", yield);
        keeps(thread, "nanosleep", nap);
        keeps(thread, "page faults", fault);
        keeps(thread, "a signal", take_signal);
        keeps(thread, "a bad access", access_badly);
        keeps(thread, "a move to another CPU", move);
        keeps(thread, "the other thread's turn", be_preempted);
        keeps(thread, "fork", fork_child);
    }
    thread->done = 1;
}

// What a program begins with: nothing of another's.
static void be_new(struct registers *seen)
{
    CHECK(seen->control == 0x37f && seen->status == 0 && seen->tags == 0 && seen->mxcsr == 0x1f80);
    for (u64 n = 0; n < 16; n++) {
        CHECK(!seen->xmm[n][0] && !seen->xmm[n][1]);
        CHECK(!avx || (!seen->ymm[n][2] && !seen->ymm[n][3]));
    }
}

// Whether there is AVX, the kernel keeps it, and the environment does not tell C libraries to keep off it (as where the
// kernel could not switch it).
static u64 has_avx(char **environment)
{
    u32 a = 1, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (~c & (1u << 27 | 1u << 28))
        return 0;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    if (~a & 6)
        return 0;
    for (; *environment; environment++)
        for (const char *word = *environment; *word; word++)
            if (word[0] == '-' && word[1] == 'A' && word[2] == 'V' && word[3] == 'X' && (!word[4] || word[4] == ','))
                return 0;
    return 1;
}

static void begin(u64 *start)
{
    char **arguments = (char **)(start + 1), **environment = arguments + start[0] + 1;
    avx = has_avx(environment);
    look(&threads[0].out, avx);
    be_new(&threads[0].out);
    if (start[0] > 2)
        finish(FINE);
    print(avx ? "with AVX\n" : "without AVX\n");
    if (start[0] > 1)
        rounds = number(arguments[1]);
    u64 mask = 0;
    CHECK(CALL(GETAFFINITY, 0, sizeof mask, &mask) > 0);
    cpus[0] = (u64)__builtin_ctzl(mask);
    cpus[1] = mask & (mask - 1) ? (u64)__builtin_ctzl(mask & (mask - 1)) : cpus[0];
    handle(SIGUSR1, spoil, SA_NODEFER);
    handle(SIGSEGV, spoil, SA_NODEFER);
    char *stack = map(STACK, PROT_RW);
    threads[0].tid = (u32)CALL(GETTID);
    threads[1].seed = 1ul << 32;
    CHECK(!failed(stack) && spawn(use, &threads[1], stack + STACK, &threads[1].tid) > 0);
    use(&threads[0]);
    join(&threads[1].tid);
    // Another program in place of this one, which leaves the registers full.
    char *again[] = { arguments[0], "0", "again", 0 };
    fill(&threads[1].in, avx);
    CALL(EXECVE, arguments[0], again, environment);
    CHECK(!"execve");
}
