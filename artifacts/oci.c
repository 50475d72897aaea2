/* artifacts/oci.c: a release as an OCI image layout with the media types of CNCF ModelPack, for registries of containers.
 *
 * One layer a file, as it is (raw, no archive), each with its path in an annotation; the blobs are the release's own files.
 */
#include "artifacts/release_private.h"

#include <stdio.h>

#define BLOBS FH_RELEASE_OCI "/blobs/sha256/"

typedef struct builder { fh_content *to; size_t *count, most; fh_arena *arena; } builder;

static fh_status no_memory(fh_err *err) { return fh_fail(err, FH_ENOMEM, "out of memory for the OCI layout"); }

static const char *in_arena(fh_arena *arena, const char *a, const char *b)
{
    char *s = fh_arena_alloc(arena, strlen(a) + strlen(b) + 1);
    if (s) strcat(strcpy(s, a), b);
    return s;
}

/* A text of the layout; takes `text` over. */
static fh_status add_text(builder *b, const char *path, char *text, fh_err *err)
{
    uint8_t digest[32];
    fh_content *c = &b->to[*b->count];
    if (!text || !path || *b->count == b->most) { fh_free(text); return no_memory(err); }
    *c = (fh_content){.path = path, .data = text, .len = strlen(text), .bytes = strlen(text)};
    fh_sha256_of(digest, text, c->len);
    fh_sha256_hex(c->sha256, digest);
    ++*b->count;
    return FH_OK;
}

/* A text that is a blob; *out is it. */
static fh_status add_blob(builder *b, char *text, const fh_content **out, fh_err *err)
{
    fh_status rc = add_text(b, "", text, err);
    if (rc < 0) return rc;
    fh_content *c = &b->to[*b->count - 1];
    *out = c;
    return (c->path = in_arena(b->arena, BLOBS, c->sha256)) ? FH_OK : no_memory(err);
}

static const char *layer_type(const char *path)
{
    size_t n = strlen(path);
    if (n > 6 && !strcmp(path + n - 6, ".fhead")) return "application/vnd.cncf.model.weight.v1.raw";
    if (!strcmp(path, FH_RELEASE_RECIPE) || !strcmp(path, FH_RELEASE_CARRIED)) return "application/vnd.cncf.model.weight.config.v1.raw";
    return "application/vnd.cncf.model.doc.v1.raw";
}

static void describe(fh_json *j, const char *type, const char *sha256, uint64_t bytes)
{
    char digest[80];
    snprintf(digest, sizeof digest, "sha256:%s", sha256);
    fh_json_add_string(j, "mediaType", type);
    fh_json_add_string(j, "digest", digest);
    fh_json_add_u64(j, "size", bytes);
}

static char *printed(fh_json *j)
{
    char *text = j ? fh_json_print(j, false) : NULL;
    fh_json_free(j);
    return text;
}

static char *config_text(const builder *b, size_t layers, const fh_publish_params *p, const fh_json *info)
{
    fh_json *j = fh_json_object(), *d = fh_json_add_object(j, "descriptor"), *c, *fs, *list;
    const char *type = fh_json_string(fh_json_get(info, "model_type")), *tokens = fh_json_string(fh_json_get(info, "tokens"));
    fh_json_add_string(d, "name", p->name);
    fh_json_add_string(d, "version", p->version);
    if (type) fh_json_add_string(d, "family", type);
    if (p->license) fh_json_add_string(fh_json_add_array(d, "licenses"), NULL, p->license);
    fs = fh_json_add_object(j, "modelfs");
    fh_json_add_string(fs, "type", "layers");
    list = fh_json_add_array(fs, "diffIds");
    for (size_t i = 0; i < layers; i++) {
        char digest[80];
        snprintf(digest, sizeof digest, "sha256:%s", b->to[i].sha256);
        fh_json_add_string(list, NULL, digest);
    }
    c = fh_json_add_object(j, "config");
    fh_json_add_string(c, "architecture", "transformer");
    fh_json_add_string(c, "format", "fhead");
    if (tokens) fh_json_add_string(c, "precision", tokens);
    return printed(j);
}

static char *manifest_text(const builder *b, size_t layers, const fh_content *config, const fh_publish_params *p)
{
    fh_json *j = fh_json_object(), *list, *notes;
    fh_json_add_u64(j, "schemaVersion", 2);
    fh_json_add_string(j, "mediaType", "application/vnd.oci.image.manifest.v1+json");
    fh_json_add_string(j, "artifactType", "application/vnd.cncf.model.manifest.v1+json");
    describe(fh_json_add_object(j, "config"), "application/vnd.cncf.model.config.v1+json", config->sha256, config->bytes);
    list = fh_json_add_array(j, "layers");
    for (size_t i = 0; i < layers; i++) {
        fh_json *layer = fh_json_add_object(list, NULL);
        describe(layer, layer_type(b->to[i].path), b->to[i].sha256, b->to[i].bytes);
        fh_json_add_string(fh_json_add_object(layer, "annotations"), "org.cncf.model.filepath", b->to[i].path);
    }
    notes = fh_json_add_object(j, "annotations");
    fh_json_add_string(notes, "org.opencontainers.image.title", p->name);
    fh_json_add_string(notes, "org.opencontainers.image.version", p->version);
    if (p->license) fh_json_add_string(notes, "org.opencontainers.image.licenses", p->license);
    return printed(j);
}

static char *index_text(const fh_content *manifest, const fh_publish_params *p)
{
    fh_json *j = fh_json_object(), *m;
    fh_json_add_u64(j, "schemaVersion", 2);
    fh_json_add_string(j, "mediaType", "application/vnd.oci.image.index.v1+json");
    m = fh_json_add_object(fh_json_add_array(j, "manifests"), NULL);
    describe(m, "application/vnd.oci.image.manifest.v1+json", manifest->sha256, manifest->bytes);
    fh_json_add_string(fh_json_add_object(m, "annotations"), "org.opencontainers.image.ref.name", p->version);
    return printed(j);
}

fh_status fh_oci_contents(fh_content *contents, size_t *count, size_t most, fh_arena *arena, const fh_publish_params *p, const fh_json *info, fh_err *err)
{
    builder b = {contents, count, most, arena};
    size_t layers = *count;
    const fh_content *config, *manifest;
    fh_status rc;
    for (size_t i = 0; i < layers; i++) {
        bool twice = false;
        for (size_t k = 0; k < i; k++) twice |= !strcmp(contents[k].sha256, contents[i].sha256);
        if (twice) continue;
        if (*count == most) return no_memory(err);
        fh_content *blob = &contents[*count];
        *blob = contents[i]; /* the same bytes: written as a link to the file */
        blob->data = NULL, blob->len = 0, blob->copy_of = contents[i].path;
        if (!(blob->path = in_arena(arena, BLOBS, contents[i].sha256))) return no_memory(err);
        ++*count;
    }
    if ((rc = add_blob(&b, config_text(&b, layers, p, info), &config, err)) < 0 ||
        (rc = add_blob(&b, manifest_text(&b, layers, config, p), &manifest, err)) < 0 ||
        (rc = add_text(&b, FH_RELEASE_OCI "/index.json", index_text(manifest, p), err)) < 0)
        return rc;
    return add_text(&b, FH_RELEASE_OCI "/oci-layout", fh_strdup("{\"imageLayoutVersion\":\"1.0.0\"}"), err);
}
