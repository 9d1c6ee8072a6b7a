// What guests run in the tests of signals that wait, or are waited for. As user.c: each part ends with 42, or with 1 and a
// line that says what was wrong.

#define PARTS
#include "bare.h"

static volatile u64 handled;
static void count(int number, struct info *info, struct context *context)
{
    (void)number, (void)info, (void)context;
    handled++;
}

// A signal that waits is forgotten when nothing is to happen on it.
static void dropped(void)
{
    enum { SIGPENDING = 127, SIGSUSPEND = 130 };
    const u64 mask = 1ul << (SIGUSR1 - 1) | 1ul << (SIGCHLD - 1), none = 0;
    long me = CALL(GETPID), thread = CALL(GETTID);
    u64 waiting;
    struct action ignore = { (void *)1, SA_RESTORER, restorer, 0 }, by_default = { 0, SA_RESTORER, restorer, 0 };
    handle(SIGUSR1, count, 0), handle(SIGCHLD, count, 0);
    CHECK(CALL(SIGPROCMASK, 2, &mask, 0, 8) == 0);
    CHECK(CALL(KILL, me, SIGUSR1) == 0 && CALL(TKILL, thread, SIGUSR1) == 0 && CALL(KILL, me, SIGCHLD) == 0);
    CHECK(CALL(SIGPENDING, &waiting, 8) == 0 && waiting == mask);
    CHECK(CALL(SIGACTION, SIGUSR1, &ignore, 0, 8) == 0 && CALL(SIGPENDING, &waiting, 8) == 0);
    CHECK(waiting == 1ul << (SIGCHLD - 1));
    CHECK(CALL(SIGACTION, SIGCHLD, &by_default, 0, 8) == 0 && CALL(SIGPENDING, &waiting, 8) == 0 && waiting == 0);
    // One that waits is taken at once by who waits for it.
    u64 before = handled;
    handle(SIGUSR1, count, 0);
    CHECK(CALL(KILL, me, SIGUSR1) == 0 && handled == before);
    CHECK(CALL(SIGSUSPEND, &none, 8) == -EINTR && handled == before + 1);
    CHECK(CALL(SIGPROCMASK, 2, &none, &waiting, 8) == 0 && waiting == mask);
}

// The stack for handlers: taken away meanwhile, and not left at its lower end.
static char *handler_stack;
static u64 handler_saw[4];
static void on_stack(int number, struct info *info, struct context *context)
{
    (void)number, (void)info;
    handler_saw[0]++;
    handler_saw[1] = (u64)__builtin_frame_address(0) - (u64)handler_stack < 16 * PAGE;
    handler_saw[2] = context->stack[1];
    u64 old[3];
    CHECK(CALL(SIGALTSTACK, 0, old) == 0);
    handler_saw[3] = old[1];
}
static void deeper(int number, struct info *info, struct context *context)
{
    (void)info, (void)context;
    CALL(KILL, CALL(GETPID), number);
}
static void stacks(void)
{
    enum { ONSTACK = 1, DISABLE = 2 };
    const u64 autodisarm = 1ul << 31;
    int status;
    long me = CALL(GETPID);
    handler_stack = map(16 * PAGE, PROT_RW);
    u64 stack[3] = { (u64)handler_stack, 0, 16 * PAGE }, old[3];
    handle(SIGUSR1, on_stack, SA_ONSTACK);
    for (int turn = 0; turn < 2; turn++) {
        stack[1] = turn ? autodisarm | ONSTACK : ONSTACK;
        CHECK(CALL(SIGALTSTACK, stack, 0) == 0 && CALL(KILL, me, SIGUSR1) == 0 && handler_saw[1]);
        CHECK(handler_saw[2] == stack[1] && handler_saw[3] == (turn ? DISABLE : ONSTACK));
        CHECK(CALL(SIGALTSTACK, 0, old) == 0 && old[0] == stack[0] && old[1] == (turn ? autodisarm : 0) && old[2] == 16 * PAGE);
    }
    stack[1] = DISABLE | ONSTACK;
    CHECK(CALL(SIGALTSTACK, stack, 0) == -EINVAL && handler_saw[0] == 2);
    // Handlers in handlers, until there is no room: what lies below the stack stays as it is.
    long child = CALL(FORK);
    if (child == 0) {
        stack[0] += 8 * PAGE, stack[1] = 0, stack[2] = 8 * PAGE;
        handle(SIGUSR1, deeper, SA_ONSTACK | SA_NODEFER);
        CHECK(CALL(SIGALTSTACK, stack, 0) == 0);
        CALL(KILL, CALL(GETPID), SIGUSR1);
        finish(1);
    }
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == SIGSEGV);
}

