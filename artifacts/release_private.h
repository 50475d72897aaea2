/* What the files about releases share. */
#ifndef FH_RELEASE_PRIVATE_H
#define FH_RELEASE_PRIVATE_H

#include "artifacts/artifacts.h"
#include "artifacts/release.h"

#include <string.h>

#define FH_RELEASE_JSON "release.json"
#define FH_RELEASE_SUMS "SHA256SUMS"
#define FH_RELEASE_SIGNATURE "SHA256SUMS.minisig"
#define FH_RELEASE_RECIPE "recipe.json"
#define FH_RELEASE_CARRIED "recipe.safetensors"
#define FH_RELEASE_EVAL ".eval_results/fhtool.yaml"
#define FH_RELEASE_OCI "oci"
#define FH_REGISTRY_INDEX "index.json"

enum {
    FH_NAME_MOST = 100,            /* bytes of a name or version */
    FH_PATH_MOST = 255,            /* of a file's path in a release */
    FH_INDEX_BYTES = 16 << 20, FH_INDEX_MOST = 65536,
    FH_RELEASE_BYTES = 4 << 20, FH_RELEASE_MOST = 4096
};

/* ---- names --------------------------------------------------------------------------------------------------------- */

/* 1..100 of A-Z a-z 0-9 . _ -, beginning with neither '.' nor '-', and no name the registry itself uses. */
bool fh_release_name_ok(const char *s);
/* A relative path of at most 6 such parts (that may begin with '.', but are not only dots), none of the names a release is described by. */
bool fh_release_path_ok(const char *s);
/* <0, 0, >0: number runs by value, the rest by bytes, a part after '-' (1.0-rc1) before its lack (1.0). */
int fh_version_order(const char *a, const char *b);
static inline bool fh_hex64_ok(const char *s) { return s && strlen(s) == 64 && strspn(s, "0123456789abcdef") == 64; }

/* ---- release.json --------------------------------------------------------------------------------------------------- */

typedef struct fh_release_file { char *path; uint64_t bytes; char sha256[65]; } fh_release_file;
typedef struct fh_release {
    char *name, *version, *artifact; /* artifact: the path of the .fhead */
    char digest[65], fingerprint[65];
    fh_release_file *files; size_t n; /* all but release.json, SHA256SUMS and signatures; by path, ascending */
    fh_json *json;                   /* as it stands */
} fh_release;
/* Parse and judge.  `file` is for messages. */
fh_status fh_release_parse(fh_release *out, const char *text, size_t len, const char *file, fh_err *err);
void fh_release_free(fh_release *r); /* accepts a zeroed one */
const fh_release_file *fh_release_find(const fh_release *r, const char *path); /* NULL: not of it */
/* The one text SHA256SUMS can have; freed by the caller, NULL when out of memory. */
char *fh_release_sums(const fh_release *r, const char release_sha256[65]);
/* What the trusted comment of its signature says. */
char *fh_release_comment(const char *name, const char *version, const char *digest);

/* ---- index.json ------------------------------------------------------------------------------------------------------ */

typedef struct fh_index_entry {
    char *name, *version;
    char digest[65], fingerprint[65]; /* of the artifact; of its base model's head */
    uint64_t bytes;                   /* of all its files */
    uint64_t release_bytes; char release_sha256[65]; /* of release.json */
} fh_index_entry;
typedef struct fh_index { fh_index_entry *entries; size_t n; } fh_index; /* by name, then version, ascending */
fh_status fh_index_parse(fh_index *out, const char *text, size_t len, const char *file, fh_err *err);
void fh_index_free(fh_index *i); /* accepts a zeroed one */
/* NULL version: the newest.  NULL: not there. */
const fh_index_entry *fh_index_find(const fh_index *i, const char *name, const char *version);
/* The index's text with `e` added where it belongs; NULL when out of memory. */
char *fh_index_print_with(const fh_index *i, const fh_index_entry *e);

/* ---- signatures: minisign.c, the one file that sees libsodium -------------------------------------------------------------- */

