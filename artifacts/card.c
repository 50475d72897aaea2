/* artifacts/card.c: what people read of a release: the model card, the evaluation results in the Hub's form, and the notice.
 *
 * Every number comes from the artifact: what its header holds of its calibration, and what can be counted in it.
 */
#include "artifacts/release_private.h"

#include <math.h>

/* A string as YAML and JSON both quote it. */
static void quoted(fh_buf *b, const char *s)
{
    char *text = fh_json_text_print(s, strlen(s));
    if (text) fh_buf_puts(b, text);
    else b->failed = true;
    fh_free(text);
}

static void yaml(fh_buf *b, const char *key, const char *value)
{
    fh_buf_printf(b, "%s: ", key);
    quoted(b, value);
    fh_buf_puts(b, "\n");
}

static double number(const fh_json *j, const char *key) { return fh_member_double(j, key, NAN); }

static const char *string(const fh_json *j, const char *key)
{
    const char *s = fh_json_string(fh_json_get(j, key));
    return s ? s : "-";
}

/* What stands in a table cell: markup of its own would break it. */
static void cell(fh_buf *b, const char *s)
{
    char shown[200];
    fh_show(shown, sizeof shown, s, strlen(s));
    for (const char *c = shown; *c; c++) fh_buf_printf(b, strchr("|\\`*_[]<>#", *c) ? "\\%c" : "%c", *c);
}

static void row(fh_buf *b, const char *what, const char *value)
{
    fh_buf_printf(b, "| %s | ", what);
    cell(b, value);
    fh_buf_puts(b, " |\n");
}

static void row_number(fh_buf *b, const char *what, double v)
{
    if (isfinite(v)) fh_buf_printf(b, "| %s | %.10g |\n", what, v);
}

/* ---- the card ------------------------------------------------------------------------------------------------------------ */

static void front_matter(fh_buf *b, const fh_publish_params *p, const fh_json *info)
{
    fh_buf_puts(b, "---\n");
    yaml(b, "license", p->license ? p->license : "other");
    if (p->license_file && !p->license) fh_buf_puts(b, "license_name: see-license\nlicense_link: LICENSE\n");
    if (p->base_model) {
        yaml(b, "base_model", p->base_model);
        fh_buf_puts(b, "base_model_relation: quantized\n");
    }
    if (fh_member_true(info, "bundled")) fh_buf_puts(b, "pipeline_tag: text-generation\n");
    fh_buf_puts(b, "library_name: fhtool\ntags:\n- flashhead\n- fhead\n---\n\n");
}

static void promise_row(fh_buf *b, const char *what, double k, const fh_json *p, double held)
{
    fh_buf_puts(b, "| ");
    cell(b, what);
    if (isfinite(k)) fh_buf_printf(b, " of top %.10g", k);
    fh_buf_printf(b, " | %.5g | **%.5f** | %.10g | ", number(p, "target"), number(p, "bound"), number(p, "misses"));
    if (isfinite(held)) fh_buf_printf(b, "%.5f |\n", held);
    else fh_buf_puts(b, "- |\n");
}

static void promise(fh_buf *b, const fh_json *calibration)
{
    const fh_json *held = fh_json_get(calibration, "heldout"), *promises = fh_json_get(calibration, "promises");
    if (!calibration) {
        fh_buf_puts(b, "## Promise\n\nNone: this artifact is not calibrated. `fhtool query --curve` measures it on states of your own.\n\n");
        return;
    }
    const fh_json *probed = fh_json_get(calibration, "probed");
    fh_buf_puts(b, "## Promise\n\nAt ");
    if (probed)
        fh_buf_printf(b,
                      "%.4g probes in the mean (every cluster whose score is within %.5g of the best one's; in 99 %% of the steps up to %.10g, "
                      "never more than %.10g)",
                      number(probed, "mean"), number(calibration, "threshold"), number(probed, "p99"), number(calibration, "probes"));
    else fh_buf_printf(b, "%.10g probes", number(calibration, "probes"));
    fh_buf_printf(b, " and %.10g hot tokens, with confidence %.4g, on %.10g positions that no earlier stage saw:\n\n", number(calibration, "hot"),
                  number(calibration, "confidence"), number(calibration, "positions"));
    fh_buf_puts(b, "| promised | target | at least | misses | held out, only reported |\n|---|---|---|---|---|\n");
    if (!promises)
        promise_row(b, "containment", number(calibration, "containment_k"), calibration, number(held, "containment"));
    for (const fh_json *p = fh_json_first(promises); p; p = fh_json_next(p)) promise_row(b, string(p, "what"), number(p, "k"), p, number(p, "heldout"));
    fh_buf_printf(b, "\nContainment of top k: all of the dense head's best k tokens are candidates. Held out: a third part of the text, %.10g positions.",
                  number(held, "positions"));
    if (!strcmp(string(calibration, "runtime"), "vllm"))
        fh_buf_puts(
            b,
            " Measured as the vLLM plugin flash-head computes, for `fhtool export --format vllm`: in bf16, routed by cosine, without hot list and reranking.");
    fh_buf_puts(b, " The promise is about this text:\n\n| | |\n|---|---|\n");
    row(b, "text", string(calibration, "text"));
    if (fh_json_get(calibration, "text_sha256")) row(b, "its SHA-256", string(calibration, "text_sha256"));
    fh_buf_puts(b, "\n");
}