// Waiting for signals, for files, or for both, for a time.
static void waiting(void)
{
    enum { SELECT = 23, SIGTIMEDWAIT = 128, SIGQUEUEINFO = 129, PSELECT6 = 270, PPOLL = 271, TGSIGQUEUEINFO = 297 };
    enum { SIGRTMIN = 34, ESRCH = 3, POLLIN = 1, POLLOUT = 4, POLLHUP = 16 };
    const u64 mask = 1ul << (SIGUSR1 - 1) | 1ul << (SIGCHLD - 1) | 1ul << (SIGRTMIN - 1), none = 0;
    u64 info[16] = { 0 }, soon[2] = { 0, 5 * MS }, late[2] = { 100, 0 };
    int ends[2], status;
    long me = CALL(GETPID), thread = CALL(GETTID);
    // What waits already, then nothing, then what a child sends, and its end, though nobody handles that.
    CHECK(CALL(SIGPROCMASK, 2, &mask, 0, 8) == 0 && CALL(KILL, me, SIGUSR1) == 0);
    CHECK(CALL(SIGTIMEDWAIT, &mask, info, soon, 8) == SIGUSR1 && (u32)info[0] == SIGUSR1 && (u32)info[1] == 0);
    CHECK((u32)info[2] == me && CALL(SIGTIMEDWAIT, &mask, info, soon, 8) == -EAGAIN);
    CHECK(CALL(SIGTIMEDWAIT, &mask, info, soon, 4) == -EINVAL && CALL(SIGTIMEDWAIT, 16, info, soon, 8) == -EFAULT);
    // A signal with a value; each waits. Nobody may say that the kernel has sent it to somebody else.
    info[0] = SIGRTMIN, info[1] = (u32)-1, info[2] = 7, info[3] = 123456789012;
    CHECK(CALL(SIGQUEUEINFO, me, SIGRTMIN, info) == 0);
    info[3]++;
    CHECK(CALL(TGSIGQUEUEINFO, me, thread, SIGRTMIN, info) == 0 && CALL(SIGQUEUEINFO, 30000, SIGRTMIN, info) == -ESRCH);
    CHECK(CALL(SIGTIMEDWAIT, &mask, info, 0, 8) == SIGRTMIN && info[3] == 123456789013 && (i32)info[1] == -1);
    CHECK(CALL(SIGTIMEDWAIT, &mask, info, 0, 8) == SIGRTMIN && info[3] == 123456789012 && (u32)info[2] == 7);
    info[1] = 0;
    CHECK(CALL(SIGQUEUEINFO, 1, SIGUSR1, info) == -EPERM);
    long child = CALL(FORK);
    if (child == 0) {
        nap(20 * MS, 0);
        finish(7);
    }
    CHECK(CALL(SIGTIMEDWAIT, &mask, info, late, 8) == SIGCHLD && (u32)info[2] == child && (u32)info[3] == 7);
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child);
    // One that is handled ends it.
    handle(SIGUSR2, count, SA_RESTART);
    handled = 0;
    child = CALL(FORK);
    if (child == 0) {
        nap(20 * MS, 0);
        for (CALL(KILL, me, SIGUSR2);;)
            CALL(PAUSE);
    }
    CHECK(CALL(SIGTIMEDWAIT, &mask, info, late, 8) == -EINTR && handled == 1);
    CHECK(CALL(KILL, child, SIGKILL) == 0 && CALL(WAIT4, child, &status, 0, 0) == child);
    CHECK(CALL(SIGTIMEDWAIT, &mask, info, late, 8) == SIGCHLD);
    // Files: nothing, then something; what is left of the time is told.
    CHECK(CALL(PIPE, ends) == 0);
    struct { i32 file; short wanted, given; } poll[2] = { { ends[0], POLLIN, 9 }, { -1, POLLIN, 9 } };
    u64 in[16] = { 1ul << ends[0] }, out[16] = { 1ul << ends[1] }, odd[16] = { 1ul << ends[0] };
    soon[1] = 5 * MS;
    CHECK(CALL(PPOLL, poll, 2, soon, 0, 0) == 0 && poll[0].given == 0 && poll[1].given == 0 && soon[0] == 0 && soon[1] == 0);
    CHECK(CALL(WRITE, ends[1], "x", 1) == 1 && CALL(PPOLL, poll, 2, late, 0, 0) == 1 && poll[0].given == POLLIN);
    CHECK(late[0] == 99 && late[1] > 0 && CALL(PPOLL, poll, 2, 0, 0, 0) == 1);
    u64 micros[2] = { 0, 5000 };
    CHECK(CALL(SELECT, ends[1] + 1, in, out, odd, micros) == 2 && in[0] == 1ul << ends[0] && out[0] == 1ul << ends[1]);
    CHECK(odd[0] == 0 && CALL(READ, ends[0], &status, 1) == 1);
    micros[0] = 0, micros[1] = 5000;
    CHECK(CALL(SELECT, ends[1] + 1, in, 0, 0, micros) == 0 && in[0] == 0 && micros[1] == 0);
    in[0] = 1ul << 60;
    CHECK(CALL(SELECT, 61, in, 0, 0, 0) == -EBADF && CALL(SELECT, -1, 0, 0, 0, 0) == -EINVAL && CALL(SELECT, 0, 0, 0, 0, micros) == 0);
    micros[0] = ~0ul;
    CHECK(CALL(SELECT, 0, 0, 0, 0, micros) == -EINVAL);
    // A signal that is blocked but for the wait ends it, and is blocked again behind it.
    u64 now_blocked, sigset[2] = { (u64)&none, 8 };
    handle(SIGUSR1, count, SA_RESTART);
    for (int turn = 0; turn < 2; turn++) {
        handled = 0, in[0] = 1ul << ends[0], late[0] = 100, late[1] = 0;
        CHECK(CALL(KILL, me, SIGUSR1) == 0 && handled == 0);
        CHECK((turn ? CALL(PPOLL, poll, 1, late, &none, 8) : CALL(PSELECT6, ends[0] + 1, in, 0, 0, late, sigset)) == -EINTR);
        CHECK(handled == 1 && late[0] == 99 && CALL(SIGPROCMASK, 0, 0, &now_blocked, 8) == 0 && now_blocked == mask);
    }
    late[0] = 0, late[1] = MS;
    CHECK(CALL(PPOLL, poll, 1, late, &none, 8) == 0 && CALL(SIGPROCMASK, 0, 0, &now_blocked, 8) == 0 && now_blocked == mask);
    CHECK(CALL(PPOLL, poll, 1, late, &none, 4) == -EINVAL);
    CHECK(CALL(SIGPROCMASK, 2, &none, 0, 8) == 0);
}

