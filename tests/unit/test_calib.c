/* Corpora, states and curves against definitions written out here. */
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/fault.h"
#include "tests/unit/calib_world.h"

static fh_err err;

/* ---- corpora ------------------------------------------------------------------------------------------------------ */

static char dir[] = "/tmp/fh-calib-XXXXXX";
static fh_tokenizer *bytes_tokenizer;

/* A byte-level tokenizer without merges: a token a byte. */
static int make_tokenizer(void **state)
{
    fh_buf b = {0};
    (void)state;
    if (!mkdtemp(dir)) return -1;
    fh_buf_puts(&b, "{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
                    "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{");
    for (unsigned i = 0, other = 256; i < 256; i++) {
        bool same = (i >= 0x21 && i <= 0x7e) || (i >= 0xa1 && i <= 0xac) || i >= 0xae;
        fh_buf_printf(&b, "%s\"\\u%04x\":%u", i ? "," : "", same ? i : other++, i);
    }
    fh_buf_puts(&b, "}}}");
    char *text = fh_buf_take(&b);
    fh_status rc = fh_tokenizer_open(&bytes_tokenizer, text, strlen(text), NULL, "bytes", NULL, &err);
    fh_free(text);
    return rc == FH_OK ? 0 : -1;
}

static int free_tokenizer(void **state)
{
    (void)state;
    fh_tokenizer_close(bytes_tokenizer);
    char command[100];
    snprintf(command, sizeof command, "rm -r %s", dir);
    return system(command);
}

static const char *file_of(const char *name, const char *data, size_t n)
{
    static char path[200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(fh_file_write(path, data, n, 0, &err), FH_OK);
    return path;
}

static fh_status read_text(fh_corpus *c, const char *data, size_t n, size_t limit)
{
    const char *path = file_of("text", data, n);
    return fh_corpus_read(c, &path, 1, bytes_tokenizer, limit, NULL, &err);
}

static void wikitext_titles_begin_documents(void **state)
{
    static const char text[] = " = One = \n\n words \n = = Part = = \n more \n = Two = \n end \n";
    fh_corpus c = {0};
    (void)state;
    assert_int_equal(read_text(&c, text, strlen(text), 0), FH_OK);
    assert_string_equal(c.form, "wikitext");
    assert_int_equal(c.documents, 2);
    assert_true(c.documents_known);
    assert_int_equal(c.n, strlen(text));
    assert_int_equal(c.starts[1], strstr(text, " = Two") - text);
    assert_int_equal(c.starts[2], c.n);
    fh_corpus_free(&c);
}

static void rows_of_json_lines_are_documents_unless_they_are_lines_of_wikitext(void **state)
{
    static const char rows[] = "{\"text\": \"one\\n\"}\n{\"text\": \"\"}\n{\"text\": \"two\", \"id\": 7}\n";
    static const char wiki[] = "{\"text\": \"\"}\n{\"text\": \" = A = \\n\"}\n{\"text\": \" line \\n\"}\n{\"text\": \" = B = \\n\"}\n{\"text\": \" x \\n\"}\n";
    fh_corpus c = {0};
    (void)state;
    assert_int_equal(read_text(&c, rows, strlen(rows), 0), FH_OK);
    assert_string_equal(c.form, "jsonl");
    assert_int_equal(c.documents, 2);
    assert_int_equal(c.n, strlen("one\ntwo"));
    fh_corpus_free(&c);
    assert_int_equal(read_text(&c, wiki, strlen(wiki), 0), FH_OK);
    assert_int_equal(c.documents, 2);
    fh_corpus_free(&c);
}

static void plain_text_is_cut_into_blocks_and_the_limit_holds(void **state)
{
    char text[30000];
    fh_corpus c = {0};
    (void)state;
    for (size_t i = 0; i < sizeof text; i++) text[i] = i % 61 == 60 ? '\n' : 'a';
    assert_int_equal(read_text(&c, text, sizeof text, 20000), FH_OK);
    assert_int_equal(c.n, 20000);
    assert_false(c.documents_known);
    assert_true(c.documents >= 20);
    for (size_t i = 0; i < c.documents; i++) assert_true(c.starts[i] < c.starts[i + 1]);
    fh_corpus_free(&c);
}

static void what_is_no_text_is_refused_by_name(void **state)
{
    static const struct { const char *data; size_t n; const char *says; } bad[] = {
        {"", 0, "empty"}, {"\x1f\x8b\x08 12345", 8, "gzip"}, {"\x28\xb5\x2f\xfd 1234", 8, "zstd"}, {"\xff\xfeh\0i\0", 6, "UTF-16"}, {"a\0b and so on", 13, "zero byte"},
        {"PK\x03\x04 1234", 8, "zip"}, {"{\"text\": 5}\n", 12, "no \"text\""}, {"{\"text\": \"a\"}\n{\"text\": }\n", 25, "row 2"},
    };
    fh_corpus c = {0};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(read_text(&c, bad[i].data, bad[i].n, 0), FH_EFORMAT);
        if (!strstr(err.text, bad[i].says)) fail_msg("%s: does not say '%s'", err.text, bad[i].says);
    }
    const char *missing = "/nonexistent/text";
    assert_int_equal(fh_corpus_read(&c, &missing, 1, bytes_tokenizer, 0, NULL, &err), FH_EIO);
    assert_int_equal(fh_corpus_read(&c, (const char *[]){dir}, 1, bytes_tokenizer, 0, NULL, &err), FH_EIO);
}

