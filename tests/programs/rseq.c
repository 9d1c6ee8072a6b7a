// Restartable sequences: threads register areas, and do in critical sections what must not be interrupted. A guest of two
// nodes with a CPU each. Each part ends with 42 if all was right.
#define PARTS
#include "bare.h"

enum { RSEQ = 334, CPUS = 2, UNREGISTER = 1 };
#define SIGNATURE 0x53053053u
#define STACK (4 * PAGE)

struct area { u32 cpu_id_start, cpu_id; volatile u64 section; u32 flags, rest[3]; } __attribute__((aligned(32)));
struct section { u32 version, flags; u64 start, length, abort; } __attribute__((aligned(32)));

// One more in `counters` of this CPU, with `turns` between load and store; whether it was done.
extern long add(struct area *area, u64 *counters, u64 turns);
// Sets `word`, and never ends by itself.
extern void endless(struct area *area, volatile u32 *word);
// An instruction that there is not.
extern void trap(struct area *area);
// A call in what `section` describes, which is `call_section` or a damaged copy of it; whether it came to its end.
extern long inside(struct area *area, const struct section *section, long number, long a, long b, const void *c);
extern const struct section add_section, endless_section, trap_section, call_section;

__asm__(".text\n"
        // Each may abort to where it gives 0.
        ".long 0x53053053\n"
        "given_up: xor %eax, %eax\n ret\n"

        "add: mov (%rdi), %ecx\n"
        "movq $add_section, 8(%rdi)\n"
        "add_start: cmp %ecx, 4(%rdi)\n jne given_up\n"
        "mov (%rsi,%rcx,8), %r8\n"
        "1: dec %rdx\n jnz 1b\n"
        "inc %r8\n"
        "mov %r8, (%rsi,%rcx,8)\n"
        "add_end: mov $1, %eax\n ret\n"

        "endless: movq $endless_section, 8(%rdi)\n"
        "endless_start: movl $1, (%rsi)\n"
        "1: pause\n jmp 1b\n"
        "endless_end:\n"

        "trap: movq $trap_section, 8(%rdi)\n"
        "trap_start: ud2\n"
        "trap_end: ud2\n"

        "inside: mov %rdx, %rax\n mov %rsi, %r10\n mov %rdi, %rdx\n mov %rcx, %rdi\n mov %r8, %rsi\n"
        "xchg %r9, %rdx\n"
        "mov %r10, 8(%r9)\n"
        "call_start: syscall\n nop\n"
        "call_end: mov $1, %eax\n ret\n"

        ".macro section name\n"
        ".balign 32\n \\name\\()_section: .long 0, 0\n .quad \\name\\()_start, \\name\\()_end - \\name\\()_start, given_up\n"
        ".endm\n"
        ".section .rodata\n section add\n section endless\n section trap\n section call\n"
        ".text\n");
extern const char given_up[];

// The first thread's, in a page of its own.
static struct area first __attribute__((aligned(PAGE)));
static char rest_of_page[PAGE - sizeof first] __attribute__((used));

static struct thread {
    struct area area;
    u64 number, done;
    u32 tid;
} threads[6];
static char stacks[6][STACK];

static long enter(struct area *area) { return CALL(RSEQ, area, sizeof *area, 0, SIGNATURE); }
static long leave(struct area *area) { return CALL(RSEQ, area, sizeof *area, UNREGISTER, SIGNATURE); }

static void start(u64 number, void (*function)(struct thread *))
{
    struct thread *thread = &threads[number];
    thread->number = number, thread->done = 0, thread->tid = 1;
    CHECK(spawn((void (*)(void *))function, thread, stacks[number] + STACK, &thread->tid) > 0);
}

static long move_to(u64 cpu, const struct section *section)
{
    u64 mask = 1ul << cpu;
    return inside(&first, section, SETAFFINITY, 0, sizeof mask, &mask);
}

