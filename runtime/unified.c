/* runtime/unified.c: the constant of a unified maximum, from the scores that attention saw while states were collected. */
#include "runtime/runtime.h"

#include <math.h>

/* What is kept back of the safe range for text that was not seen. */
static const float used = 0.75f;

fh_unified fh_unified_of(fh_score_range seen)
{
    if (seen.low > seen.high) return (fh_unified){0, false};
    float constant = seen.low + (seen.high - seen.low) / 2;
    if (!isfinite(constant)) return (fh_unified){0, true};
    return (fh_unified){constant, !((seen.high - seen.low) / 2 <= used * FH_UNIFIED_SAFE)};
}

bool fh_json_add_unified(fh_json *to, const fh_score_range *seen, size_t layers)
{
    fh_json *list = fh_json_add_array(to, FH_ATTENTION_RANGE);
    for (size_t i = 0; i < layers; i++) {
        fh_unified u = fh_unified_of(seen[i]);
        fh_json *j = fh_json_add_object(list, NULL);
        fh_json_add_double(j, "low", (double)seen[i].low);
        fh_json_add_double(j, "high", (double)seen[i].high);
        fh_json_add_double(j, "constant", (double)u.constant);
        if (!fh_json_add_bool(j, "wide", u.wide)) return false;
    }
    return list != NULL;
}

void fh_model_unified(const fh_model *m, fh_unified *out)
{
    size_t layers = m->config->layers, i = 0;
    const fh_fhead *file = m->head ? fh_head_file(m->head) : NULL;
    const fh_json *made = fh_json_get(fh_json_get(file ? fh_fhead_header(file) : NULL, "calibration"), "made_by");
    const fh_json *list = fh_json_get(fh_json_get(made, "states"), FH_ATTENTION_RANGE);
    bool known = list && fh_json_type(list) == FH_JSON_ARRAY && fh_json_count(list) == layers;
    for (const fh_json *j = known ? fh_json_first(list) : NULL; j && known; j = fh_json_next(j), i++) {
        double constant;
        bool wide;
        known = fh_json_double(fh_json_get(j, "constant"), &constant) && fabs(constant) <= 1e30 && fh_json_bool(fh_json_get(j, "wide"), &wide);
        if (known) out[i] = (fh_unified){(float)constant, wide};
    }
    for (i = 0; i < layers && !known; i++) out[i] = (fh_unified){0, false};
}
