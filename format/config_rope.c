/* format/config_rope.c: the parameters of rotary position embeddings, where two generations of config.json put them.
 *
 * Older: `rope_theta` (GPT-NeoX: `rotary_emb_base`, `rotary_pct`) beside an optional object `rope_scaling`.  Newer: one object
 * `rope_parameters`, or one such object for each type of layer inside it.  A `rope_scaling` that is there wins.
 */
#include "format/config_reader.h"

#include <string.h>

static const char *const layer_types[] = {"full_attention", "sliding_attention", "chunked_attention", "linear_attention"};

static bool is_layer_type(const char *key)
{
    for (size_t i = 0; i < sizeof layer_types / sizeof *layer_types; i++)
        if (strcmp(key, layer_types[i]) == 0) return true;
    return false;
}

static bool is_by_layer_type(const fh_json *object)
{
    const fh_json *c = fh_json_first(object);
    if (!c) return false;
    for (; c; c = fh_json_next(c))
        if (!is_layer_type(fh_json_key(c)) || fh_json_type(c) != FH_JSON_OBJECT) return false;
    return true;
}

static double positive(fh_reader *r, const fh_json *in, const char *key, double otherwise)
{
    double v = fh_reader_double(r, in, key, otherwise);
    if (!(v > 0)) {
        fh_reader_fail(r, FH_EFORMAT, "'%s' of the RoPE parameters is missing or not above 0", key);
        return 1;
    }
    return v;
}

static void read_type(fh_reader *r, fh_config *c, const fh_json *in, fh_rope *rope)
{
    static const struct { const char *name; fh_rope_type type; } types[] = {
        {"default", FH_ROPE_DEFAULT}, {"linear", FH_ROPE_LINEAR}, {"llama3", FH_ROPE_LLAMA3},
        {"yarn", FH_ROPE_YARN},       {"dynamic", FH_ROPE_DYNAMIC}, {"longrope", FH_ROPE_DIVIDED},
    };
    const fh_json *type = fh_json_get(in, "rope_type");
    if (!type) type = fh_json_get(in, "type");
    rope->type = FH_ROPE_DEFAULT;
    if (!type) return;
    const char *name = fh_json_string(type);
    if (!name) {
        fh_reader_fail(r, FH_EFORMAT, "the type of RoPE is no string");
        return;
    }
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(name, types[i].name) != 0) continue;
        rope->type = types[i].type;
        return;
    }
    fh_config_no_body(c, "RoPE type '%s' is not known", name);
}

/* Each frequency is divided by a number of its own, whatever the length: a longrope whose lists for short and long texts are the same.
 * The configuration made from a GGUF with rope_freqs is of this kind. */
static void read_divisors(fh_reader *r, fh_config *c, const fh_json *in, fh_rope *rope)
{
    double s, l;
    const fh_json *shorter = fh_json_first(fh_json_get(in, "short_factor")), *longer = fh_json_first(fh_json_get(in, "long_factor"));
    size_t n = fh_json_count(fh_json_get(in, "short_factor"));
    rope->divisors = fh_json_get(in, "short_factor");
    rope->attention_factor = fh_reader_double(r, in, "attention_factor", 0);
    for (; shorter && longer; shorter = fh_json_next(shorter), longer = fh_json_next(longer)) {
        if (!fh_json_double(shorter, &s) || !fh_json_double(longer, &l) || !(s > 0)) {
            fh_reader_fail(r, FH_EFORMAT, "'short_factor' and 'long_factor' of the RoPE parameters must be numbers above 0");
            return;
        }
        if (s != l) break;
    }
    if (shorter || longer) fh_config_no_body(c, "RoPE type 'longrope' is known only with equal factors for short and long texts");
    else if (!(rope->attention_factor > 0)) fh_config_no_body(c, "RoPE type 'longrope' is known only with an 'attention_factor'");
    else if (n != (size_t)(c->head_dim * rope->partial) / 2) fh_config_no_body(c, "%zu RoPE factors do not fit heads of %u elements", n, c->head_dim);
}