// What a child ends with that does `function`.
static int child(void (*function)(const void *), const void *argument)
{
    int status = -1;
    long pid = CALL(FORK);
    if (pid == 0) {
        function(argument);
        finish(0);
    }
    CHECK(pid > 0 && CALL(WAIT4, pid, &status, 0, 0) == pid);
    return status;
}

// What an area that cannot be written does when it is to be left: it ends who goes on with it.
static void leave_read_only(const void *unused)
{
    (void)unused;
    if (CALL(MPROTECT, &first, PAGE, PROT_READ) != 0)
        finish(1);
    finish(leave(&first) == -EFAULT ? 2 : 3);
}

static void register_(u64 *start)
{
    struct area *area = &first, *kernels = (struct area *)0xffff888000000000ul;
    first.cpu_id = 77;
    CHECK(CALL(RSEQ, area, 32, 2, SIGNATURE) == -EINVAL && CALL(RSEQ, area, 32, 3, SIGNATURE) == -EINVAL);
    CHECK(CALL(RSEQ, area, 31, 0, SIGNATURE) == -EINVAL && CALL(RSEQ, area, 64, 0, SIGNATURE) == -EINVAL);
    CHECK(CALL(RSEQ, (char *)area + 16, 32, 0, SIGNATURE) == -EINVAL && enter(kernels) == -EFAULT);
    CHECK(leave(area) == -EINVAL && leave(0) == -EINVAL && first.cpu_id == 77);
    for (u64 cpu = 0; cpu < CPUS; cpu++) {
        CHECK(on_cpu(cpu) && enter(area) == 0 && first.cpu_id == cpu && first.cpu_id_start == cpu);
        CHECK(leave(area) == 0 && first.cpu_id == ~0u && first.cpu_id_start == 0);
    }
    CHECK(enter(area) == 0);
    CHECK(enter(area) == -EBUSY && enter(area + 1) == -EINVAL && CALL(RSEQ, area, 31, 0, SIGNATURE) == -EINVAL);
    CHECK(CALL(RSEQ, area, 32, 0, SIGNATURE + 1) == -EPERM && CALL(RSEQ, area, 32, 1, SIGNATURE + 1) == -EPERM);
    CHECK(leave(area + 1) == -EINVAL && CALL(RSEQ, area, 31, 1, SIGNATURE) == -EINVAL);
    CHECK(CALL(RSEQ, area, 32, 3, SIGNATURE) == -EINVAL && first.cpu_id == CPUS - 1);
    for (u64 turn = 0; turn < 20; turn++) {
        CHECK(on_cpu(turn % CPUS) && first.cpu_id == turn % CPUS && first.cpu_id_start == turn % CPUS);
    }
    // If it leaves its CPU in between it is ended.
    int status = SIGSEGV;
    for (int turn = 0; turn < 100 && status == SIGSEGV; turn++)
        status = child(leave_read_only, 0);
    CHECK(status == 2 << 8 && leave(area) == 0);
    // Linux 6.1 tells programs of no more than the first 32 bytes.
    u64 *word = start + start[0] + 2;
    while (*word++)
        ;
    for (; word[0]; word += 2)
        CHECK(word[0] != 27 && word[0] != 28);
}

static volatile u64 handled, handled_at, handled_section;

static void note_place(int number, struct info *info, struct context *context)
{
    (void)number, (void)info;
    handled++;
    handled_at = context->rip;
    handled_section = first.section;
}

static int is_inside(const struct section *section, u64 at) { return at - section->start < section->length; }