static void the_digest_is_of_the_whole_file_and_known_before_reading(void **state)
{
    char text[5000], hex[65];
    fh_corpus c = {0};
    (void)state;
    memset(text, 'x', sizeof text);
    text[700] = '\n';
    const char *path = file_of("digest", text, sizeof text);
    assert_int_equal(fh_text_digest(hex, &path, 1, &err), FH_OK);
    assert_int_equal(fh_corpus_read(&c, &path, 1, bytes_tokenizer, 100, NULL, &err), FH_OK);
    assert_string_equal(c.digest, hex);
    fh_corpus_free(&c);
}

/* ---- parts --------------------------------------------------------------------------------------------------------- */

static void whole_documents_fall_to_parts_in_their_shares(void **state)
{
    enum { ALL = 20000 };
    static uint32_t document[ALL];
    static uint8_t part[ALL], of[400];
    fh_states s = {.n = ALL, .document = document, .part = part};
    size_t got[FH_PARTS] = {0};
    (void)state;
    for (uint32_t i = 0; i < ALL; i++) document[i] = i / 50;
    assert_int_equal(fh_states_split(&s, 7, &err), FH_OK);
    memset(of, 9, sizeof of);
    for (size_t i = 0; i < ALL; i++) {
        assert_true(part[i] < FH_PARTS);
        if (of[document[i]] == 9) of[document[i]] = part[i];
        assert_int_equal(of[document[i]], part[i]);
        got[part[i]]++;
    }
    assert_in_range(got[FH_PART_A], ALL * 49 / 100, ALL * 51 / 100);
    assert_in_range(got[FH_PART_B], ALL * 34 / 100, ALL * 36 / 100);
    assert_in_range(got[FH_PART_C], ALL * 14 / 100, ALL * 16 / 100);
}

/* ---- curves ----------------------------------------------------------------------------------------------------------- */

/* One position, by the definitions of DESIGN 2, in double. */
static void define(const world *x, size_t n, uint32_t probes, bool hot, double out[7])
{
    double z[V], s[K], lse = 0, mass = 0, best = -1e9, flash = -1e9;
    bool in[V] = {false};
    int order[V], top = 0, arg = 0, alive = 0;
    for (int t = 0; t < V; t++) z[t] = dot(x->h[n], x->w[t]);
    for (int c = 0; c < K; c++) s[c] = dot(x->h[n], x->c[c]);
    for (int c = 0; c < K; c++) {
        unsigned before = 0;
        for (int o = 0; o < K; o++) before += s[o] > s[c] || (s[o] == s[c] && o < c);
        if (before < probes) for (int j = 0; j < CAP; j++) in[x->perm[c * CAP + j]] = true;
    }
    for (int i = 0; i < 3 && hot; i++) in[x->hot[i]] = true;
    in[x->always[0]] = true;
    for (int t = 0; t < V; t++) if (!x->dead_map[t]) lse += exp(z[t]), order[alive++] = t; else in[t] = false;
    lse = log(lse);
    for (int i = 0; i < alive; i++) for (int j = i + 1; j < alive; j++) if (z[order[j]] > z[order[i]]) { int t = order[i]; order[i] = order[j], order[j] = t; }
    for (int t = 0; t < V; t++) {
        if (x->dead_map[t]) continue;
        if (z[t] > best) best = z[t], top = t;
        if (in[t]) { mass += exp(z[t] - lse); if (z[t] > flash) flash = z[t], arg = t; }
    }
    bool all = true;
    for (int i = 0; i < 10; i++) {
        all = all && in[order[i]];
        if (i == 0) out[0] = all;
        if (i == 2) out[1] = all;
        if (i == 4) out[2] = all;
        if (i == 9) out[3] = all;
    }
    out[4] = arg == top, out[5] = mass, out[6] = -log(mass);
}

