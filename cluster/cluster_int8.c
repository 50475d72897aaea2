/* cluster/cluster_int8.c: products of rows of eight bits with all clusters.
 *
 * They are sums of integers, so every instruction set gives the same; what is lost is lost in rounding the rows (turn.c).
 */
#include "cluster/cluster_private.h"

#include <math.h>
#include <string.h>

void fh_pack_int8(const fh_int8_dots *dots, int8_t *panel, const int8_t *row, size_t column, size_t ld)
{
    for (size_t j = 0; j < ld; j++) panel[j / 4 * 4 * FH_PANEL + column * 4 + j % 4] = (int8_t)((uint8_t)row[j] ^ (dots->offset ? 0x80u : 0));
}

/* ---- products ------------------------------------------------------------------------------------------------------ */

/* Scores from products, in place of each; whether one passes the bar.  Compiled for each instruction set, the same operations. */
static inline __attribute__((always_inline)) bool score_panel(float *score, const int32_t *dot, const float *scale, const float *bias, float by,
                                                              int32_t less, float bar)
{
    int any = 0;
    for (size_t j = 0; j < FH_PANEL; j++) {
        float s = (float)(dot[j] - less) * scale[j] * by + bias[j];
        score[j] = s;
        any |= s > bar;
    }
    return any;
}

static void tile_ref(int32_t *out, const int8_t *x, size_t rows, size_t ld, const int8_t *panel)
{
    for (size_t i = 0; i < rows; i++) {
        int32_t *o = out + i * FH_PANEL;
        memset(o, 0, FH_PANEL * sizeof *o);
        for (size_t j = 0; j < ld; j++) {
            const int8_t *p = panel + j / 4 * 4 * FH_PANEL + j % 4;
            int32_t a = x[i * ld + j];
            for (size_t c = 0; c < FH_PANEL; c++) o[c] += a * p[4 * c];
        }
    }
}

static bool score_ref(float *score, const int32_t *dot, const float *scale, const float *bias, float by, int32_t less, float bar)
{
    return score_panel(score, dot, scale, bias, by, less, bar);
}

static const fh_int8_dots ref = {"ref", false, tile_ref, score_ref};

#if defined(__x86_64__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

static inline int32_t four_bytes(const int8_t *p)
{
    int32_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* |a| of up to 127 times b with a's sign: two products stay below 2^15, so that pairs of bytes may be added in 16 bits. */
AVX2 static inline __m256i step_avx2(__m256i sum, __m256i size, __m256i a, const int8_t *b)
{
    __m256i signed_b = _mm256_sign_epi8(_mm256_loadu_si256((const __m256i *)(const void *)b), a);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(size, signed_b), _mm256_set1_epi16(1)));
}

AVX2 static void tile_avx2(int32_t *out, const int8_t *x, size_t rows, size_t ld, const int8_t *panel)
{
    for (size_t i = 0; i < rows; i++) {
        __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0;
        for (size_t j = 0; j < ld; j += 4) {
            __m256i a = _mm256_set1_epi32(four_bytes(x + i * ld + j)), size = _mm256_abs_epi8(a);
            const int8_t *b = panel + j * FH_PANEL;
            s0 = step_avx2(s0, size, a, b), s1 = step_avx2(s1, size, a, b + 32), s2 = step_avx2(s2, size, a, b + 64);
            s3 = step_avx2(s3, size, a, b + 96), s4 = step_avx2(s4, size, a, b + 128), s5 = step_avx2(s5, size, a, b + 160);
        }
        __m256i *o = (__m256i *)(void *)(out + i * FH_PANEL);
        _mm256_storeu_si256(o, s0), _mm256_storeu_si256(o + 1, s1), _mm256_storeu_si256(o + 2, s2);
        _mm256_storeu_si256(o + 3, s3), _mm256_storeu_si256(o + 4, s4), _mm256_storeu_si256(o + 5, s5);
    }
}

AVX2 static bool score_avx2(float *score, const int32_t *dot, const float *scale, const float *bias, float by, int32_t less, float bar)
{
    return score_panel(score, dot, scale, bias, by, less, bar);
}

static const fh_int8_dots avx2 = {"avx2", false, tile_avx2, score_avx2};

