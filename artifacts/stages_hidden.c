/* hidden: states into the work directory. */
#include "artifacts/stages_private.h"

#include <string.h>

enum { DEFAULT_TOKENS = 100000, DEFAULT_WINDOW = 512, MOST_TOKENS = 1 << 26 /* that are looked at to choose from: 256 MiB of ids */ };

/* ---- states ------------------------------------------------------------------------------------------------- */

static bool is_self(const fh_text_params *p) { return p->n_texts == 0 || (p->n_texts == 1 && !strcmp(p->texts[0], "self")); }

/* What determines the states, beside the model. */
static fh_json *states_params(const fh_text_params *p, const char *digest, const char *names)
{
    fh_json *j = fh_json_object();
    fh_json_add_string(j, "text", names);
    if (digest) fh_json_add_string(j, "text_sha256", digest);
    fh_json_add_u64(j, "tokens", p->tokens ? p->tokens : DEFAULT_TOKENS);
    fh_json_add_u64(j, "window", p->window ? p->window : DEFAULT_WINDOW);
    fh_json_add_u64(j, "seed", p->seed);
    return j;
}

static char *text_names(const fh_text_params *p)
{
    fh_buf b = {0};
    for (size_t i = 0; i < p->n_texts; i++) {
        const char *base = strrchr(p->texts[i], '/');
        fh_buf_printf(&b, "%s%s", i ? "," : "", base ? base + 1 : p->texts[i]);
    }
    if (is_self(p)) b.len = 0, fh_buf_puts(&b, "self");
    return fh_buf_take(&b);
}

static fh_status collect(fh_stage_env *e, const char *file, const fh_facts *f, const fh_text_params *p, fh_json *params, fh_err *err)
{
    fh_model m = {0};
    fh_device *device = NULL;
    fh_corpus c = {0};
    fh_states s = {0};
    fh_json *record = NULL, *meta = NULL;
    char *path = fh_work_path(e->work, file), *text = NULL;
    bool self = is_self(p);
    fh_states_params how = {.tokens = p->tokens ? p->tokens : DEFAULT_TOKENS, .window = p->window ? p->window : DEFAULT_WINDOW, .seed = p->seed};
    fh_status rc = path ? fh_source_open(&m, e, f, FH_MODEL_BODY | FH_MODEL_HEAD | (self ? 0 : FH_MODEL_TOKENIZER), err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0 || (rc = fh_device_open(&device, e->device, NULL, m.body, e->job, err)) < 0) goto out;
    if (self) {
        fh_job_say(e->job, FH_INFO, "the model says %zu tokens itself (temperature 1, seed %llu)", how.tokens, (unsigned long long)how.seed);
        rc = fh_states_of_self(&s, &c, &m, &how, e->job, err);
    } else {
        if ((rc = fh_corpus_read(&c, p->texts, p->n_texts, m.tokenizer, MOST_TOKENS, e->job, err)) == FH_OK) {
            fh_corpus_thin(&c, how.tokens, fh_states_window(&m, &how));
            rc = fh_states_of_corpus(&s, &m, &c, &how, e->job, err);
        }
    }
    if (rc < 0 || (rc = fh_states_split(&s, p->seed, err)) < 0) goto out;
    fh_json_add_string(params, "form", c.form);
    fh_json_add_string(params, "documents_known", c.documents_known ? "yes" : "no");
    fh_json *whole = fh_json_object();
    fh_json_add(whole, "asked", params), params = NULL;
    fh_json_add_u64(whole, "documents", c.documents);
    if (!(record = fh_record_new("hidden", whole))) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    if ((rc = fh_record_input(record, e->work, FH_FILE_MODEL, err)) < 0) goto out;
    fh_json_add_string(record, "text_sha256", c.digest);
    fh_json_add_string(record, "blas", fh_gemm_library());
    if (device) fh_json_add_string(record, "device", fh_device_name(device));
    else fh_json_add_unified(record, s.seen, s.layers); /* a device does not look */
    meta = fh_json_object();
    if (!(text = fh_json_print(record, false)) || !fh_json_add_string(meta, "fhtool", text)) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    rc = fh_states_save(&s, path, meta, err);
    fh_work_changed(e->work, file);
out:
    fh_json_free(params);
    fh_json_free(meta);
    fh_json_free(record);
    fh_free(text);
    fh_free(path);
    fh_states_free(&s);
    fh_corpus_free(&c);
    fh_device_close(device);
    fh_model_close(&m);
    return rc;
}

/* Are the states in `file` those of these parameters and this model? */
static fh_status states_current(bool *current, fh_stage_env *e, const char *file, const fh_json *params, fh_err *err)
{
    fh_json *record;
    *current = false;
    fh_status rc = fh_current_record(&record, e, file, NULL, err);
    if (rc < 0 || !record) return rc;
    const fh_json *asked = fh_json_get(fh_json_get(record, "params"), "asked");
    *current = true;
    for (const fh_json *want = fh_json_first(params); want && *current; want = fh_json_next(want)) {
        char *a = fh_json_print(want, false), *b = fh_json_get(asked, fh_json_key(want)) ? fh_json_print(fh_json_get(asked, fh_json_key(want)), false) : NULL;
        *current = a && b && !strcmp(a, b);
        fh_free(a);
        fh_free(b);
    }
    fh_json_free(record);
    return rc;
}