static void a_curve_is_the_mean_of_the_definitions(void **state)
{
    world *x = make_world(3);
    fh_head *head = NULL;
    fh_point p[] = {{.probes = 1}, {.probes = 2}, {.probes = 5}, {.probes = K}};
    (void)state;
    assert_int_equal(fh_head_from_parts(&head, &x->parts, "test", &err), FH_OK);
    for (int hot = 0; hot < 2; hot++) {
        assert_int_equal(fh_curve(head, &x->dense, &x->h[0][0], NULL, N, !hot, p, 4, NULL, &err), FH_OK);
        for (int i = 0; i < 4; i++) {
            double mean[7] = {0}, one[7];
            for (size_t n = 0; n < N; n++) {
                define(x, n, p[i].probes, hot, one);
                for (int k = 0; k < 7; k++) mean[k] += one[k] / N;
            }
            const double got[7] = {p[i].top1, p[i].top3, p[i].top5, p[i].top10, p[i].agreement, p[i].mass, p[i].kl};
            for (int k = 0; k < 7; k++) if (!(fabs(got[k] - mean[k]) <= 1e-5)) fail_msg("P %u field %d: %.9g, defined %.9g", p[i].probes, k, got[k], mean[k]);
        }
    }
    assert_true(p[3].top10 == 1 && p[3].agreement == 1);
    fh_head_close(head);
    free(x);
}

/* With thresholds the curve has the answers, and the clusters, of heads that have these. */
static void adaptive_answers(const world *x, fh_head_parts parts)
{
    fh_point p[] = {{.probes = 6, .threshold = 0.01f}, {.probes = 6, .threshold = 0.6f}, {.probes = 6, .threshold = 1.7f}, {.probes = 6, .threshold = 100}};
    for (size_t i = 0; i < 4; i++) {
        uint32_t got[N];
        double agree = 0;
        fh_head *head = NULL;
        fh_scratch *scratch = NULL;
        parts.probes = 6, parts.threshold = p[i].threshold;
        assert_int_equal(fh_head_from_parts(&head, &parts, "test", &err), FH_OK);
        if (!i) assert_int_equal(fh_curve(head, &x->dense, &x->h[0][0], NULL, N, false, p, 4, NULL, &err), FH_OK);
        assert_int_equal(fh_scratch_new(&scratch, head, 1, &err), FH_OK);
        assert_int_equal(fh_head_greedy(head, scratch, &x->h[0][0], N, NULL, got, &err), FH_OK);
        fh_probed probed = fh_scratch_probed(scratch);
        for (size_t n = 0; n < N; n++) {
            uint32_t top = 1;
            for (uint32_t t = 0; t < V; t++) if (!x->dead_map[t] && dot(x->h[n], x->w[t]) > dot(x->h[n], x->w[top])) top = t;
            agree += got[n] == top;
        }
        assert_true(fabs(p[i].agreement - agree / N) <= 1e-9 && fabs(p[i].mean_probes - (double)probed.clusters / N) <= 1e-9);
        fh_scratch_free(scratch);
        fh_head_close(head);
    }
    assert_true(p[0].mean_probes < 1.2 && p[1].mean_probes > p[0].mean_probes && p[2].mean_probes > p[1].mean_probes && p[3].mean_probes == 6);
    assert_true(p[3].top1 > p[2].top1 && p[2].top1 > p[0].top1);
}