/* Eight rows by three vectors of 16 clusters: 24 sums with names, because an array of them is kept in memory. */
#define ROWS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
VNNI static void eight_vnni(int32_t *out, const int8_t *x, size_t ld, const int8_t *panel)
{
#define SUMS(r) __m512i a##r = _mm512_setzero_si512(), b##r = a##r, c##r = a##r; const int8_t *x##r = x + (size_t)r * ld;
#define STEP(r)                                                                                                                         \
    y = _mm512_set1_epi32(four_bytes(x##r + j));                                                                                        \
    a##r = _mm512_dpbusd_epi32(a##r, p0, y), b##r = _mm512_dpbusd_epi32(b##r, p1, y), c##r = _mm512_dpbusd_epi32(c##r, p2, y);
#define KEEP(r)                                                                                                                         \
    _mm512_storeu_si512(out + r * FH_PANEL, a##r), _mm512_storeu_si512(out + r * FH_PANEL + 16, b##r),                                  \
        _mm512_storeu_si512(out + r * FH_PANEL + 32, c##r);
    ROWS(SUMS)
    for (size_t j = 0; j < ld; j += 4) {
        const int8_t *p = panel + j * FH_PANEL;
        __m512i p0 = _mm512_loadu_si512(p), p1 = _mm512_loadu_si512(p + 64), p2 = _mm512_loadu_si512(p + 128), y;
        ROWS(STEP)
    }
    ROWS(KEEP)
#undef SUMS
#undef STEP
#undef KEEP
}

VNNI static void one_vnni(int32_t *out, const int8_t *x, size_t ld, const int8_t *panel)
{
    __m512i a = _mm512_setzero_si512(), b = a, c = a;
    for (size_t j = 0; j < ld; j += 4) {
        const int8_t *p = panel + j * FH_PANEL;
        __m512i y = _mm512_set1_epi32(four_bytes(x + j));
        a = _mm512_dpbusd_epi32(a, _mm512_loadu_si512(p), y), b = _mm512_dpbusd_epi32(b, _mm512_loadu_si512(p + 64), y);
        c = _mm512_dpbusd_epi32(c, _mm512_loadu_si512(p + 128), y);
    }
    _mm512_storeu_si512(out, a), _mm512_storeu_si512(out + 16, b), _mm512_storeu_si512(out + 32, c);
}

VNNI static void tile_vnni(int32_t *out, const int8_t *x, size_t rows, size_t ld, const int8_t *panel)
{
    size_t i = 0;
    for (; i + 8 <= rows; i += 8) eight_vnni(out + i * FH_PANEL, x + i * ld, ld, panel);
    for (; i < rows; i++) one_vnni(out + i * FH_PANEL, x + i * ld, ld, panel);
}

VNNI static bool score_vnni(float *score, const int32_t *dot, const float *scale, const float *bias, float by, int32_t less, float bar)
{
    return score_panel(score, dot, scale, bias, by, less, bar);
}

static const fh_int8_dots vnni = {"avx512 vnni", true, tile_vnni, score_vnni};
#elif defined(__aarch64__)
#include "base/neon.h"

enum { QUADS = FH_PANEL / 4 }; /* vectors of four clusters */

/* One row, or two for which a panel is read once: 24 sums. */
FH_TARGET_SDOT static inline __attribute__((always_inline)) void rows_sdot(int rows, int32_t *out, const int8_t *x, size_t ld, const int8_t *panel)
{
    int32x4_t sum[2][QUADS];
#pragma GCC unroll 12
    for (int q = 0; q < QUADS; q++) sum[0][q] = sum[1][q] = vdupq_n_s32(0);
    for (size_t j = 0; j < ld; j += 4) {
        int8x16_t y[2];
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + (size_t)r * ld + j, sizeof four);
            y[r] = vreinterpretq_s8_s32(vdupq_n_s32(four));
        }
#pragma GCC unroll 12
        for (int q = 0; q < QUADS; q++) {
            int8x16_t p = vld1q_s8(panel + j * FH_PANEL + 16 * q);
            sum[0][q] = fh_sdot(sum[0][q], p, y[0]);
            if (rows == 2) sum[1][q] = fh_sdot(sum[1][q], p, y[1]);
        }
    }
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 12
        for (int q = 0; q < QUADS; q++) vst1q_s32(out + r * FH_PANEL + 4 * q, sum[r][q]);
    }
}

FH_TARGET_SDOT static void tile_sdot(int32_t *out, const int8_t *x, size_t rows, size_t ld, const int8_t *panel)
{
    size_t i = 0;
    for (; i + 2 <= rows; i += 2) rows_sdot(2, out + i * FH_PANEL, x + i * ld, ld, panel);
    if (i < rows) rows_sdot(1, out + i * FH_PANEL, x + i * ld, ld, panel);
}

static const fh_int8_dots neon_dotprod = {"neon dotprod", false, tile_sdot, score_ref};
#endif

const fh_int8_dots *fh_int8_dots_pick(void)
{
#if defined(__x86_64__)
    unsigned bits = fh_bits_permitted();
    if (bits >= 512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) return &vnni;
    if (bits >= 256 && __builtin_cpu_supports("avx2")) return &avx2;
#elif defined(__aarch64__)
    if (fh_has_sdot() && fh_bits_permitted()) return &neon_dotprod;
#endif
    return &ref;
}
