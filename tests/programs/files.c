// What guests run in the tests of files and of memory that is a file's. As user.c: each part ends with 42, or with the
// 1 and a line that says what was wrong.

#define PARTS
#include "bare.h"


static char text[1 << 16];

// Reads all of a file into `text`; how much it is.
static long slurp(const char *name)
{
    long file = CALL(OPEN, name, 0), total = 0;
    CHECK(file >= 0);
    for (long got; (got = CALL(READ, file, text + total, sizeof text - 1 - (u64)total)) != 0; total += got)
        CHECK(got > 0);
    text[total] = 0;
    CHECK(CALL(CLOSE, file) == 0);
    return total;
}
static char *find(char *in, const char *what)
{
    for (; *in; in++) {
        u64 at = 0;
        while (what[at] && in[at] == what[at])
            at++;
        if (!what[at])
            return in;
    }
    return 0;
}
// The number behind `key` in `at`.
static u64 figure(char *at, const char *key)
{
    u64 value = 0;
    CHECK((at = find(at, key)) != 0);
    while (*at && (*at < '0' || *at > '9'))
        at++;
    for (; *at >= '0' && *at <= '9'; at++)
        value = 10 * value + (u64)(*at - '0');
    return value;
}
static u64 meminfo(const char *key)
{
    slurp("/proc/meminfo");
    return figure(text, key);
}
static char *map_file(long file, u64 pages, int prot, int flags)
{
    return (char *)CALL(MMAP, 0, pages * PAGE, prot, flags, file, 0);
}

// What is written, mapped shared and mapped private is the same file.
static void coherent(const char *name)
{
    char byte;
    long file = CALL(OPEN, name, 0102, 0644);
    CHECK(file >= 0 && CALL(FTRUNCATE, file, 2 * PAGE + 100) == 0);
    char *shared = map_file(file, 4, PROT_RW, MAP_SHARED), *private = map_file(file, 4, PROT_RW, MAP_PRIVATE);
    CHECK(!failed(shared) && !failed(private) && shared[0] == 0 && private[PAGE] == 0);
    CHECK(CALL(WRITE, file, "abc", 3) == 3 && shared[0] == 'a' && private[2] == 'c');
    shared[PAGE] = 'x';
    CHECK(private[PAGE] == 'x' && CALL(LSEEK, file, PAGE, 0) == PAGE && CALL(READ, file, &byte, 1) == 1 && byte == 'x');
    private[0] = 'p';
    CHECK(shared[0] == 'a' && CALL(LSEEK, file, 0, 0) == 0 && CALL(READ, file, &byte, 1) == 1 && byte == 'a');
    shared[0] = 's', shared[1] = 't';
    CHECK(private[0] == 'p' && private[1] == 'b');
    // What lies behind the end in the last page is zero and goes nowhere; what lies behind that is not there.
    CHECK(shared[2 * PAGE + 99] == 0 && shared[2 * PAGE + 100] == 0);
    handle(SIGBUS, note, 0);
    LOAD(shared + 3 * PAGE); CHECK(seen.count == 1 && seen.number == SIGBUS && seen.code == 2);
    STORE(private + 3 * PAGE); CHECK(seen.count == 1 && seen.code == 2 && seen.address == (u64)private + 3 * PAGE);
    CHECK(CALL(READ, file, shared + 3 * PAGE, 8) == -EFAULT);
    // Children see what is shared.
    int status;
    long child = CALL(FORK);
    if (child == 0) {
        shared[PAGE + 1] = 'c', private[PAGE + 2] = 'd';
        finish(shared[PAGE] == 'x' && private[0] == 'p' ? 0 : 1);
    }
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == 0);
    CHECK(shared[PAGE + 1] == 'c' && private[PAGE + 1] == 'c' && shared[PAGE + 2] == 0 && private[PAGE + 2] == 0);
    // Cut off it is gone for all, copies included; grown again it is zero.
    CHECK(CALL(FTRUNCATE, file, 10) == 0);
    LOAD(shared + PAGE); CHECK(seen.count == 1 && seen.number == SIGBUS);
    LOAD(private + PAGE); CHECK(seen.count == 1 && seen.number == SIGBUS);
    CHECK(shared[1] == 't' && private[0] == 'p');
    shared[20] = 'z';
    CHECK(CALL(FTRUNCATE, file, 2 * PAGE) == 0 && shared[PAGE] == 0 && private[PAGE] == 0);
    CHECK(CALL(MSYNC, shared, PAGE, 4) == 0);
    // The areas keep the file when its name and number are gone.
    CHECK(CALL(CLOSE, file) == 0 && CALL(UNLINK, name) == 0 && shared[0] == 's');
    CHECK(CALL(MUNMAP, shared, 4 * PAGE) == 0 && CALL(MUNMAP, private, 4 * PAGE) == 0);
}

