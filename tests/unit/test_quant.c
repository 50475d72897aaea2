/* Encodings: values, scales, padding, errors; the same for any number of threads. */
#include "base/fault.h"
#include "quant/quant.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static fh_rng rng;
static float number(void) { return (float)(2 * fh_rng_double(&rng) - 1); }

static void strides_are_whole_lines(void **state)
{
    assert_int_equal(fh_enc_stride(FH_I8, 1), 64);
    assert_int_equal(fh_enc_stride(FH_I8, 64), 64);
    assert_int_equal(fh_enc_stride(FH_I8, 65), 128);
    assert_int_equal(fh_enc_stride(FH_BF16, 640), 1280);
    assert_int_equal(fh_enc_stride(FH_I4, 1), 64);
    assert_int_equal(fh_enc_stride(FH_I4, 128), 64);
    assert_int_equal(fh_enc_stride(FH_I4, 576), 320);
    assert_int_equal(fh_scale_bytes(FH_I4, 576), 36);
    assert_int_equal(fh_scale_bytes(FH_I4, 33), 4);
    assert_int_equal(fh_scale_bytes(FH_I8, 576), 4);
    assert_int_equal(fh_scale_bytes(FH_BF16, 576), 0);
    assert_int_equal(fh_enc_stride(FH_F16, 33), 128);
    assert_int_equal(fh_enc_stride(FH_F32, 17), 128);
}

static void int8_is_what_it_says(void **state)
{
    const float row[] = {127, -127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 126.4f, 0}; /* scale 1: halves go to the even side */
    const int8_t want[] = {127, -127, 0, 2, 2, 0, -2, 126, 0};
    int8_t got[64];
    float scale, back[9];
    memset(got, 0x55, sizeof got);
    fh_enc_row(FH_I8, row, 9, got, &scale);
    assert_true(scale == 1);
    assert_memory_equal(got, want, sizeof want);
    for (size_t i = 9; i < 64; i++) assert_int_equal(got[i], 0);
    fh_dec_row(FH_I8, got, &(float){0.25f}, 9, back);
    assert_true(back[0] == 31.75f && back[1] == -31.75f && back[3] == 0.5f);
    const float zero[3] = {0, -0.0f, 0};
    fh_enc_row(FH_I8, zero, 3, got, &scale);
    assert_true(scale == 1 && got[0] == 0 && got[1] == 0);
    fh_enc_row(FH_F32, row, 9, got, NULL);
    assert_memory_equal(got, row, sizeof row);
}

static void int4_is_what_it_says(void **state)
{
    float row[130], back[130];
    uint8_t got[128];
    uint16_t scales[5];
    for (int i = 0; i < 130; i++) row[i] = (float)(i * 5 % 15 - 7); /* scale 1 is exact in every whole group */
    row[128] = 3.5f, row[129] = -7;                                 /* 3.5 to the even side; of the last group there are two */
    memset(got, 0x55, sizeof got);
    fh_enc_row(FH_I4, row, 130, got, scales);
    for (int g = 0; g < 5; g++) assert_true(fh_bf16_to_f32(scales[g]) == 1);
    fh_dec_row(FH_I4, got, scales, 130, back);
    for (int i = 0; i < 129; i++) assert_true(back[i] == (i == 128 ? 4 : row[i]));
    assert_int_equal(got[1] & 15, 0x100 - 2 - 0xf0);  /* element 1 is -2: the low half of byte 1 */
    assert_int_equal(got[1] >> 4, (65 * 5 % 15 - 7) & 15);
    assert_int_equal(got[64], 4);
    assert_int_equal(got[65], 9);
    for (int i = 66; i < 128; i++) assert_int_equal(got[i], 0);
    memset(row, 0, sizeof row);
    fh_enc_row(FH_I4, row, 130, got, scales);
    for (int g = 0; g < 5; g++) assert_true(fh_bf16_to_f32(scales[g]) == 1);
    for (int i = 0; i < 128; i++) assert_int_equal(got[i], 0);
}