/* Rows in steps so coarse that the encoded best is often another: the curve says what the runtime answers, rows scored again or not. */
static void a_curve_is_of_the_answers_that_the_runtime_gives(void **state)
{
    enum { POINTS = 4 };
    static const uint32_t again[] = {0, 1, 2, 7, 1000};
    (void)state;
    for (size_t r = 0; r < sizeof again / sizeof *again; r++) {
        world *x = make_world(4);
        fh_head *head = NULL;
        fh_scratch *scratch = NULL;
        fh_point p[POINTS] = {{.probes = 1}, {.probes = 2}, {.probes = 5}, {.probes = K}};
        int8_t *coarse = calloc(K * CAP, 64);
        float scales[K * CAP];
        uint32_t got[N], ids[K * CAP + 4], clusters[K];
        float logits[K * CAP + 4];
        for (size_t s = 0; s < K * CAP; s++) {
            scales[s] = 0.25f;
            for (size_t i = 0; i < D; i++) coarse[s * 64 + i] = (int8_t)rint((double)x->rows[s][i] * 4);
        }
        fh_head_parts parts = x->parts;
        parts.tokens = (fh_rows){coarse, FH_I8, K * CAP, D, 64}, parts.token_scales = scales, parts.tokens_exact = false;
        parts.exact = x->dense.rows, parts.exact_by_token = true, parts.rerank = again[r];
        assert_int_equal(fh_head_from_parts(&head, &parts, "test", &err), FH_OK);
        assert_int_equal(fh_scratch_new(&scratch, head, 1, &err), FH_OK);
        assert_int_equal(fh_curve(head, &x->dense, &x->h[0][0], NULL, N, false, p, POINTS, NULL, &err), FH_OK);
        for (size_t i = 0; i < POINTS; i++) {
            fh_query q = {.probes = p[i].probes};
            double agree = 0, kl = 0;
            assert_int_equal(fh_head_greedy(head, scratch, &x->h[0][0], N, &q, got, &err), FH_OK);
            for (size_t n = 0; n < N; n++) {
                double z[V], all = 0, sum = 0, part = 0;
                uint32_t top = 1;
                size_t count;
                for (uint32_t t = 0; t < V; t++) {
                    z[t] = dot(x->h[n], x->w[t]);
                    if (x->dead_map[t]) continue;
                    all += exp(z[t]);
                    if (z[t] > z[top]) top = t;
                }
                agree += got[n] == top;
                assert_int_equal(fh_head_route(head, scratch, x->h[n], 1, q.probes, clusters, NULL, &err), FH_OK);
                assert_int_equal(fh_head_score(head, scratch, x->h[n], clusters, q.probes, &q, ids, logits, &count, &err), FH_OK);
                for (size_t j = 0; j < count; j++) sum += exp((double)logits[j]);
                for (size_t j = 0; j < count; j++) part += exp((double)logits[j]) / sum * ((double)logits[j] - z[ids[j]]);
                kl += part - log(sum) + log(all);
            }
            if (!(fabs(p[i].agreement - agree / N) <= 1e-9)) fail_msg("R %u P %u: agreement %.9g, answered %.9g", again[r], q.probes, p[i].agreement, agree / N);
            if (!(fabs(p[i].kl - kl / N) <= 1e-5)) fail_msg("R %u P %u: kl %.9g, answered %.9g", again[r], q.probes, p[i].kl, kl / N);
        }
        if (!again[r]) assert_true(p[POINTS - 1].agreement < 0.95);
        if (again[r] == 1000) assert_true(p[POINTS - 1].agreement == 1);
        adaptive_answers(x, parts);
        fh_scratch_free(scratch);
        fh_head_close(head);
        free(coarse);
        free(x);
    }
}

static void states_written_are_states_read(void **state)
{
    world *x = make_world(8);
    fh_states back = {0};
    char path[200];
    (void)state;
    snprintf(path, sizeof path, "%s/states.safetensors", dir);
    assert_int_equal(fh_states_save(&x->states, path, NULL, &err), FH_OK);
    assert_int_equal(fh_states_load(&back, path, &err), FH_OK);
    assert_int_equal(back.n, N);
    assert_memory_equal(back.hidden, x->h, sizeof x->h);
    assert_memory_equal(back.document, x->document, sizeof x->document);
    fh_states_free(&back);
    x->h[4][2] = NAN;
    assert_int_equal(fh_states_save(&x->states, path, NULL, &err), FH_OK);
    assert_int_equal(fh_states_load(&back, path, &err), FH_ECHECK);
    assert_non_null(strstr(err.text, "position 4"));
    free(x);
}

#ifdef FH_FAULTS
static void every_allocation_of_reading_text_may_fail(void **state)
{
    static const char text[] = " = One = \n\n words \n = Two = \n end \n";
    (void)state;
    for (long n = 1;; n++) {
        fh_corpus c = {0};
        const char *path = file_of("faulty", text, strlen(text));
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_corpus_read(&c, &path, 1, bytes_tokenizer, 0, NULL, &err);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        assert_int_equal(rc, fired ? FH_ENOMEM : FH_OK);
        fh_corpus_free(&c);
        if (!fired) break;
    }
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wikitext_titles_begin_documents),
        cmocka_unit_test(rows_of_json_lines_are_documents_unless_they_are_lines_of_wikitext),
        cmocka_unit_test(plain_text_is_cut_into_blocks_and_the_limit_holds),
        cmocka_unit_test(what_is_no_text_is_refused_by_name),
        cmocka_unit_test(the_digest_is_of_the_whole_file_and_known_before_reading),
        cmocka_unit_test(whole_documents_fall_to_parts_in_their_shares),
        cmocka_unit_test(a_curve_is_the_mean_of_the_definitions),
        cmocka_unit_test(a_curve_is_of_the_answers_that_the_runtime_gives),
        cmocka_unit_test(states_written_are_states_read),
#ifdef FH_FAULTS
        cmocka_unit_test(every_allocation_of_reading_text_may_fail),
#endif
    };
    return cmocka_run_group_tests(tests, make_tokenizer, free_tokenizer);
}