static void curve(fh_buf *b, const fh_json *calibration)
{
    const fh_json *list = fh_json_get(calibration, "curve");
    if (!list || !fh_json_first(list)) return;
    fh_buf_puts(b, "## Measured\n\nShares of positions by probes, on the same text: all of the dense head's best 1, 3, 5, 10 tokens among the candidates; the "
                   "same best token "
                   "(agreement); the dense head's probability the candidates hold (mass); KL divergence in nats.\n\n"
                   "| probes | top 1 | top 3 | top 5 | top 10 | agreement | mass | KL |\n|---|---|---|---|---|---|---|---|\n");
    for (const fh_json *c = fh_json_first(list); c; c = fh_json_next(c))
        fh_buf_printf(b, "| %.10g | %.5f | %.5f | %.5f | %.5f | %.5f | %.5f | %.5g |\n", number(c, "probes"), number(c, "top1"), number(c, "top3"),
                      number(c, "top5"), number(c, "top10"), number(c, "agreement"), number(c, "mass"), number(c, "kl"));
    fh_buf_puts(b, "\n");
}

char *fh_card_text(const fh_publish_params *p, const fh_json *info, const fh_json *header)
{
    fh_buf b = {0};
    const fh_json *calibration = fh_json_get(header, "calibration");
    double step = number(info, "step_bytes"), dense = number(calibration, "dense_bytes");
    front_matter(&b, p, info);
    fh_buf_printf(&b, "# %s %s\n\n", p->name, p->version);
    fh_buf_puts(&b, "A FlashHead artifact (arXiv [2603.14591](https://arxiv.org/abs/2603.14591)): the output head of a language model that reads a few "
                    "clusters of tokens instead of the whole vocabulary");
    fh_buf_puts(&b, fh_member_true(info, "bundled") ? ", bundled with the model it belongs to.\n\n" : ". The model it belongs to is not in it.\n\n");
    fh_buf_printf(&b, "```sh\nfhtool run %s.fhead --prompt 'Once upon a time'%s\n```\n\n", p->name, fh_member_true(info, "bundled") ? "" : " --model DIR");
    promise(&b, calibration);
    if (isfinite(step) && isfinite(dense) && step > 0)
        fh_buf_printf(&b, "A step reads %.0f bytes of the head%s; the dense head reads %.0f (%.1f times as many).\n\n", step,
                      isfinite(number(info, "mean_probes")) ? " in the mean" : "", dense, dense / step);
    curve(&b, calibration);
    fh_buf_puts(&b, "## What it is\n\n| | |\n|---|---|\n");
    if (p->base_model) row(&b, "base model", p->base_model);
    row(&b, "base model's head (fingerprint)", string(info, "fingerprint"));
    row(&b, "digest", string(info, "digest"));
    row(&b, "model type", string(info, "model_type"));
    row_number(&b, "vocabulary V", number(info, "vocab"));
    row_number(&b, "hidden size D", number(info, "hidden"));
    row_number(&b, "clusters K", number(info, "k"));
    row_number(&b, "tokens a cluster", number(info, "cap"));
    row_number(&b, "probes P", number(info, "probes"));
    row_number(&b, "threshold on scores", number(info, "threshold"));
    row_number(&b, "hot tokens", number(info, "hot"));
    row_number(&b, "dead rows", number(info, "dead_rows"));
    row(&b, "routing", string(info, "routing"));
    row(&b, "encoding of centroids", string(info, "centroids"));
    row(&b, "encoding of token rows", string(info, "tokens"));
    row_number(&b, "rows scored again from the exact ones", number(info, "rerank"));
    row_number(&b, "bytes", number(info, "bytes"));
    fh_buf_puts(&b,
                "\n## Checking it\n\n`sha256sum -c SHA256SUMS` checks the files, `fhtool verify .` also what they mean, and with `--pubkey` who signed them. "
                "`fhtool rebuild recipe.json --model DIR -o again.fhead` makes the artifact again from the base model, bit for bit.\n\n");
    fh_buf_printf(&b, "## Licence\n\n`NOTICE` says what this is made from%s.\n", p->license_file ? "; `LICENSE` is the text of its licence" : "");
    return fh_buf_take(&b);
}