/* The parameters that one object holds; `in` may be NULL: plain RoPE. */
static void read_object(fh_reader *r, fh_config *c, const fh_json *in, double theta, double partial, fh_rope *rope)
{
    *rope = (fh_rope){.type = FH_ROPE_DEFAULT, .theta = theta, .partial = partial, .factor = 1, .truncate = true,
                      .original_max_position = c->max_position};
    if (!in) return;
    read_type(r, c, in, rope);
    rope->theta = positive(r, in, "rope_theta", theta);
    rope->partial = fh_reader_double(r, in, "partial_rotary_factor", partial);
    if (rope->type == FH_ROPE_DEFAULT) return;
    if (rope->type == FH_ROPE_DIVIDED) {
        read_divisors(r, c, in, rope);
        return;
    }
    rope->factor = positive(r, in, "factor", 0);
    double original = positive(r, in, "original_max_position_embeddings", c->max_position);
    if (original >= 1 && original < 0x1p31) rope->original_max_position = (uint32_t)original;
    else fh_reader_fail(r, FH_EFORMAT, "'original_max_position_embeddings' is out of range");
    if (rope->type == FH_ROPE_LLAMA3) {
        rope->low_freq_factor = positive(r, in, "low_freq_factor", 0);
        rope->high_freq_factor = positive(r, in, "high_freq_factor", 0);
        if (r->rc >= 0 && !(rope->low_freq_factor < rope->high_freq_factor))
            fh_reader_fail(r, FH_EFORMAT, "'low_freq_factor' (%g) must be below 'high_freq_factor' (%g)", rope->low_freq_factor,
                           rope->high_freq_factor);
    } else if (rope->type == FH_ROPE_YARN) {
        rope->beta_fast = positive(r, in, "beta_fast", 32);
        rope->beta_slow = positive(r, in, "beta_slow", 1);
        rope->attention_factor = fh_reader_double(r, in, "attention_factor", 0);
        rope->mscale = fh_reader_double(r, in, "mscale", 0);
        rope->mscale_all_dim = fh_reader_double(r, in, "mscale_all_dim", 0);
        const fh_json *truncate = fh_json_get(in, "truncate");
        if (truncate && !fh_json_bool(truncate, &rope->truncate))
            fh_reader_fail(r, FH_EFORMAT, "'truncate' of the RoPE parameters is no boolean");
        if (rope->theta == 1) fh_reader_fail(r, FH_EFORMAT, "'rope_theta' is 1, with which yarn cannot be computed");
    }
}

/* How many elements of a head are rotated must be even, and must make sense. */
static void check_rotated(fh_config *c, const fh_family *f, const fh_rope *rope)
{
    if (!(rope->partial > 0 && rope->partial <= 1)) {
        fh_config_no_body(c, "the rotated share of a head, %g, is not within 0 and 1", rope->partial);
        return;
    }
    uint32_t rotated = (uint32_t)(c->head_dim * rope->partial);
    if (rotated == 0 || rotated % 2) fh_config_no_body(c, "%u of a head's %u elements are rotated: no even number", rotated, c->head_dim);
    if (f->partial == 1 && rope->partial != 1) fh_config_no_body(c, "heads are rotated in part, which '%s' does not do", c->model_type);
}

void fh_config_rope(fh_reader *r, const fh_family *f, fh_config *c)
{
    if (f->rope == FH_ROPE_NONE) return;
    const fh_json *in = fh_reader_get(r, "rope_scaling");
    if (!in) in = fh_reader_get(r, "rope_parameters");
    if (in && fh_json_type(in) != FH_JSON_OBJECT) {
        fh_reader_fail(r, FH_EFORMAT, "'rope_scaling' or 'rope_parameters' is no object");
        return;
    }
    double theta = positive(r, NULL, "rope_theta", positive(r, NULL, "rotary_emb_base", f->theta));
    double partial = fh_reader_double(r, NULL, "rotary_pct", f->partial);
    const fh_json *local = NULL;
    if (is_by_layer_type(in)) {
        local = fh_json_get(in, "sliding_attention");
        in = fh_json_get(in, "full_attention");
    }
    read_object(r, c, in, theta, partial, &c->rope);
    /* rotary_pct, where it is said, goes before the object's share. */
    if (fh_reader_get(r, "rotary_pct")) c->rope.partial = partial;
    if (f->theta_local > 0) read_object(r, c, local, positive(r, NULL, "rope_local_base_freq", f->theta_local), partial, &c->rope_local);
    if (r->rc < 0) return;
    check_rotated(c, f, &c->rope);
    if (f->theta_local > 0) check_rotated(c, f, &c->rope_local);
}