/* One value far out of many: cutting it off keeps the others apart. */
static void an_int4_scale_is_the_best_of_its_shares(void **state)
{
    float row[32], back[32];
    uint8_t got[64];
    uint16_t scale;
    double off = 0;
    for (int i = 0; i < 32; i++) row[i] = i ? (i % 2 ? 0.48f : -0.48f) : 1; /* 4 steps of 0.84 / 7 */
    fh_enc_row(FH_I4, row, 32, got, &scale);
    fh_dec_row(FH_I4, got, &scale, 32, back);
    for (int i = 0; i < 32; i++) off += pow((double)row[i] - (double)back[i], 2);
    double plain = 0, step = 1.0 / 7;
    for (int i = 0; i < 32; i++) plain += pow((double)row[i] - rint((double)row[i] / step) * step, 2);
    assert_true(off < plain);
}

static void int4_centroids_lose_their_mean(void **state)
{
    enum { ROWS = 40, COLS = 70 };
    float rows[ROWS][COLS], back[COLS];
    uint8_t *out = malloc(ROWS * 64);
    uint16_t scales[ROWS][3];
    fh_rows src = {rows, FH_F32, ROWS, COLS, sizeof *rows};
    fh_quant_error e;
    for (int r = 0; r < ROWS; r++) for (int i = 0; i < COLS; i++) rows[r][i] = 100.0f * (float)i + number();
    assert_int_equal(fh_encode_centroids(FH_I4, &src, NULL, out, scales, &e, NULL), FH_OK);
    for (int i = 0; i < COLS; i++) {
        double mean = 0;
        for (int r = 0; r < ROWS; r++) mean += (double)rows[r][i] / ROWS;
        for (int r = 0; r < ROWS; r++) {
            fh_dec_row(FH_I4, out + r * 64, scales[r], COLS, back);
            if (!(fabs((double)back[i] - ((double)rows[r][i] - mean)) <= 0.35)) fail_msg("row %d, %d: %g", r, i, (double)back[i]);
        }
    }
    free(out);
}

static void rows_of_any_size_stay_in_range(void **state)
{
    static const float sizes[] = {1, 3e38f, 1e-30f, 2e-38f, 1e-41f, 1e-44f, 1.4e-45f};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        float row[40], scale, back[40];
        int8_t got[64];
        for (int i = 0; i < 40; i++) row[i] = number() * sizes[s];
        row[17] = -sizes[s];
        fh_enc_row(FH_I8, row, 40, got, &scale);
        assert_true(scale > 0 && isfinite(scale));
        fh_dec_row(FH_I8, got, &scale, 40, back);
        for (int i = 0; i < 40; i++) {
            assert_true(got[i] >= -127);
            assert_true(fabs((double)back[i] - (double)row[i]) <= 0.51 * (double)scale);
        }
        if (sizes[s] > 1e-37f) assert_true(scale == sizes[s] / 127);
    }
}