/* ---- evaluation results ------------------------------------------------------------------------------------------------------ */

static void result(fh_buf *b, const char *dataset, const char *task, double value, const char *notes)
{
    if (!isfinite(value)) return;
    fh_buf_puts(b, "- dataset:\n    id: ");
    quoted(b, dataset);
    fh_buf_printf(b, "\n    task_id: %s\n  value: %.10g\n  evaluation_framework: fhtool\n  notes: ", task, value);
    quoted(b, notes);
    fh_buf_puts(b, "\n");
}

char *fh_card_eval(const fh_publish_params *p, const fh_json *header)
{
    const fh_json *c = fh_json_get(header, "calibration"), *held = fh_json_get(c, "heldout"), *at = NULL;
    const char *dataset = p->eval_dataset ? p->eval_dataset : string(c, "text");
    fh_buf b = {0};
    char *notes = NULL;
    if (!c) return fh_strdup("");
    bool adaptive = fh_json_get(c, "threshold") != NULL; /* no point of the curve is of a threshold: `heldout` has two of three */
    for (const fh_json *j = fh_json_first(fh_json_get(c, "curve")); j && !adaptive; j = fh_json_next(j))
        if (number(j, "probes") == number(c, "probes")) at = j;
    notes =
        fh_sprintf("FlashHead against the dense head of the same model: %s%.10g probes, %.10g hot tokens; lower bound %.5f with confidence %.4g; "
                   "text SHA-256 %s",
                   adaptive ? "at most " : "", number(c, "probes"), number(c, "hot"), number(c, "bound"), number(c, "confidence"), string(c, "text_sha256"));
    if (!notes) return NULL;
    fh_buf_puts(&b, "# Measured by fhtool when the artifact was calibrated.\n");
    char *contained = fh_sprintf("containment_top%.0f", number(c, "containment_k"));
    if (contained) result(&b, dataset, contained, number(held, "containment"), notes);
    else b.failed = true;
    result(&b, dataset, "agreement", number(adaptive ? held : at, "agreement"), notes);
    result(&b, dataset, "covered_mass", number(adaptive ? held : at, "mass"), notes);
    result(&b, dataset, "kl_nats", number(at, "kl"), notes);
    fh_free(contained);
    fh_free(notes);
    return fh_buf_take(&b);
}

/* ---- the notice -------------------------------------------------------------------------------------------------------------- */

char *fh_card_notice(const fh_publish_params *p, const fh_json *info)
{
    fh_buf b = {0};
    fh_buf_printf(&b, "%s %s\n\nThis artifact is derived from ", p->name, p->version);
    fh_buf_puts(&b, p->base_model ? p->base_model : "a base model that its publisher did not name");
    fh_buf_printf(&b, ":\nits head has the fingerprint %s\n(SHA-256 of the head tensor and the facts that matter).\n\n", string(info, "fingerprint"));
    fh_buf_puts(&b, fh_member_true(info, "bundled") ? "The weights of the base model are in it, unchanged but for the encodings that README.md names.\n"
                                         : "Of the base model's weights it holds those of the head, in the encodings that README.md names.\n");
    fh_buf_puts(&b, "The licence of the base model applies to them, with what it asks of derived works.\n\n");
    fh_buf_printf(&b, "Licence of this release, as its publisher states it: %s%s\n", p->license ? p->license : "not stated",
                  p->license_file ? " (LICENSE)" : "");
    return fh_buf_take(&b);
}
