// A program whose code and data share a page, as linkers pack them that are told of small pages. It ends with 42 if it finds
// what is in its file, and zeros behind that.

#include "bare.h"

static volatile u32 value = 5;
static volatile u32 zeros[4 * PAGE / sizeof(u32)];
// The page that they share can be written, so nothing in it is executed: this lies between.
static const char constants[2 * PAGE] = "constant";
static const char *volatile text = constants;

__attribute__((used)) static void begin(u64 *start)
{
    CHECK(start[0] == 1 && value == 5 && text[0] == 'c' && text[2 * PAGE - 1] == 0);
    for (u64 index = 0; index < sizeof zeros / sizeof *zeros; index++) {
        CHECK(zeros[index] == 0);
        zeros[index] = 1;
    }
    value = 6;
    CHECK(value == 6 && text[0] == 'c' && text[2 * PAGE - 1] == 0);
    finish(FINE);
}