static void signals(void)
{
    CHECK(on_cpu(0) && enter(&first) == 0);
    handle(SIGILL, note_place, 0);
    trap(&first);
    CHECK(handled == 1 && handled_at == (u64)given_up && handled_section == 0);
    handle(SIGUSR1, note_place, 0);
    long self = CALL(GETTID);
    CHECK(!inside(&first, &call_section, TKILL, self, SIGUSR1, 0));
    CHECK(handled == 2 && handled_at == (u64)given_up && handled_section == 0);
    // Behind a section the handler interrupts nothing, but the section is forgotten.
    first.section = (u64)&trap_section;
    CALL(TKILL, self, SIGUSR1);
    CHECK(handled == 3 && handled_at != (u64)given_up && handled_section == 0);
    // Neither a call nor a signal that nobody handles is an interruption. The clock may be.
    for (int what = 0; what < 2; what++) {
        long number = what ? TKILL : GETPPID;
        int turn = 0;
        while (turn < 1000 && !inside(&first, &call_section, number, self, SIGCHLD, 0))
            turn++;
        CHECK(turn < 1000 && handled == 3);
    }
    // Another CPU is.
    CHECK(!move_to(1, &call_section) && first.section == 0 && first.cpu_id == 1);
}

static volatile u32 in_section, over;

static void compete(struct thread *thread)
{
    on_cpu(thread->number);
    while (!over)
        ;
}

static void interrupt(struct thread *thread)
{
    on_cpu(thread->number);
    while (!in_section)
        ;
    while (!handled)
        CALL(TKILL, CALL(GETPID), SIGUSR1);
}

static void draw(struct thread *thread)
{
    u64 mask = 1ul << thread->number;
    on_cpu(thread->number);
    while (!in_section)
        ;
    CALL(SETAFFINITY, CALL(GETPID), sizeof mask, &mask);
}

static void endless_part(void)
{
    CHECK(on_cpu(0) && enter(&first) == 0);
    // Somebody else wants the CPU.
    start(0, compete);
    endless(&first, &in_section);
    CHECK(first.section == 0);
    over = 1;
    join(&threads[0].tid);
    // A signal comes from another CPU.
    in_section = 0;
    handle(SIGUSR1, note_place, 0);
    start(1, interrupt);
    while (!handled)
        endless(&first, &in_section);
    join(&threads[1].tid);
    CHECK(!is_inside(&endless_section, handled_at) && handled_section == 0);
    // It is to go on on another CPU.
    in_section = 0;
    start(1, draw);
    while (first.cpu_id == 0)
        endless(&first, &in_section);
    CHECK(first.cpu_id == 1 && first.cpu_id_start == 1);
    join(&threads[1].tid);
}

// Interruptions until all end.
#define ENOUGH 60
static u32 interrupted;
static u64 counters[CPUS];

static void count(struct thread *thread)
{
    u64 cpu = thread->number % CPUS;
    on_cpu(cpu);
    CHECK(enter(&thread->area) == 0);
    while (__atomic_load_n(&interrupted, __ATOMIC_RELAXED) < ENOUGH) {
        while (!add(&thread->area, counters, 500 + 100 * thread->number))
            __atomic_fetch_add(&interrupted, 1, __ATOMIC_RELAXED);
        thread->done++;
        // Some go from CPU to CPU.
        if (thread->number >= 3 && thread->done % 1000 == 0)
            on_cpu(cpu = (cpu + 1) % CPUS);
    }
    CHECK(leave(&thread->area) == 0);
}

static void counters_part(void)
{
    u64 sum = 0, done = 0;
    for (u64 number = 0; number < 6; number++)
        start(number, count);
    for (u64 number = 0; number < 6; number++)
        join(&threads[number].tid), done += threads[number].done;
    for (u64 cpu = 0; cpu < CPUS; cpu++) {
        CHECK(counters[cpu] != 0);
        sum += counters[cpu];
    }
    CHECK(sum == done);
}

static void be_moved(const void *section)
{
    move_to(1, section);
}

static void be_moved_with_flags(const void *outside)
{
    first.flags = 1;
    if (outside)
        on_cpu(1);
    else
        move_to(1, &call_section);
}

static void be_moved_behind(const void *section)
{
    first.section = (u64)section;
    on_cpu(1);
    if (first.section)
        finish(1);
}

static void lose_area(const void *unused)
{
    (void)unused;
    CALL(MUNMAP, &first, PAGE);
    on_cpu(1);
}

static void handle_and_be_moved(const void *section)
{
    handle(SIGSEGV, note_place, 0);
    move_to(1, section);
}

