/* artifacts/release.h: artifacts for other people: releases, registries, signatures, recipes (docs/releases.md).
 *
 * A registry is a directory, on a share or behind a web server: index.json and NAME/VERSION/ for each release.  A release is
 * the artifact with its card, its recipe, SHA256SUMS and release.json, which says what belongs to it.  What is read from either
 * is foreign: it is judged before it is used.
 */
#ifndef FH_RELEASE_H
#define FH_RELEASE_H

#include "format/format.h"

/* ---- publish ------------------------------------------------------------------------------------------------- */

typedef struct fh_publish_params {
    const char *artifact, *registry, *name, *version;
    const char *base_model;        /* Hub id or name of the model the head is of; NULL: not said */
    const char *license;           /* SPDX or Hub id; NULL: "other" */
    const char *license_file;      /* its text; NULL: none goes along */
    const char *eval_dataset;      /* Hub id of the text the promise was measured on; NULL: the text's name */
    const struct fh_key *key;      /* signs the release; NULL: unsigned */
    bool oci, dry_run;
} fh_publish_params;
/* REGISTRY/NAME/VERSION, whole or not at all, then the registry's index.  A version that is there is never overwritten; one that a killed run
 * did not get to list, and that holds the same bytes, is listed.  *report: {"name", "version", "dir", "digest", "files": [{"file", "bytes",
 * "digest"}], "written", "signed"}.  dry_run: nothing is written. */
fh_status fh_publish(const fh_publish_params *p, const fh_job *job, fh_json **report, fh_err *err);

/* ---- list, fetch, verify ---------------------------------------------------------------------------------------- */

typedef struct fh_source_params {
    const char *registry;          /* a directory, file://, https://, or http:// on this machine */
    unsigned timeout;              /* seconds without a byte until a server counts as stalled; 0: 30 */
    bool plain_http;               /* http:// of other machines too */
} fh_source_params;
/* {"registry", "releases": [{"name", "version", "bytes", "digest", "fingerprint"}]} */
fh_status fh_registry_list(const fh_source_params *from, const fh_job *job, fh_json **report, fh_err *err);

typedef struct fh_fetch_params {
    fh_source_params from;
    const char *what;              /* NAME or NAME@VERSION; without a version the newest */
    const char *output;            /* the directory to make; NULL: NAME-VERSION */
    const struct fh_pubkey *key;   /* NULL: integrity, not authenticity */
} fh_fetch_params;
/* The release as a directory of its own, whole or not at all: it grows in ".OUTPUT.part" beside it, where an interrupted run goes on.  Digests are
 * checked as bytes come.  One that is there already is checked instead. */
fh_status fh_fetch(const fh_fetch_params *p, const fh_job *job, fh_json **report, fh_err *err);

/* Is this directory a release? */
bool fh_is_release(const char *path);
/* Every byte of a release: files missing, extra, renamed and altered are listed in *report's "problems" [{"problem", "file", "detail"}], and the first
 * is the message (FH_ECHECK).  With a key, the signature and what it binds: name, version and artifact. */
fh_status fh_release_verify(const char *dir, const struct fh_pubkey *key, const fh_job *job, fh_json **report, fh_err *err);

/* What there is to say where no key was given. */
void fh_release_say_unsigned(const char *what, const fh_job *job);

/* ---- signatures: Ed25519 in minisign's files (docs/releases.md) ----------------------------------------------------- */

typedef struct fh_key fh_key;
typedef struct fh_pubkey fh_pubkey;
enum { FH_KEY_COST_INTERACTIVE, FH_KEY_COST_SENSITIVE }; /* scrypt: 16 MiB, or 1 GiB as minisign takes it */
/* Is this build able to?  FH_EUNSUPPORTED says what is lost without libsodium. */
fh_status fh_sign_available(fh_err *err);
/* A new pair: `secret` with mode 0600, encrypted where there is a password; neither file is ever replaced. */
fh_status fh_key_make(const char *secret, const char *pub, const char *password, int cost, char id[17], fh_err *err);
/* *encrypted: a password is needed. */
fh_status fh_key_look(const char *path, bool *encrypted, const fh_job *job, fh_err *err);
fh_status fh_key_open(fh_key **out, const char *path, const char *password, const fh_job *job, fh_err *err);
void fh_key_close(fh_key *k);                          /* wipes it; accepts NULL */
const char *fh_key_id(const fh_key *k);                /* 16 hex digits */
/* A file of minisign's, or the base64 of its second line itself. */
fh_status fh_pubkey_open(fh_pubkey **out, const char *path_or_text, fh_err *err);
void fh_pubkey_close(fh_pubkey *k);
const char *fh_pubkey_id(const fh_pubkey *k);
/* Sign a file, an artifact or a release directory (its SHA256SUMS).  comment NULL: one that binds what is signed.  *report: {"file", "signature", "key",
 * "comment"}. */
fh_status fh_sign(const fh_key *k, const char *path, const char *comment, const fh_job *job, fh_json **report, fh_err *err);
/* FILE.minisig belongs to FILE and to this key; *comment (freed by the caller) is the trusted one.  FH_ECHECK where it does not. */
fh_status fh_sign_check(const fh_pubkey *k, const char *path, const char *signature, char **comment, const fh_job *job, fh_err *err);

/* ---- recipes ------------------------------------------------------------------------------------------------------- */

typedef struct fh_rebuild_params {
    const char *recipe, *model, *output, *work; /* recipe: the file, or the release's directory; work: a work directory of its own */
    bool from_text;                 /* all stages again, clustering and states too: the same bytes on one CPU type and library versions */
    const char *const *texts; size_t n_texts;
    bool no_clobber;
} fh_rebuild_params;
/* Make the artifact again and compare: {"digest", "expected", "same", ...}.  FH_ECHECK: another base model, or other bytes. */
fh_status fh_rebuild(const fh_rebuild_params *p, const fh_job *job, fh_json **report, fh_err *err);

/* ---- diff ---------------------------------------------------------------------------------------------------------- */

/* What moved between two artifacts (or releases), as meaning; `top`: how many of the worst-affected tokens are listed.  states (NULL: none): a file of states of
 * their model, on which both are measured against the dense head (FH_ECHECK: different models, or no exact rows). */
fh_status fh_artifact_diff(const char *a, const char *b, const char *states, size_t top, const fh_job *job, fh_json **report, fh_err *err);

#endif
