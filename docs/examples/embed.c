/* embed.c: a FlashHead in an engine of your own.  cc embed.c $(pkg-config --cflags --libs flashhead) -o embed
 *
 *     embed FILE.fhead
 */
#include <flashhead.h>

#include <stdio.h>
#include <stdlib.h>

enum { TOP = 5 };

int main(int argc, char **argv)
{
    fh_err err = {FH_OK, "out of memory"};
    fh_head *head = NULL;       /* shared by all threads */
    fh_scratch *scratch = NULL; /* one for each of them */
    float *state = NULL, logits[TOP];
    uint32_t ids[TOP], next = 0;
    if (argc != 2) return 2;
    fh_status rc = fh_head_open(&head, argv[1], &err);
    if (rc == FH_OK) rc = fh_scratch_new(&scratch, head, 0, &err);
    if (rc == FH_OK) {
        size_t d = fh_head_get_info(head)->hidden;
        state = malloc(d * sizeof *state); /* what your model's final norm puts out; here something that varies */
        for (size_t i = 0; state && i < d; i++) state[i] = (float)(i * 7 % 13) / 6 - 1;
        if (!state) rc = FH_ENOMEM;
    }
    /* In place of `logits = W h` and top-k: */
    if (rc == FH_OK) rc = fh_head_topk(head, scratch, state, 1, NULL, TOP, ids, logits, &err);
    const fh_sampling how = {0.8f, 0.95f, 0, 0}; /* temperature, top-p; the random number is yours */
    if (rc == FH_OK) rc = fh_sample(&how, ids, logits, TOP, 0.5, &next, &err);
    for (int i = 0; rc == FH_OK && i < TOP; i++) printf("%u %.9g\n", (unsigned)ids[i], (double)logits[i]);
    if (rc == FH_OK) printf("next %u\n", (unsigned)next);
    else fprintf(stderr, "embed: %s\n", err.text);
    free(state);
    fh_scratch_free(scratch);
    fh_head_close(head);
    return rc == FH_OK ? 0 : 1;
}
