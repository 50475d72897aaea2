#include <string.h>

#include "cmd/cmd.h"
#include "validate/validate.h"

typedef struct args { fh_common common; fh_str text, model; fh_uint window, stride, probes; fh_pick head, kv_type, device; fh_num backoff; bool no_hot; } args;
static const fh_opt options[] = {
    {"text", FH_OPT_STR, offsetof(args, text), "FILE", "the text, read as one", 0, 0, NULL},
    {"window", FH_OPT_UINT, offsetof(args, window), "W", "tokens a window (default 512, or the model's limit)", 2, 1e6, NULL},
    {"stride", FH_OPT_UINT, offsetof(args, stride), "S", "from window to window (default W/2)", 1, 1e6, NULL},
    {"head", FH_OPT_PICK, offsetof(args, head), "H", "which head (default dense)", 0, 0, "dense,flash"},
    {"probes", FH_OPT_UINT, offsetof(args, probes), "P", "of FlashHead (default: the artifact's)", 1, 1e9, NULL},
    {"backoff", FH_OPT_NUM, offsetof(args, backoff), "X", "of FlashHead: mass given to tokens that are no candidates (default 0.001)", 1e-9, 0.5, NULL},
    {"no-hot", FH_OPT_FLAG, offsetof(args, no_hot), NULL, "of FlashHead: leave out the hot list", 0, 0, NULL},
    FH_KV_OPT(offsetof(args, kv_type)),
    {"device", FH_OPT_PICK, offsetof(args, device), "D", "where the body is computed (default cpu); auto: a GPU if there is one", 0, 0, "cpu,cuda,auto"},
    {"model", FH_OPT_STR, offsetof(args, model), "DIR", "the base model of a head-only artifact", 0, 0, NULL},
    FH_COMMON_OPTS, FH_OPT_END,
};

/* A promise looks better than it is on the text that it was made on. */
static void warn_if_seen(const args *a, const fh_model *m, const char *text, size_t len, const fh_job *job)
{
    if (!m->head) return;
    const char *seen = fh_json_string(fh_json_get(fh_json_get(fh_fhead_header(fh_head_file(m->head)), "calibration"), "text_sha256"));
    uint8_t digest[32];
    char hex[65];
    fh_sha256_of(digest, text, len);
    fh_sha256_hex(hex, digest);
    if (seen && !strcmp(seen, hex)) fh_job_say(job, FH_WARN, "%s: is the text that %s was calibrated on: take another one to judge it", a->text.v, m->name);
}

static fh_status run(void *p, const fh_job *job, fh_err *err)
{
    args *a = p;
    fh_model m = {0};
    char *text = NULL;
    size_t len, n = 0;
    uint32_t *ids = NULL;
    fh_json *r = NULL;
    fh_perplexity_report said;
    fh_device *device = NULL;
    if (!a->text.set) return fh_fail(err, FH_EUSAGE, "perplexity: --text is missing: of which text?");
    fh_status rc = fh_model_open(&m, a->common.args[0], a->model.set ? a->model.v : NULL, FH_MODEL_BODY | FH_MODEL_HEAD | FH_MODEL_TOKENIZER, job, err);
    if (rc < 0 || (rc = fh_text_read(&text, &len, a->text.v, job, err)) < 0) goto out;
    warn_if_seen(a, &m, text, len, job);
    if ((rc = fh_tokenizer_encode(m.tokenizer, text, len, true, &ids, &n, err)) < 0) goto out;
    uint32_t most = m.config->max_position ? m.config->max_position : 512, window = a->window.set ? (uint32_t)a->window.v : most < 512 ? most : 512;
    fh_perplexity_params how = {.window = window, .stride = a->stride.set ? (uint32_t)a->stride.v : window / 2, .flash = a->head.v == 1, .probes = (uint32_t)a->probes.v,
                                .no_hot = a->no_hot, .backoff = a->backoff.v, .kv_type = fh_kv_types[a->kv_type.v]};
    if ((rc = fh_device_open(&device, (fh_device_kind)a->device.v, NULL, m.body, job, err)) < 0 ||
        (rc = fh_perplexity(&m, ids, n, &how, job, &said, err)) < 0) goto out;
    r = fh_json_object();
    fh_json_add_string(r, "head", how.flash ? "flash" : "dense");
    fh_json_add_string(r, "kv_type", fh_dtype_name(how.kv_type));
    fh_json_add_u64(r, "tokens", said.tokens);
    fh_json_add_double(r, "perplexity", said.perplexity);
    fh_json_add_u64(r, "window", how.window);
    fh_json_add_u64(r, "stride", how.stride);
    if (how.flash) {
        fh_json_add_u64(r, "probes", said.probes);
        fh_json_add_double(r, "mean_probes", said.mean_probes);
        fh_json_add_u64(r, "missed", said.missed);
        fh_json_add_double(r, "missed_share", said.missed_share);
        fh_json_add_double(r, "backoff", said.backoff);
    }
    fh_json_add_string(r, "device", fh_device_name(device));
    fh_json_add_double(r, "seconds", said.seconds);
out:
    rc = fh_finish(r, &a->common, rc, err);
    fh_free(text);
    fh_free(ids);
    fh_device_close(device);
    fh_model_close(&m);
    return rc;
}

const fh_command fh_cmd_perplexity = {"perplexity", "of a text, by the dense head or FlashHead", "MODEL", 1, 1, options, sizeof(args), run,
    "Windows of W tokens begin at 0, S, 2S, ...; each scores the tokens that no earlier one did.  MODEL: a checkpoint (a directory or a .gguf) or a .fhead.\n"
    "FlashHead spreads the back-off mass evenly over tokens that are no candidates, and reports the share of next tokens among them.",
    "fhtool perplexity model.fhead --text wiki.test.raw --window 512 --stride 256 --head flash"};