/* What stands in the three kinds of files, judged in form alone; nothing here is believed yet. */
enum { FH_KEY_ID = 8, FH_KEY_BYTES = 104 /* of what a password hides: id, secret key, checksum */ };
typedef struct fh_signature {
    uint8_t id[FH_KEY_ID], signature[64], over_all[64]; /* over_all: of the signature and the comment */
    bool hashed;                                          /* 'ED': of the file's BLAKE2b-512; else 'Ed': of the file itself */
    char *comment;                                        /* trusted once over_all was checked */
} fh_signature;
typedef struct fh_secret { uint8_t salt[32], hidden[FH_KEY_BYTES]; uint64_t ops, memory; bool encrypted; } fh_secret;
fh_status fh_signature_parse(fh_signature *out, const char *text, size_t len, const char *file, fh_err *err);
void fh_signature_free(fh_signature *s); /* accepts a zeroed one */
fh_status fh_secret_parse(fh_secret *out, const char *text, size_t len, const char *file, fh_err *err);
/* FILE.minisig and its one-line trusted comment. */
fh_status fh_sign_file(const fh_key *k, const char *path, const char *signature, const char *comment, const fh_job *job, fh_err *err);
fh_status fh_pubkey_parse(fh_pubkey **out, const char *text, size_t len, const char *file, fh_err *err);

/* ---- what a release holds ------------------------------------------------------------------------------------------------ */

/* A file of a release before it is written: bytes in memory, or a copy of another file. */
typedef struct fh_content { const char *path; char *data; size_t len; const char *copy_of; char sha256[65]; uint64_t bytes; } fh_content;

/* The model card, the Hub's evaluation results and the notice: every number from `info` (fh_artifact_info) and the header's calibration.  Freed by the
 * caller; NULL when out of memory. */
char *fh_card_text(const fh_publish_params *p, const fh_json *info, const fh_json *header);
char *fh_card_eval(const fh_publish_params *p, const fh_json *header); /* "" where nothing was measured */
char *fh_card_notice(const fh_publish_params *p, const fh_json *info);

/* recipe.json, and recipe.safetensors with what a recipe cannot say in words; both freed by the caller. */
fh_status fh_recipe_text(char **json, char **carried, size_t *carried_bytes, fh_fhead *f, const fh_publish_params *p, const fh_job *job, fh_err *err);

/* The files of an OCI image layout (ModelPack media types) of `files` [n], added to contents [*count] from there on; paths live in the arena. */
fh_status fh_oci_contents(fh_content *contents, size_t *count, size_t most, fh_arena *arena, const fh_publish_params *p, const fh_json *info, fh_err *err);

/* ---- where releases come from ---------------------------------------------------------------------------------------------- */

typedef struct fh_source fh_source;
fh_status fh_source_connect(fh_source **out, const fh_source_params *p, const fh_job *job, fh_err *err);
void fh_source_close(fh_source *s); /* accepts NULL */
const char *fh_source_name(const fh_source *s);
/* A small file, NUL-terminated; more than `limit` bytes is an error.  `path` is relative and judged. */
fh_status fh_source_text(fh_source *s, const char *path, size_t limit, char **text, size_t *len, fh_err *err);
/* A file whose size and digest are known, into `to`, where the first bytes may lie already. */
fh_status fh_source_file(fh_source *s, const char *path, const char *to, const fh_release_file *want, fh_err *err);

/* fetch_http.c, the one file that sees libcurl.  Takes what a server sends, attempt after attempt, each going on where the last one ended. */
typedef struct fh_http fh_http;
typedef struct fh_http_sink {
    /* Bytes at `offset`, which is where the last call ended, or 0: the server begins anew.  A failure ends the transfer. */
    fh_status (*take)(void *ctx, uint64_t offset, const void *data, size_t n, fh_err *err);
    void *ctx;
    uint64_t have, expect, limit;  /* bytes there already; the size it must have (UINT64_MAX: not known); the most it may have */
} fh_http_sink;
fh_status fh_http_new(fh_http **out, const fh_source_params *p, const fh_job *job, fh_err *err);
void fh_http_free(fh_http *h);
fh_status fh_http_get(fh_http *h, const char *url, fh_http_sink *sink, fh_err *err);

#endif
