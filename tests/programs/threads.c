#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// A static program with glibc: threads that count under a mutex, wait for each other and have memory of their own.
enum { THREADS = 4, TURNS = 1000 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t all = PTHREAD_COND_INITIALIZER;
static long turns, waiting;
static __thread long own;

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
    return (void *)own;
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