fh_status fh_states_stage(fh_stage_env *e, const char *file, const fh_text_params *p, bool *fresh, fh_err *err)
{
    char digest[65], *names = text_names(p);
    bool self = is_self(p), pipe = !self && p->n_texts == 1 && !strcmp(p->texts[0], "-");
    fh_facts f = {0};
    fh_json *params = NULL;
    fh_status rc = names ? fh_facts_load(&f, e, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0) goto out;
    for (size_t i = 0; i < p->n_texts && p->n_texts > 1; i++)
        if (!strcmp(p->texts[i], "self")) { rc = fh_fail(err, FH_EUSAGE, "--text self: stands alone, without other texts"); goto out; }
    if (!self && !pipe && (rc = fh_text_digest(digest, p->texts, p->n_texts, err)) < 0) goto out;
    params = states_params(p, self || pipe ? NULL : digest, names);
    bool current = false;
    if (!pipe && (rc = states_current(&current, e, file, params, err)) < 0) goto out;
    *fresh = !current;
    if (current) { fh_json_free(params); goto out; }
    rc = collect(e, file, &f, p, params, err); /* takes params */
out:
    fh_free(names);
    fh_facts_free(&f);
    return rc;
}

fh_status fh_stage_hidden(fh_stage_env *e, const fh_text_params *p, fh_json **report, fh_err *err)
{
    double began = fh_now();
    fh_states s = {0};
    fh_json *record = NULL;
    bool fresh;
    char *path = fh_work_path(e->work, FH_FILE_STATES), *names = text_names(p);
    size_t count[FH_PARTS] = {0};
    fh_status rc = path && names ? fh_states_stage(e, FH_FILE_STATES, p, &fresh, err) : fh_fail(err, FH_ENOMEM, "out of memory");
    if (rc < 0 || (rc = fh_states_load(&s, path, err)) < 0 || (rc = fh_work_record(e->work, FH_FILE_STATES, &record, err)) < 0) goto out;
    if (fresh) fh_stage_log(e, "hidden", began);
    for (size_t i = 0; i < s.n; i++) if (s.part[i] < FH_PARTS) count[s.part[i]]++;
    fh_json *r = fh_json_object();
    fh_json_add_u64(r, "tokens", s.n);
    fh_json_add_string(r, "text", names);
    fh_json *parts = fh_json_add_object(r, "parts");
    fh_json_add_u64(parts, "a", count[FH_PART_A]);
    fh_json_add_u64(parts, "b", count[FH_PART_B]);
    fh_json_add_u64(parts, "c", count[FH_PART_C]);
    fh_json_add_bool(r, "kept", !fresh);
    if (fh_json_get(record, FH_ATTENTION_RANGE)) fh_json_add_copy(r, FH_ATTENTION_RANGE, fh_json_get(record, FH_ATTENTION_RANGE));
    fh_json_add_double(r, "seconds", fh_now() - began);
    *report = r;
out:
    fh_json_free(record);
    fh_free(path);
    fh_free(names);
    fh_states_free(&s);
    return rc;
}

/* ---- for a promise ------------------------------------------------------------------------------------------- */

fh_status fh_choose_states(const char **file, fh_stage_env *e, const fh_text_params *p, fh_err *err)
{
    fh_status rc;
    bool fresh, current = false;
    char *path = fh_work_path(e->work, FH_FILE_STATES), *names = text_names(p), digest[65];
    bool there = path && fh_file_exists(path);
    fh_json *params = NULL;
    if (!path || !names) { rc = fh_fail(err, FH_ENOMEM, "out of memory"); goto out; }
    *file = FH_FILE_STATES;
    bool as_it_is = !p->n_texts && !p->tokens && !p->window && !p->seed;
    if (as_it_is && there) { /* whatever hidden was asked for, if it is still of this model */
        fh_stage_state state;
        if ((rc = fh_work_state(e->work, FH_FILE_STATES, NULL, &state, NULL, err)) < 0) goto out;
        if (state == FH_STAGE_CURRENT) goto out;
    }
    if (as_it_is || (!p->n_texts && !there)) { rc = fh_states_stage(e, FH_FILE_STATES, p, &fresh, err); goto out; }
    if (there) {
        bool self = is_self(p);
        if (!self && strcmp(p->texts[0], "-") && (rc = fh_text_digest(digest, p->texts, p->n_texts, err)) < 0) goto out;
        if (self || strcmp(p->texts[0], "-")) {
            params = states_params(p, self ? NULL : digest, names);
            if ((rc = states_current(&current, e, FH_FILE_STATES, params, err)) < 0 || current) goto out;
        }
    }
    *file = FH_FILE_CALIBRATION_STATES;
    rc = fh_states_stage(e, *file, p, &fresh, err);
out:
    fh_json_free(params);
    fh_free(path);
    fh_free(names);
    return rc;
}