// Timers send a signal, once or again and again.
static void timers(void)
{
    enum { SIGALRM = 14, GETITIMER = 36, ALARM = 37, SETITIMER = 38 };
    u64 once[4] = { 0, 0, 0, 20000 }, often[4] = { 0, 10000, 0, 10000 }, old[4], off[4] = { 0 };
    int status;
    handle(SIGALRM, count, SA_RESTART);
    handled = 0;
    CHECK(CALL(SETITIMER, 0, once, 0) == 0 && CALL(PAUSE) == -EINTR && handled == 1);
    CHECK(CALL(GETITIMER, 0, old) == 0 && old[0] == 0 && old[1] == 0 && old[2] == 0 && old[3] == 0);
    CHECK(CALL(SETITIMER, 0, often, 0) == 0);
    while (handled < 4)
        CALL(PAUSE);
    CHECK(CALL(SETITIMER, 0, off, old) == 0 && old[1] == 10000 && old[2] == 0 && old[3] > 0 && old[3] <= 10000);
    handled = 0;
    nap(30 * MS, 0);
    CHECK(handled == 0 && CALL(ALARM, 100) == 0 && CALL(GETITIMER, 0, old) == 0 && old[0] == 0 && old[2] == 99);
    // A child has none, and its own does not touch the parent's.
    long child = CALL(FORK);
    if (child == 0) {
        CHECK(CALL(GETITIMER, 0, old) == 0 && old[2] == 0 && CALL(ALARM, 50) == 0);
        finish(0);
    }
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == 0 && CALL(ALARM, 0) == 100 && CALL(ALARM, 0) == 0);
    // Nobody handles it.
    child = CALL(FORK);
    if (child == 0) {
        struct action by_default = { 0, SA_RESTORER, restorer, 0 };
        CALL(SIGACTION, SIGALRM, &by_default, 0, 8), CALL(SETITIMER, 0, once, 0);
        for (;;)
            CALL(PAUSE);
    }
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == SIGALRM);
    once[3] = 1000000;
    CHECK(CALL(SETITIMER, 0, once, 0) == -EINVAL && CALL(SETITIMER, 3, often, 0) == -EINVAL);
    CHECK(CALL(SETITIMER, 0, 16, 0) == -EFAULT && CALL(GETITIMER, 0, 16) == -EFAULT);
}

static void part(const char *name, u64 *start, const char *self)
{
    (void)start, (void)self;
    if (same(name, "dropped"))
        apart(dropped);
    else if (same(name, "stacks"))
        apart(stacks);
    else if (same(name, "waiting"))
        apart(waiting);
    else if (same(name, "timers"))
        apart(timers);
    else
        finish(2);
}
