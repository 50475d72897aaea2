/* tests/unit/golden_families.h: a check of a body, for every family that the reference was asked about. */
#ifndef FH_TEST_GOLDEN_FAMILIES_H
#define FH_TEST_GOLDEN_FAMILIES_H

#include "tests/unit/body_cases.h"

static const char *const cases[] = {"llama", "llama3-rope", "llama-linear-bias", "qwen3", "gemma3-softcap", "neox-sequential"};
enum { CASES = sizeof cases / sizeof *cases };

static inline void open_case(golden *g, const char *name)
{
    char dir[200];
    snprintf(dir, sizeof dir, "tests/golden/%s", name);
    if (!golden_open(g, dir)) fail_msg("%s is missing", dir);
}

static inline void check_families(void (*check)(golden *g, const char *name))
{
    for (size_t i = 0; i < CASES; i++) {
        golden g;
        open_case(&g, cases[i]);
        check(&g, cases[i]);
        golden_close(&g);
    }
}

/* Those that are not in the repository; skips where none is there. */
static inline void check_shared_families(void (*check)(golden *g, const char *name))
{
    static const char *const more[] = {"mistral-window", "qwen2", "qwen2-yarn", "gemma3", "pythia", "gpt2"};
    enum { MORE = sizeof more / sizeof *more };
    char dir[100];
    size_t found = 0;
    for (size_t i = 0; i < MORE; i++) {
        golden g;
        snprintf(dir, sizeof dir, "golden/%s", more[i]);
        if (!golden_open(&g, shared(dir))) continue;
        check(&g, more[i]);
        golden_close(&g);
        found++;
    }
    if (found < MORE)
        print_message("skipped %zu of %d families: set FH_SHARED to the directory that holds golden/\n", MORE - found, (int)MORE);
    if (!found) skip();
}

#endif
