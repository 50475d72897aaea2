/* runtime/rope.c: rotary position embeddings: how fast each pair of elements turns.
 *
 * Frequencies are computed in double and rounded to float32 once; the angle is then float32 frequency times float32 position, as the
 * reference computes it.  Pairs are (i, i + dims / 2), the half-split form, in every family we have.
 */
#include "runtime/body_private.h"

#include <math.h>

uint32_t fh_rope_dims(const fh_rope *rope, uint32_t head_dim)
{
    if (rope->type == FH_ROPE_NONE) return 0;
    return (uint32_t)((double)head_dim * rope->partial);
}

/* NaN fails too. */
static bool positive(double x) { return x > 0 && isfinite(x); }

fh_status fh_rope_check(const fh_rope *rope, uint32_t head_dim, uint32_t max_position, const char *what, fh_err *err)
{
    if (rope->type == FH_ROPE_NONE) return FH_OK;
    if (!(rope->partial > 0 && rope->partial <= 1))
        return fh_fail(err, FH_EFORMAT, "%s: rotary share of a head is %g, must be in (0, 1]", what, rope->partial);
    uint32_t dims = fh_rope_dims(rope, head_dim);
    if (dims < 2 || dims % 2)
        return fh_fail(err, FH_EFORMAT, "%s: %u of %u dimensions of a head would be rotated, must be an even number", what, dims, head_dim);
    if (!(rope->theta > 1 && isfinite(rope->theta)))
        return fh_fail(err, FH_EFORMAT, "%s: rope_theta is %g, must be above 1", what, rope->theta);
    if (rope->type == FH_ROPE_DEFAULT) return FH_OK;
    if (!positive(rope->factor)) return fh_fail(err, FH_EFORMAT, "%s: rope scaling factor is %g, must be positive", what, rope->factor);
    if (rope->type == FH_ROPE_LLAMA3 && !(positive(rope->low_freq_factor) && positive(rope->high_freq_factor) &&
                                          rope->low_freq_factor < rope->high_freq_factor && rope->original_max_position))
        return fh_fail(err, FH_EFORMAT,
                       "%s: llama3 rope needs 0 < low_freq_factor < high_freq_factor and original_max_position_embeddings, has %g, %g, %u",
                       what, rope->low_freq_factor, rope->high_freq_factor, rope->original_max_position);
    if (rope->type == FH_ROPE_YARN && !(positive(rope->beta_fast) && positive(rope->beta_slow) && rope->original_max_position &&
                                        isfinite(rope->attention_factor) && rope->attention_factor >= 0))
        return fh_fail(err, FH_EFORMAT,
                       "%s: yarn rope needs positive beta_fast, beta_slow and original_max_position_embeddings, has %g, %g, %u", what,
                       rope->beta_fast, rope->beta_slow, rope->original_max_position);
    if (rope->type == FH_ROPE_DYNAMIC && (dims < 4 || !max_position || rope->factor < 1))
        return fh_fail(err, FH_EFORMAT, "%s: dynamic rope needs a factor of at least 1 and 4 rotated dimensions, has %g and %u", what,
                       rope->factor, dims);
    return FH_OK;
}

/* Which dimension turns n times over the original context (yarn). */
static double yarn_dimension(const fh_rope *rope, double dims, double n)
{
    return dims * log(rope->original_max_position / (n * 2 * M_PI)) / (2 * log(rope->theta));
}

static double llama3_frequency(const fh_rope *rope, double base)
{
    double length = 2 * M_PI / base, low = rope->original_max_position / rope->low_freq_factor,
           high = rope->original_max_position / rope->high_freq_factor;
    if (length < high) return base;
    if (length > low) return base / rope->factor;
    double smooth = (rope->original_max_position / length - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    return (1 - smooth) * base / rope->factor + smooth * base;
}

void fh_rope_frequencies(const fh_rope *rope, uint32_t head_dim, uint32_t max_position, uint64_t length, float *freq)
{
    uint32_t dims = fh_rope_dims(rope, head_dim);
    double theta = rope->theta, low = 0, high = 0;
    if (rope->type == FH_ROPE_DYNAMIC && length > max_position)
        theta *= pow(rope->factor * (double)length / max_position - (rope->factor - 1), dims / (dims - 2.0));
    if (rope->type == FH_ROPE_YARN) {
        low = yarn_dimension(rope, dims, rope->beta_fast);
        high = yarn_dimension(rope, dims, rope->beta_slow);
        if (rope->truncate) low = floor(low), high = ceil(high);
        low = fmax(low, 0);
        high = fmin(high, dims - 1.0);
        if (low == high) high += 0.001;
    }
    const fh_json *divisor = rope->type == FH_ROPE_DIVIDED ? fh_json_first(rope->divisors) : NULL;
    for (uint32_t i = 0; i < dims / 2; i++) {
        double base = pow(theta, -2.0 * i / dims), f = base, by;
        if (divisor && fh_json_double(divisor, &by)) f = base / by, divisor = fh_json_next(divisor);
        if (rope->type == FH_ROPE_LINEAR) f = base / rope->factor;
        if (rope->type == FH_ROPE_LLAMA3) f = llama3_frequency(rope, base);
        if (rope->type == FH_ROPE_YARN) {
            double ramp = fmin(fmax((i - low) / (high - low), 0), 1);
            f = ramp * base / rope->factor + (1 - ramp) * base;
        }
        freq[i] = (float)f;
    }
}

static double yarn_mscale(double factor, double m) { return factor <= 1 ? 1 : 0.1 * m * log(factor) + 1; }

float fh_rope_attention_factor(const fh_rope *rope)
{
    if (rope->type != FH_ROPE_YARN && rope->type != FH_ROPE_DIVIDED) return 1;
    if (rope->attention_factor > 0) return (float)rope->attention_factor;
    if (rope->mscale != 0 && rope->mscale_all_dim != 0)
        return (float)(yarn_mscale(rope->factor, rope->mscale) / yarn_mscale(rope->factor, rope->mscale_all_dim));
    return (float)yarn_mscale(rope->factor, 1);
}

void fh_rope_rotate(float *head, const float *cos, const float *sin, uint32_t dims)
{
    uint32_t half = dims / 2;
    for (uint32_t i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = a * cos[i] - b * sin[i];
        head[i + half] = b * cos[i] + a * sin[i];
    }
}