static void rights(void)
{
    int ends[2];
    long both = CALL(OPEN, "/tmp/rights", 0102, 0644), reads = CALL(OPEN, "/tmp/rights", 0);
    long writes = CALL(OPEN, "/tmp/rights", 1), directory = CALL(OPEN, "/tmp", 0);
    CHECK(both >= 0 && reads >= 0 && writes >= 0 && directory >= 0 && CALL(PIPE, ends) == 0);
    CHECK(CALL(FTRUNCATE, both, PAGE) == 0 && CALL(FTRUNCATE, reads, 0) == -EINVAL);
    CHECK(CALL(MMAP, 0, PAGE, PROT_RW, MAP_SHARED, reads, 0) == -EACCES);
    CHECK(CALL(MMAP, 0, PAGE, PROT_READ, MAP_SHARED, writes, 0) == -EACCES);
    CHECK(CALL(MMAP, 0, PAGE, PROT_RW, MAP_PRIVATE, writes, 0) == -EACCES);
    char *page = map_file(reads, 1, PROT_READ, MAP_SHARED), *own = map_file(reads, 1, PROT_RW, MAP_PRIVATE);
    CHECK(!failed(page) && !failed(own) && CALL(MPROTECT, page, PAGE, PROT_RW) == -EACCES);
    own[0] = 'o';
    CHECK(page[0] == 0 && own[0] == 'o');
    CHECK(CALL(MMAP, 0, PAGE, PROT_READ, MAP_PRIVATE, directory, 0) == -ENODEV);
    CHECK(CALL(MMAP, 0, PAGE, PROT_READ, MAP_PRIVATE, ends[0], 0) == -ENODEV);
    CHECK(CALL(MMAP, 0, PAGE, PROT_READ, MAP_PRIVATE, 77, 0) == -EBADF);
    CHECK(CALL(MMAP, 0, PAGE, PROT_READ, MAP_PRIVATE, both, 100) == -EINVAL);
    CHECK(CALL(MMAP, 0, PAGE, PROT_READ, 0, both, 0) == -EINVAL);
    // File systems are apart.
    CHECK(CALL(RENAME, "/tmp/rights", "/rights") == -EXDEV && CALL(LINK, "/tmp/rights", "/rights") == -EXDEV);
    CHECK(CALL(LINK, "/tmp/rights", "/tmp/again") == 0 && CALL(UNLINK, "/tmp/rights") == 0);
    CHECK(CALL(OPEN, "/tmp/again", 0) >= 0 && CALL(RENAME, "/tmp", "/other") == -EBUSY);
}

static volatile u64 signals;
static void note_signal(int number)
{
    (void)number;
    signals++;
}
static void close_row(void *what)
{
    CHECK(CALL(436, (u64)what & 0xffff, ~0u, (u64)what >> 32) == 0);
}

