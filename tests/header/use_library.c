/* What a stranger does with the installed library: this file knows flashhead.h alone, as C11 and as C++17. */
#include <flashhead.h>

#include <stdio.h>
#include <string.h>

int main(void)
{
    fh_err err;
    fh_head *head = NULL;
    fh_status rc = fh_head_open(&head, "no/such/file.fhead", &err);
    if (rc != FH_ENOTFOUND || err.code != rc || !strstr(err.text, "no/such/file.fhead")) {
        fprintf(stderr, "opening nothing gave %d: %s\n", (int)rc, err.text);
        return 1;
    }
    fh_head_close(head);

    const uint32_t a_ids[2] = {7, 3}, b_ids[2] = {9, 3};
    const float a[2] = {2.0f, 1.0f}, b[2] = {1.5f, 1.0f};
    uint32_t ids[3];
    float logits[3];
    fh_merge_topk(a_ids, a, 2, b_ids, b, 2, 3, ids, logits);
    if (ids[0] != 7 || ids[1] != 9 || ids[2] != 3) {
        fprintf(stderr, "merged to %u %u %u\n", (unsigned)ids[0], (unsigned)ids[1], (unsigned)ids[2]);
        return 1;
    }
    return 0;
}