static void be_signalled(const void *section)
{
    handle(SIGUSR1, note_place, 0);
    first.section = (u64)section;
    CALL(TKILL, CALL(GETTID), SIGUSR1);
}

static void faults(void)
{
    CHECK(on_cpu(0) && enter(&first) == 0);
    CHECK(child(be_moved, &call_section) == 0 && child(be_moved_behind, &trap_section) == 0);
    struct section bad[] = { [0 ... 6] = call_section };
    bad[0].version = 1;
    bad[1].flags = 1;
    bad[2].abort = call_section.start + 1;
    bad[3].abort = (u64)add;
    bad[4].length = -bad[4].start;
    bad[5].abort = 0xffff888000000000ul;
    bad[6].start = 0x7ffffffff000ul;
    for (u64 index = 0; index < sizeof bad / sizeof *bad; index++)
        CHECK(child(be_moved, &bad[index]) == SIGSEGV);
    CHECK(child(be_moved, (void *)8) == SIGSEGV && child(be_moved, (void *)0xffff888000000000ul) == SIGSEGV);
    // What is no section is none behind it either; flags matter in there only.
    CHECK(child(be_moved_behind, &bad[3]) == SIGSEGV && child(be_moved_behind, &bad[1]) == 0);
    CHECK(child(be_moved_with_flags, 0) == SIGSEGV && child(be_moved_with_flags, "outside") == 0);
    CHECK(child(lose_area, 0) == SIGSEGV && child(handle_and_be_moved, &bad[3]) == SIGSEGV);
    CHECK(child(be_signalled, &trap_section) == 0 && child(be_signalled, &bad[3]) == SIGSEGV);
}

static void be_a_child(const void *unused)
{
    (void)unused;
    if (first.cpu_id > 1 || enter(&first) != -EBUSY)
        finish(1);
    if (!on_cpu(0) || first.cpu_id != 0)
        finish(2);
    if (move_to(1, &call_section) || first.cpu_id != 1)
        finish(3);
}

static void be_a_thread(struct thread *thread)
{
    // Its parent's is not its own.
    CHECK(leave(&first) == -EINVAL && thread->area.section == 0);
    CHECK(enter(&thread->area) == 0 && on_cpu(1) && thread->area.cpu_id == 1 && leave(&thread->area) == 0);
}

static void family(const char *self)
{
    CHECK(on_cpu(0) && enter(&first) == 0);
    CHECK(child(be_a_child, 0) == 0 && enter(&first) == -EBUSY && first.cpu_id == 0);
    start(0, be_a_thread);
    join(&threads[0].tid);
    CHECK(enter(&first) == -EBUSY && first.cpu_id == 0);
    // A child that has its parent's memory for a while has no area either.
    int status;
    long pid = CALL(VFORK);
    if (pid == 0)
        CALL(EXIT, leave(&first) == -EINVAL ? 4 : 1);
    CHECK(CALL(WAIT4, pid, &status, 0, 0) == pid && status == 4 << 8 && first.cpu_id == 0);
    // A program that cannot be executed changes nothing.
    char *arguments[] = { (char *)self, "another", 0 };
    CHECK(CALL(EXECVE, "/none", arguments, 0) == -ENOENT && enter(&first) == -EBUSY);
    CALL(EXECVE, self, arguments, environment);
    CHECK(0);
}

// In place of a program that had an area at the same address.
static void another(void)
{
    CHECK(on_cpu(1) && first.cpu_id == 0 && leave(&first) == -EINVAL && enter(&first) == 0 && first.cpu_id == 1);
}

static void part(const char *name, u64 *start, const char *self)
{
    if (same(name, "register"))
        register_(start);
    else if (same(name, "signals"))
        signals();
    else if (same(name, "endless"))
        endless_part();
    else if (same(name, "counters"))
        counters_part();
    else if (same(name, "faults"))
        faults();
    else if (same(name, "family"))
        family(self);
    else if (same(name, "another"))
        another();
    else
        finish(2);
}