static void exact_encodings_come_back(void **state)
{
    float row[33], back[33];
    uint8_t room[192];
    for (int i = 0; i < 33; i++) row[i] = fh_bf16_to_f32(fh_f32_to_bf16(number()));
    for (fh_dtype t = FH_F32; t <= FH_BF16; t++) {
        fh_enc_row(t, row, 33, room, NULL);
        fh_dec_row(t, room, NULL, 33, back);
        assert_memory_equal(row, back, sizeof row);
    }
    for (int i = 0; i < 33; i++) row[i] = fh_f16_to_f32(fh_f32_to_f16(number()));
    fh_enc_row(FH_F16, row, 33, room, NULL);
    fh_dec_row(FH_F16, room, NULL, 33, back);
    assert_memory_equal(row, back, sizeof row);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void many_rows_are_ordered_padded_and_measured(void **state)
{
    enum { ROWS = 1000, COLS = 37, N = 1003 };
    float *data = malloc(ROWS * COLS * sizeof *data);
    uint32_t order[N];
    uint8_t skip[ROWS] = {0};
    for (size_t i = 0; i < ROWS * COLS; i++) data[i] = number();
    for (uint32_t i = 0; i < N; i++) order[i] = i < 3 ? UINT32_MAX : ROWS - 1 - (i - 3);
    for (int j = 0; j < COLS; j++) data[5 * COLS + j] = j ? 1e-3f : 1; /* most of it is lost: the worst row, */
    for (int j = 0; j < COLS; j++) data[6 * COLS + j] = j ? 4e-3f : 1; /* but for this one, which does not count */
    skip[6] = 1;
    fh_rows src = {data, FH_F32, ROWS, COLS, COLS * sizeof(float)};
    for (fh_dtype t = FH_F32; t <= FH_I4; t++) {
        size_t stride = fh_enc_stride(t, COLS), each = fh_scale_bytes(t, COLS);
        uint8_t *want = calloc(N, stride), *got = malloc(N * stride);
        uint8_t *scales = malloc(N * each + 1), *want_scales = malloc(N * each + 1);
        double errors[ROWS], sum = 0;
        size_t n = 0;
        uint32_t worst = 0;
        double max = -1;
        for (uint32_t i = 0; i < N; i++) {
            static const float zero[COLS];
            float back[COLS];
            const float *row = order[i] == UINT32_MAX ? zero : data + order[i] * COLS;
            fh_enc_row(t, row, COLS, want + i * stride, want_scales + i * each);
            fh_dec_row(t, want + i * stride, want_scales + i * each, COLS, back);
            if (order[i] == UINT32_MAX || skip[order[i]]) continue;
            double off = 0, norm = 0;
            for (int j = 0; j < COLS; j++) off += pow((double)row[j] - (double)back[j], 2), norm += pow((double)row[j], 2);
            errors[n] = sqrt(off / norm);
            sum += errors[n];
            if (errors[n] > max || (errors[n] == max && order[i] < worst)) max = errors[n], worst = order[i];
            n++;
        }
        qsort(errors, n, sizeof *errors, ascending);
        fh_quant_error first = {0};
        for (unsigned threads = 1; threads <= 3; threads++) {
            fh_job job = {0};
            fh_quant_error e;
            assert_int_equal(fh_pool_new(&job.pool, threads, NULL), FH_OK);
            memset(got, 0x77, N * stride);
            assert_int_equal(fh_encode_rows(t, &src, order, N, skip, &job, got, each ? scales : NULL, &e, NULL), FH_OK);
            assert_memory_equal(want, got, N * stride);
            assert_memory_equal(want_scales, scales, N * each);
            if (threads == 1) first = e;
            assert_true(e.mean == first.mean && e.p99 == first.p99 && e.max == first.max && e.worst == first.worst);
            assert_true(fabs(e.mean - sum / (double)n) <= 1e-12 && fabs(e.max - max) <= 1e-12);
            assert_true(fabs(e.p99 - errors[(n - 1) * 99 / 100]) <= 1e-12);
            if (t == FH_I8) assert_int_equal(e.worst, 5);
            if (t != FH_F32) assert_int_equal(e.worst, worst);
            else assert_true(e.max == 0);
            fh_pool_free(job.pool);
        }
        free(want), free(got), free(scales), free(want_scales);
    }
    free(data);
}

static void what_cannot_be_encoded_is_named(void **state)
{
    float data[4][3] = {{1, 2, 3}, {1, 70000, 3}, {1, 2, 3.4e38f}, {1, 2, 3}};
    uint8_t out[4 * 64];
    float scales[4];
    fh_rows src = {data, FH_F32, 4, 3, sizeof *data};
    fh_quant_error e;
    fh_err err;
    assert_int_equal(fh_encode_rows(FH_F16, &src, NULL, 4, NULL, NULL, out, NULL, &e, &err), FH_ECHECK);
    assert_non_null(strstr(err.text, "row 1: value 1 is 70000"));
    assert_int_equal(fh_encode_rows(FH_BF16, &src, NULL, 4, NULL, NULL, out, NULL, NULL, &err), FH_ECHECK);
    assert_non_null(strstr(err.text, "row 2: value 2"));
    assert_int_equal(fh_encode_rows(FH_I8, &src, NULL, 4, NULL, NULL, out, scales, &e, &err), FH_OK);
    data[3][0] = NAN;
    for (fh_dtype t = FH_F32; t <= FH_I8; t++) {
        assert_int_equal(fh_encode_rows(t, &src, (const uint32_t[]){0, UINT32_MAX, 3}, 3, NULL, NULL, out, scales, &e, &err), FH_ECHECK);
        assert_non_null(strstr(err.text, "row 3: value 0"));
    }
    assert_int_equal(fh_encode_rows(FH_I32, &src, NULL, 1, NULL, NULL, out, NULL, NULL, &err), FH_EUSAGE);
    assert_int_equal(fh_encode_rows(FH_I8, &src, NULL, 5, NULL, NULL, out, scales, NULL, &err), FH_EUSAGE);
    assert_int_equal(fh_encode_rows(FH_I8, &src, (const uint32_t[]){0, 4}, 2, NULL, NULL, out, scales, NULL, &err), FH_EUSAGE);
    src.dtype = FH_I8;
    assert_int_equal(fh_encode_rows(FH_I8, &src, NULL, 1, NULL, NULL, out, scales, NULL, &err), FH_EUSAGE);
}

static void nothing_to_encode_is_no_error(void **state)
{
    float data[3] = {0};
    fh_rows src = {data, FH_F32, 1, 3, sizeof data};
    fh_quant_error e = {9, 9, 9, 9};
    uint8_t out[64];
    assert_int_equal(fh_encode_rows(FH_BF16, &src, NULL, 0, NULL, NULL, out, NULL, &e, NULL), FH_OK);
    assert_true(e.mean == 0 && e.p99 == 0 && e.max == 0);
    assert_int_equal(fh_encode_rows(FH_BF16, &src, NULL, 1, NULL, NULL, out, NULL, &e, NULL), FH_OK);
    assert_true(e.mean == 0 && e.max == 0 && e.worst == 0);
}

static void a_stop_is_obeyed(void **state)
{
    float data[3] = {0};
    fh_rows src = {data, FH_F32, 1, 3, sizeof data};
    volatile sig_atomic_t stop = 1;
    uint8_t out[64];
    assert_int_equal(fh_encode_rows(FH_BF16, &src, NULL, 1, NULL, &(fh_job){.stop = &stop}, out, NULL, NULL, NULL), FH_EINTERRUPTED);
}

#ifdef FH_FAULTS
static void running_out_of_memory_is_a_clean_error(void **state)
{
    float data[3] = {1, 2, 3}, scale;
    fh_rows src = {data, FH_F32, 1, 3, sizeof data};
    uint8_t out[64];
    fh_quant_error e;
    long n = 1;
    for (bool fired = true; fired; n++) {
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_encode_rows(FH_I8, &src, NULL, 1, NULL, NULL, out, &scale, &e, NULL);
        fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, fired ? FH_ENOMEM : FH_OK);
    }
    assert_true(n > 2);
}
#endif

int main(void)
{
    fh_rng_seed(&rng, 5, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strides_are_whole_lines),
        cmocka_unit_test(int8_is_what_it_says),
        cmocka_unit_test(int4_is_what_it_says),
        cmocka_unit_test(an_int4_scale_is_the_best_of_its_shares),
        cmocka_unit_test(int4_centroids_lose_their_mean),
        cmocka_unit_test(rows_of_any_size_stay_in_range),
        cmocka_unit_test(exact_encodings_come_back),
        cmocka_unit_test(many_rows_are_ordered_padded_and_measured),
        cmocka_unit_test(what_cannot_be_encoded_is_named),
        cmocka_unit_test(nothing_to_encode_is_no_error),
        cmocka_unit_test(a_stop_is_obeyed),
#ifdef FH_FAULTS
        cmocka_unit_test(running_out_of_memory_is_a_clean_error),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
