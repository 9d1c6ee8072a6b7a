// A program that can be anywhere, as a C library has it (static PIE), and that executes what is on its stack. It ends with 42
// if it is as Linux has it, else with the number of what is not.

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Where things are is known at the start only.
static const char *words[] = { "one", "two" };
static const char **where = words;

// The rights of the area that `at` is in.
static const char *rights(const void *at)
{
    static char line[512], text[8];
    FILE *maps = fopen("/proc/self/maps", "r");
    unsigned long start, end;
    while (maps && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %7s", &start, &end, text) == 3 && start <= (uintptr_t)at && (uintptr_t)at < end)
            break;
    if (maps)
        fclose(maps);
    return text;
}

// Where the kernel says that code begins (`startcode`): the 24th number behind the name.
static const void *start_of_code(void)
{
    static char line[1024];
    FILE *stat = fopen("/proc/self/stat", "r");
    char *at = stat && fgets(line, sizeof line, stat) ? strrchr(line, ')') : NULL;
    for (int field = 0; at && field < 24; field++)
        at = strchr(at + 1, ' ');
    if (stat)
        fclose(stat);
    return at ? (const void *)strtoul(at, NULL, 10) : NULL;
}

int main(int argc, char **argv)
{
    char *none[] = { NULL }, *again[] = { "AGAIN=1", NULL };
    if (getenv("AGAIN"))
        return argc == 1 && argv[0][0] == 0 && argv[1] == NULL ? 42 : 1;
    if (strcmp(where[1], "two") != 0 || (uintptr_t)main < 0x100000000)
        return 2;
    // mov $42, %eax; ret
    volatile unsigned char code[] = { 0xb8, 42, 0, 0, 0, 0xc3 };
    if (((int (*)(void))code)() != 42)
        return 3;
    if (strcmp(rights((const void *)code), "rwxp") != 0 || strcmp(rights((const void *)main), "r-xp") != 0)
        return 4;
    if (strcmp(rights(words), "rw-p") != 0)
        return 5;
    if (strcmp(rights(start_of_code()), "r-xp") != 0)
        return 6;
    // Once more, without any argument: there is an empty one.
    execve("/proc/self/exe", none, again);
    return 7;
}