// What pipes and devices give and take.
static void streams(void)
{
    enum { SETRLIMIT = 160, NOFILE = 7, EMFILE = 24 };
    int ends[2], more[2];
    long first = CALL(OPEN, "/dev/null", 2);
    u64 limit[2] = { (u64)first + 2, 4096 };
    // There is a number for one end only: that is free again.
    CHECK(first >= 0 && CALL(SETRLIMIT, NOFILE, limit) == 0 && CALL(FCNTL, first, 0, 0) == first + 1);
    CHECK(CALL(CLOSE, first + 1) == 0 && CALL(PIPE, ends) == -EMFILE && CALL(PIPE, ends) == -EMFILE);
    CHECK(CALL(OPEN, "/dev/null", 2) == first + 1 && CALL(CLOSE, first + 1) == 0);
    limit[0] = 1024;
    CHECK(CALL(SETRLIMIT, NOFILE, limit) == 0 && CALL(PIPE, ends) == 0 && CALL(PIPE2, more, 04000) == 0);
    // All that a pipe has comes at once, and then what there is.
    memset(text, 'a', 20000);
    CHECK(CALL(WRITE, ends[1], text, 20000) == 20000 && CALL(READ, ends[0], text, sizeof text) == 20000);
    CHECK(CALL(WRITE, ends[1], text, 2 * PAGE) == 2 * PAGE && CALL(READ, ends[0], text, 3 * PAGE) == 2 * PAGE);
    CHECK(CALL(WRITE, more[1], text, PAGE) == PAGE && CALL(READ, more[0], text, 2 * PAGE) == PAGE);
    CHECK(CALL(READ, more[0], text, 1) == -EAGAIN);
    // Nobody looks at what is thrown away.
    CHECK(CALL(WRITE, first, 16, 1 << 20) == 1 << 20);
    // Random numbers are as many as are wanted.
    long sources[] = { CALL(OPEN, "/dev/urandom", 2), CALL(OPEN, "/dev/random", 2), -1 };
    for (int index = 0; index < 3; index++) {
        long source = sources[index], zeros = 0;
        memset(text, 0, 20000);
        CHECK((source < 0 ? CALL(GETRANDOM, text, 20000, 1) : CALL(READ, source, text, 20000)) == 20000);
        for (int at = 0; at < 20000; at++)
            zeros += text[at] == 0;
        CHECK(zeros < 400);
        CHECK(source < 0 || (CALL(WRITE, source, text, 7) == 7 && CALL(READ, source, 16, 7) == -EFAULT));
    }
    CHECK(CALL(GETRANDOM, text, 8, 8) == -EINVAL && CALL(GETRANDOM, text, 8, 6) == -EINVAL && CALL(GETRANDOM, text, 8, 4) == 8);
    char *pages = map(2 * PAGE, PROT_RW);
    CHECK(CALL(MUNMAP, pages + PAGE, PAGE) == 0 && CALL(GETRANDOM, pages + 96, 2 * PAGE, 0) == PAGE - 96);
    u64 stat[18];
    CHECK(CALL(FSTAT, sources[0], stat) == 0 && stat[5] == 0x109 && CALL(GETRANDOM, 16, 8, 0) == -EFAULT);
    // What is written is in its place, and can be read and written in pieces anywhere.
    enum { FSYNC = 74, FDATASYNC = 75, SYNC = 162, FADVISE = 221, PREADV = 295, PWRITEV = 296, SYNCFS = 306, ESPIPE = 29 };
    long file = CALL(OPEN, "/tmp/pieces", 0102, 0600);
    struct { const void *at; u64 len; } out[] = { { "abc", 3 }, { "defg", 4 } }, in[] = { { text, 2 }, { text + 100, 9 } };
    CHECK(CALL(PWRITEV, file, out, 2, 5) == 7 && CALL(LSEEK, file, 0, 1) == 0 && CALL(PREADV, file, in, 2, 6) == 6);
    CHECK(text[0] == 'b' && text[1] == 'c' && text[100] == 'd' && text[103] == 'g' && CALL(PREADV, file, in, 2, -1) == -EINVAL);
    CHECK(CALL(PREADV, ends[0], in, 2, 0) == -ESPIPE && CALL(FSYNC, file) == 0 && CALL(FDATASYNC, file) == 0);
    CHECK(CALL(FSYNC, ends[0]) == -EINVAL && CALL(FSYNC, first) == -EINVAL && CALL(FSYNC, 99) == -EBADF && CALL(SYNC) == 0);
    CHECK(CALL(SYNCFS, file) == 0 && CALL(SYNCFS, 99) == -EBADF && CALL(FADVISE, file, 0, 0, 5) == 0);
    CHECK(CALL(FADVISE, file, 0, 0, 6) == -EINVAL && CALL(FADVISE, ends[0], 0, 0, 0) == -ESPIPE && CALL(FADVISE, 99, 0, 0, 0) == -EBADF);
    // Numbers in a row are marked or closed, also of a table of one's own.
    enum { CLOSE_RANGE = 436, UNSHARE = 2, CLOEXEC = 4, GETFD = 1 };
    CHECK(CALL(CLOSE_RANGE, first + 1, -1, CLOEXEC) == 0 && CALL(FCNTL, file, GETFD) == 1 && CALL(FCNTL, first, GETFD) == 0);
    CHECK(CALL(CLOSE_RANGE, 5, 4, 0) == -EINVAL && CALL(CLOSE_RANGE, 0, 1, 1) == -EINVAL);
    static u32 tid;
    static const u64 row[2] = { UNSHARE, 0 };
    for (int turn = 0; turn < 2; turn++) {
        CHECK(spawn(close_row, (void *)(row[turn] << 32 | (u64)first), (char *)map(4 * PAGE, PROT_RW) + 4 * PAGE, &tid) > 0);
        join(&tid);
        CHECK(CALL(FCNTL, file, GETFD) == (turn ? -EBADF : 1) && CALL(FCNTL, first, GETFD) == (turn ? -EBADF : 0));
    }
    CHECK(CALL(FCNTL, 1, GETFD) == 0);
}

