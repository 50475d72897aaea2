/* Any bytes as a safetensors file.  The length field is repaired, so that the header behind it is reached: byte 0 of the input chooses
 * how many of the bytes are data. */
#include "format/format.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink;

static void look(const uint8_t *image, size_t size)
{
    fh_tensors *t;
    fh_err err;
    if (fh_tensors_open_memory(&t, image, size, "fuzz", &err) < 0) {
        if (t || !err.text[0] || strchr(err.text, '\n')) abort();
        return;
    }
    for (size_t i = 0; i < fh_tensors_count(t); i++) {
        const fh_tensor *x = fh_tensors_at(t, i), *found;
        if (fh_tensors_find(t, x->name) != x) abort();
        for (uint64_t b = 0; b < x->bytes; b++) sink += ((const uint8_t *)x->data)[b];
        fh_status rc = fh_tensors_need(&found, t, x->name, 1u << FH_F32 | 1u << FH_U8, x->rank, x->shape, &err);
        if ((rc >= 0) != (x->dtype == FH_F32 || x->dtype == FH_U8)) abort();
    }
    (void)fh_tensors_metadata(t, "format");
    fh_tensors_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    look(data, size);
    if (size < 9) return 0;
    uint8_t *image = malloc(size);
    if (!image) return 0;
    memcpy(image, data, size);
    size_t tail = data[0] < size - 8 ? data[0] : 0, header = size - 8 - tail;
    for (unsigned i = 0; i < 8; i++) image[i] = (uint8_t)((uint64_t)header >> 8 * i);
    look(image, size);
    free(image);
    return 0;
}
