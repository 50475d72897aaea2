/* embed.c: a FlashHead in another program.  Knows flashhead.h alone; links with `pkg-config --libs flashhead`.
 *
 *     embed FILE.fhead [SEED]
 *
 * opens an artifact, makes up two states, and asks for what an engine asks: the best token of each in one call, the best few with their
 * logits, a drawn one, and the two stages one by one.  Exit 1 with a message when anything fails or two answers disagree.
 */
#include <flashhead.h>

#include <stdio.h>
#include <stdlib.h>

enum { STATES = 2, TOP = 5 };

/* Numbers that look like states: an engine has its model's. */
static float made_up(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(*seed >> 40) / (double)(1 << 23) - 1.0);
}

static fh_status ask(const fh_head *head, fh_scratch *scratch, const float *states, fh_err *err)
{
    const fh_head_info *info = fh_head_get_info(head);
    uint32_t best[STATES], ids[STATES * TOP], drawn;
    float logits[STATES * TOP];
    fh_status rc;

    /* What a server calls for each step: all of its sequences at once. */
    if ((rc = fh_head_greedy(head, scratch, states, STATES, NULL, best, err)) < 0) return rc;
    if ((rc = fh_head_topk(head, scratch, states, STATES, NULL, TOP, ids, logits, err)) < 0) return rc;
    for (size_t s = 0; s < STATES; s++) {
        const fh_sampling how = {0.8f, 0.95f, 0.0f, 0};
        if ((rc = fh_sample(&how, ids + s * TOP, logits + s * TOP, TOP, 0.5, &drawn, err)) < 0) return rc;
        printf("state %zu: best %u, logit %g; drawn %u\n", s, (unsigned)best[s], (double)logits[s * TOP], (unsigned)drawn);
        if (best[s] != ids[s * TOP]) {
            fprintf(stderr, "state %zu: greedy says %u, top-k %u\n", s, (unsigned)best[s], (unsigned)ids[s * TOP]);
            return FH_ECHECK;
        }
    }

    /* The two stages, for an engine that puts something of its own between them; here with an id kept out. */
    fh_query query = {0, false, NULL, 0, best, 1};
    size_t room = fh_head_max_candidates(head, &query), count = 0;
    uint32_t *clusters = malloc(info->probes * sizeof *clusters), *candidates = malloc(room * sizeof *candidates);
    float *scores = malloc(room * sizeof *scores);
    if (!clusters || !candidates || !scores) rc = FH_ENOMEM;
    if (rc == FH_OK) rc = fh_head_route(head, scratch, states, 1, 0, clusters, NULL, err);
    if (rc == FH_OK) rc = fh_head_score(head, scratch, states, clusters, info->probes, &query, candidates, scores, &count, err);
    if (rc == FH_OK) printf("%u probes of %u clusters: %zu candidates of %u tokens\n", (unsigned)info->probes, (unsigned)info->clusters,
                            count, (unsigned)info->vocab);
    for (size_t i = 0; rc == FH_OK && i < count; i++)
        if (candidates[i] == best[0]) {
            fprintf(stderr, "token %u was kept out and came back\n", (unsigned)best[0]);
            rc = FH_ECHECK;
        }
    free(clusters);
    free(candidates);
    free(scores);
    return rc;
}

int main(int argc, char **argv)
{
    fh_err err = {FH_OK, ""};
    fh_head *head = NULL;
    fh_scratch *scratch = NULL;
    float *states = NULL;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    if (argc < 2) {
        fprintf(stderr, "usage: embed FILE.fhead [SEED]\n");
        return 2;
    }
    fh_status rc = fh_head_open(&head, argv[1], &err);
    if (rc == FH_OK) rc = fh_scratch_new(&scratch, head, 0, &err);
    if (rc == FH_OK) {
        const fh_head_info *info = fh_head_get_info(head);
        size_t n = (size_t)STATES * info->hidden;
        printf("%u tokens of %u numbers, %s rows; artifact %.16s; %s kernels\n", (unsigned)info->vocab, (unsigned)info->hidden,
               info->tokens, info->digest, info->isa);
        states = malloc(n * sizeof *states);
        for (size_t i = 0; states && i < n; i++) states[i] = made_up(&seed);
        rc = states ? ask(head, scratch, states, &err) : FH_ENOMEM;
    }
    if (rc != FH_OK) fprintf(stderr, "embed: %s\n", err.code == rc ? err.text : "failed");
    free(states);
    fh_scratch_free(scratch);
    fh_head_close(head);
    return rc == FH_OK ? 0 : 1;
}