// Files that must not grow, that have no name, and what lengths there are.
static void sizes(void)
{
    enum { TRUNCATE = 76, SETRLIMIT = 160, FSIZE = 1, SIGXFSZ = 25, EFBIG = 27, TMPFILE = 020200000, ENOTDIR = 20 };
    u64 limit[2] = { 100, ~0ul }, stat[18];
    long file = CALL(OPEN, "/tmp/sizes", 0102, 0600);
    CHECK(CALL(FTRUNCATE, file, -1) == -EINVAL && CALL(TRUNCATE, "/tmp/sizes", -1) == -EINVAL);
    handle(SIGXFSZ, note_signal, SA_RESTART);
    CHECK(CALL(SETRLIMIT, FSIZE, limit) == 0 && CALL(WRITE, file, text, 200) == 100 && signals == 0);
    CHECK(CALL(WRITE, file, text, 1) == -EFBIG && signals == 1 && CALL(FTRUNCATE, file, 101) == -EFBIG && signals == 2);
    CHECK(CALL(FTRUNCATE, file, 100) == 0 && CALL(FTRUNCATE, file, 5) == 0 && CALL(LSEEK, file, 0, 0) == 0);
    CHECK(CALL(WRITE, file, text, 10) == 10 && CALL(WRITE, 1, text, 0) == 0);
    limit[0] = ~0ul;
    CHECK(CALL(SETRLIMIT, FSIZE, limit) == 0 && CALL(WRITE, file, text, 200) == 200 && signals == 2);
    long unnamed = CALL(OPEN, "/tmp", TMPFILE | O_RDWR, 0640);
    CHECK(unnamed >= 0 && CALL(WRITE, unnamed, "abc", 3) == 3 && CALL(FSTAT, unnamed, stat) == 0 && stat[6] == 3);
    CHECK(stat[2] == 0 && (u32)stat[3] == 0100640 && CALL(OPEN, "/tmp", TMPFILE, 0600) == -EINVAL);
    CHECK(CALL(OPEN, "/tmp/sizes", TMPFILE | O_RDWR, 0600) == -ENOTDIR && CALL(OPEN, "/tmp/none", TMPFILE | O_RDWR, 0600) == -ENOENT);
    CHECK(CALL(OPEN, "/proc", TMPFILE | O_RDWR, 0600) == -EOPNOTSUPP && CALL(CLOSE, unnamed) == 0 && CALL(CLOSE, file) == 0);
}

