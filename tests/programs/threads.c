#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#if __has_include(<sys/rseq.h>)
#include <sys/rseq.h>
#endif

// A static program with glibc: threads that count under a mutex, wait for each other, have memory of their own, and know
// the CPU that they run on. Two CPUs.
enum { THREADS = 4, TURNS = 1000, CPUS = 2 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t all = PTHREAD_COND_INITIALIZER;
static long turns, waiting;
static __thread long own;

// Whether the kernel has told the library, in the memory that it has registered for each thread, that this one runs on
// `cpu`: sched_getcpu() looks there.
static int is_told(int cpu)
{
#ifdef RSEQ_SIG
    struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    return __rseq_size != 0 && (int)area->cpu_id == cpu && (int)area->cpu_id_start == cpu;
#else
    return cpu >= 0;
#endif
}

// Goes from CPU to CPU; whether it knew it each time.
static int moves(int first)
{
    for (int cpu = first; cpu < first + 2 * CPUS; cpu++) {
        unsigned here;
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu % CPUS, &set);
        if (sched_setaffinity(0, sizeof set, &set) != 0 || syscall(SYS_getcpu, &here, NULL, NULL) != 0)
            return 0;
        if ((int)here != cpu % CPUS || sched_getcpu() != cpu % CPUS || !is_told(cpu % CPUS))
            return 0;
    }
    return 1;
}

static void *work(void *number)
{
    char *memory = malloc(100000);
    memset(memory, (int)(long)number, 100000);
    for (int turn = 0; turn < TURNS; turn++) {
        pthread_mutex_lock(&mutex);
        turns++;
        pthread_mutex_unlock(&mutex);
        own += memory[turn];
    }
    pthread_mutex_lock(&mutex);
    if (++waiting == THREADS)
        pthread_cond_broadcast(&all);
    while (waiting < THREADS)
        pthread_cond_wait(&all, &mutex);
    pthread_mutex_unlock(&mutex);
    free(memory);
    return moves((int)(long)number) ? (void *)own : NULL;
}

int main(int count, char **arguments)
{
    pthread_t threads[THREADS];
    long sum = 0;
    for (long number = 0; number < THREADS; number++)
        if (pthread_create(&threads[number], NULL, work, (void *)(number + 1)) != 0)
            return 1;
    for (int number = 0; number < THREADS; number++) {
        void *result;
        if (pthread_join(threads[number], &result) != 0)
            return 2;
        sum += (long)result;
    }
    printf("%ld turns, sum %ld, %s\n", turns, sum, count > 1 ? arguments[1] : "");
    fprintf(stderr, "done\n");
    return turns == THREADS * TURNS && sum == (1 + 2 + 3 + 4) * TURNS ? 42 : 3;
}