// Memory that children share, without a file and of /dev/zero.
static void shared(void)
{
    long zero = CALL(OPEN, "/dev/zero", 2);
    char *areas[3] = {
        (char *)CALL(MMAP, 0, 8 * PAGE, PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0),
        map_file(zero, 8, PROT_RW, MAP_SHARED),
        map_file(zero, 8, PROT_RW, MAP_PRIVATE),
    };
    int status;
    for (int index = 0; index < 3; index++) {
        CHECK(!failed(areas[index]) && areas[index][3 * PAGE] == 0);
        areas[index][PAGE] = 'a';
    }
    long child = CALL(FORK);
    if (child == 0) {
        for (int index = 0; index < 3; index++) {
            if (areas[index][PAGE] != 'a')
                finish(1);
            areas[index][2 * PAGE] = 'b';
        }
        finish(0);
    }
    CHECK(CALL(WAIT4, child, &status, 0, 0) == child && status == 0);
    CHECK(areas[0][2 * PAGE] == 'b' && areas[1][2 * PAGE] == 'b' && areas[2][2 * PAGE] == 0);
    CHECK(CALL(MADVISE, areas[0], 8 * PAGE, 4) == 0 && areas[0][PAGE] == 'a');
    slurp("/proc/self/maps");
    CHECK(find(text, "/dev/zero (deleted)\n") != 0 && find(text, " rw-s 00000000 00:01 ") != 0);
    // A word of shared memory is the same for all who sleep on it.
    CHECK(CALL(MUNMAP, areas[0], 8 * PAGE) == 0);
}

#define ADD_SEALS 1033
#define GET_SEALS 1034
enum { SEAL = 1, SHRINK = 2, GROW = 4, SEAL_WRITE = 8, FUTURE = 16 };

static void memfd(void)
{
    char byte;
    long plain = CALL(MEMFD_CREATE, "plain", 0), file = CALL(MEMFD_CREATE, "sealed", 2);
    CHECK(plain >= 0 && file >= 0 && CALL(MEMFD_CREATE, "x", 64) == -EINVAL && CALL(MEMFD_CREATE, 8, 0) == -EFAULT);
    CHECK(CALL(FCNTL, plain, GET_SEALS) == SEAL && CALL(FCNTL, plain, ADD_SEALS, GROW) == -EPERM);
    CHECK(CALL(FCNTL, file, GET_SEALS) == 0 && CALL(FTRUNCATE, file, 8 * PAGE) == 0);
    char *area = map_file(file, 8, PROT_RW, MAP_SHARED);
    for (u64 page = 0; page < 8; page++)
        area[page * PAGE] = (char)(page + 1), area[page * PAGE + 9] = 9;
    // Holes, by both ways; the size stays.
    CHECK(CALL(FALLOCATE, file, 2, PAGE, PAGE) == -EOPNOTSUPP && CALL(FALLOCATE, file, 3, 0, 0) == -EINVAL);
    CHECK(CALL(FALLOCATE, file, 3, PAGE, 2 * PAGE + 5) == 0);
    CHECK(area[0] == 1 && area[PAGE] == 0 && area[2 * PAGE] == 0 && area[3 * PAGE] == 0 && area[3 * PAGE + 9] == 9);
    CHECK(CALL(MADVISE, area + 4 * PAGE, PAGE, 9) == 0 && area[4 * PAGE] == 0 && area[5 * PAGE] == 6);
    CHECK(CALL(MADVISE, area, 8 * PAGE, 3) == 0);
    char *copy = map_file(file, 8, PROT_RW, MAP_PRIVATE), *none = map(PAGE, PROT_RW);
    CHECK(CALL(MADVISE, copy, PAGE, 9) == -EACCES && CALL(MADVISE, none, PAGE, 9) == -EINVAL);
    u64 stat[18];
    CHECK(CALL(FSTAT, file, stat) == 0 && stat[6] == 8 * PAGE && stat[8] <= 8 * 8);
    CHECK(CALL(FALLOCATE, file, 0, 8 * PAGE, 2 * PAGE) == 0 && CALL(FSTAT, file, stat) == 0 && stat[6] == 10 * PAGE);
    CHECK(CALL(FALLOCATE, file, 1, 0, 20 * PAGE) == 0 && CALL(FSTAT, file, stat) == 0 && stat[6] == 10 * PAGE);
    CHECK(stat[8] == 10 * 8);
    // Seals.
    CHECK(CALL(FCNTL, file, ADD_SEALS, GROW | SHRINK) == 0 && CALL(FTRUNCATE, file, PAGE) == -EPERM);
    CHECK(CALL(FTRUNCATE, file, 11 * PAGE) == -EPERM && CALL(FALLOCATE, file, 0, 10 * PAGE, 1) == -EPERM);
    CHECK(CALL(FCNTL, file, ADD_SEALS, SEAL_WRITE) == -EBUSY && CALL(MUNMAP, area, 8 * PAGE) == 0);
    CHECK(CALL(FCNTL, file, ADD_SEALS, SEAL_WRITE) == 0 && CALL(WRITE, file, "x", 1) == -EPERM);
    CHECK(CALL(MMAP, 0, PAGE, PROT_RW, MAP_SHARED, file, 0) == -EPERM && CALL(FALLOCATE, file, 3, 0, PAGE) == -EPERM);
    CHECK(CALL(LSEEK, file, 5 * PAGE, 0) == 5 * PAGE && CALL(READ, file, &byte, 1) == 1 && byte == 6);
    CHECK(CALL(FCNTL, file, ADD_SEALS, SEAL) == 0 && CALL(FCNTL, file, ADD_SEALS, FUTURE) == -EPERM);
    CHECK(CALL(FCNTL, file, GET_SEALS) == (SEAL | SHRINK | GROW | SEAL_WRITE));
    long other = CALL(OPEN, "/ram", 0102, 0644);
    CHECK(CALL(FCNTL, other, GET_SEALS) == -EINVAL && CALL(FALLOCATE, other, 0, 0, PAGE) == -EOPNOTSUPP);
    CHECK(CALL(CLOSE, other) == 0 && CALL(UNLINK, "/ram") == 0);
    slurp("/proc/self/maps");
    CHECK(find(text, " 00:01 ") != 0 && find(text, "/memfd:sealed (deleted)\n") != 0);
}

#define PAGES 64ul

// What is in use is counted as Linux does, in units of 4 KiB.
static void counters(void)
{
    enum { CACHED, SHMEM, MAPPED, COMMITTED };
    static const char *const keys[] = { "\nCached:", "\nShmem:", "\nMapped:", "\nCommitted_AS:" };
    u64 before[4], after[4];
#define LOOK(at) for (int key = 0; key < 4; key++) at[key] = meminfo(keys[key]) / 4
#define GREW(cached, shmem, mapped, committed)                                                                         \
    do {                                                                                                               \
        LOOK(after);                                                                                                   \
        CHECK(after[CACHED] == before[CACHED] + (cached) && after[SHMEM] == before[SHMEM] + (shmem));                  \
        CHECK(after[MAPPED] == before[MAPPED] + (mapped) && after[COMMITTED] == before[COMMITTED] + (committed));      \
    } while (0)
    // The pages of the program's own that this needs are there already.
    LOOK(before);
    LOOK(after);
    static char block[PAGE];
    block[0] = 1;
    long files[2] = { CALL(OPEN, "/tmp/count", 0102, 0644), CALL(OPEN, "/count", 0102, 0644) };
    LOOK(before);
    for (u64 page = 0; page < PAGES; page++)
        CHECK(CALL(WRITE, files[0], block, PAGE) == PAGE);
    GREW(PAGES, PAGES, 0, PAGES);
    for (u64 page = 0; page < PAGES; page++)
        CHECK(CALL(WRITE, files[1], block, PAGE) == PAGE);
    GREW(2 * PAGES, PAGES, 0, PAGES);
    // Pages around the one that is touched are mapped with it: 16 here.
    char *areas[2] = { map_file(files[0], PAGES, PROT_RW, MAP_SHARED), map_file(files[1], PAGES, PROT_READ, MAP_PRIVATE) };
    CHECK(areas[0][17 * PAGE] == 1 && areas[1][40 * PAGE] == 1);
    LOOK(after);
    CHECK(after[MAPPED] == before[MAPPED] + 32 && after[COMMITTED] == before[COMMITTED] + PAGES);
    areas[0][60 * PAGE] = 2;
    LOOK(after);
    CHECK(after[MAPPED] == before[MAPPED] + 33);
    CHECK(CALL(MUNMAP, areas[0], PAGES * PAGE) == 0 && CALL(MUNMAP, areas[1], PAGES * PAGE) == 0);
    CHECK(CALL(FTRUNCATE, files[0], 0) == 0 && CALL(CLOSE, files[1]) == 0 && CALL(UNLINK, "/count") == 0);
    GREW(0, 0, 0, 0);
    // Memory without a file is promised as a whole, unless nobody wants that.
    char *whole = (char *)CALL(MMAP, 0, PAGES * PAGE, PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    GREW(0, 0, 0, PAGES);
    whole[0] = 1;
    GREW(1, 1, 1, PAGES);
    CHECK(CALL(MUNMAP, whole, PAGES * PAGE) == 0);
    whole = (char *)CALL(MMAP, 0, PAGES * PAGE, PROT_RW, MAP_SHARED | MAP_ANONYMOUS | 0x4000, -1, 0);
    whole[0] = 1;
    GREW(1, 1, 1, 1);
    CHECK(CALL(MUNMAP, whole, PAGES * PAGE) == 0);
    GREW(0, 0, 0, 0);
}

// What maps and smaps say of files.
static void maps(void)
{
    u64 stat[18];
    long file = CALL(OPEN, "/tmp/shown", 0102, 0644);
    CHECK(CALL(FTRUNCATE, file, 4 * PAGE) == 0 && CALL(FSTAT, file, stat) == 0 && stat[0] == 4);
    char *area = (char *)CALL(MMAP, 0, 2 * PAGE, PROT_RW, MAP_SHARED, file, PAGE);
    volatile char *own = map_file(file, 2, PROT_RW, MAP_PRIVATE);
    area[0] = 1;
    CHECK(own[PAGE] == 1);
    own[0] = 2;
    slurp("/proc/self/maps");
    char *line = find(text, " rw-s 00001000 00:04 ");
    CHECK(line != 0 && figure(line + 20, " ") == stat[1] && find(line, "/tmp/shown\n") != 0);
    CHECK(find(text, " r-xp 0000") != 0 && find(text, "/bin/") != 0 && find(text, "[stack]\n") != 0);
    slurp("/proc/self/smaps");
    CHECK((line = find(text, " rw-s 00001000 00:04 ")) != 0);
    // The page is mapped twice, and was written to; and one is the program's own.
    CHECK(figure(line, "Rss:") == 4 && figure(line, "Shared_Dirty:") == 4 && figure(line, "Private_Dirty:") == 0);
    CHECK(figure(line, "Pss:") == 2 && figure(line, "Anonymous:") == 0 && find(line, "VmFlags: rd wr sh mr mw me ms") != 0);
    CHECK((line = find(text, " rw-p 00000000 00:04 ")) != 0);
    CHECK(figure(line, "Rss:") == 8 && figure(line, "Private_Dirty:") == 4 && figure(line, "Anonymous:") == 4);
    CHECK(CALL(RENAME, "/tmp/shown", "/tmp/moved") == 0 && CALL(UNLINK, "/tmp/moved") == 0);
    CHECK(CALL(MUNMAP, area, 2 * PAGE) == 0);
    // An area of /dev/zero has its name, and pages of the program's own.
    long zero = CALL(OPEN, "/dev/zero", 0);
    area = (char *)CALL(MMAP, 0, 3 * PAGE, PROT_RW, MAP_PRIVATE, zero, 7 * PAGE);
    CHECK(!failed(area) && area[0] == 0 && CALL(FSTAT, zero, stat) == 0 && stat[0] == 2);
    area[PAGE] = 1;
    slurp("/proc/self/smaps");
    CHECK((line = find(text, " rw-p 00007000 00:02 ")) != 0 && figure(line + 20, " ") == stat[1]);
    CHECK(find(line, " /dev/zero\n") != 0 && find(line, " /dev/zero\n") < find(line, "\nSize:"));
    CHECK(figure(line, "Rss:") == 4 && figure(line, "Anonymous:") == 4 && figure(line, "Private_Dirty:") == 4);
}

static void part(const char *name, u64 *start, const char *self)
{
    (void)start, (void)self;
    if (same(name, "coherent"))
        coherent("/tmp/file"), coherent("/file"), coherent("/dev/shm/file");
    else if (same(name, "rights"))
        rights();
    else if (same(name, "streams"))
        streams();
    else if (same(name, "sizes"))
        sizes();
    else if (same(name, "shared"))
        shared();
    else if (same(name, "memfd"))
        memfd();
    else if (same(name, "counters"))
        counters();
    else if (same(name, "maps"))
        maps();
    else
        finish(2);
}
