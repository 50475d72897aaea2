/* artifacts/minisign.c: keys and signatures in the files that the minisign program reads and writes; the one file that sees libsodium.
 *
 *  public key   untrusted comment: TEXT
 *               base64: 'E' 'd' | id 8 | Ed25519 public key 32
 *  secret key   untrusted comment: TEXT
 *               base64: 'E' 'd' | 'S' 'c' or 0 0 | 'B' '2' | salt 32 | ops 8 | memory 8 | id 8, secret key 64, checksum 32
 *               With 'Sc' the last 104 bytes are XORed with scrypt(password, salt, ops, memory); the checksum is the BLAKE2b-256 of
 *               'Ed', id and secret key.
 *  signature    untrusted comment: TEXT
 *               base64: 'E' 'D' (of the file's BLAKE2b-512) or 'E' 'd' (of the file) | id 8 | Ed25519 signature 64
 *               trusted comment: TEXT
 *               base64: Ed25519 signature of the signature above and the trusted comment
 *
 *  Numbers are little-endian.  From minisign's manual, and compared with the program itself (tests/cli/sign.sh).
 */
#include "artifacts/release_private.h"

#include <string.h>

#ifdef FH_HAVE_SODIUM
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PUBLIC_BYTES = 2 + FH_KEY_ID + 32, SECRET_BYTES = 2 + 2 + 2 + 32 + 8 + 8 + FH_KEY_BYTES, SIGNATURE_BYTES = 2 + FH_KEY_ID + 64,
       TEXT_MOST = 16 << 10, COMMENT_MOST = 8 << 10, PIECE = 4 << 20 };
#define UNTRUSTED "untrusted comment: "
#define TRUSTED "trusted comment: "

struct fh_pubkey { uint8_t id[FH_KEY_ID], key[crypto_sign_PUBLICKEYBYTES]; char hex[17]; };
struct fh_key { uint8_t id[FH_KEY_ID], key[crypto_sign_SECRETKEYBYTES]; char hex[17]; };
_Static_assert(crypto_sign_SECRETKEYBYTES == 64 && crypto_sign_PUBLICKEYBYTES == 32 && crypto_sign_BYTES == 64, "Ed25519");

fh_status fh_sign_available(fh_err *err) { return sodium_init() < 0 ? fh_fail(err, FH_EFAIL, "libsodium could not be started") : FH_OK; }

/* As the minisign program names a key: the id as one little-endian number. */
static void id_hex(char out[17], const uint8_t id[FH_KEY_ID])
{
    for (int i = 0; i < FH_KEY_ID; i++) {
        out[2 * i] = "0123456789ABCDEF"[id[FH_KEY_ID - 1 - i] >> 4];
        out[2 * i + 1] = "0123456789ABCDEF"[id[FH_KEY_ID - 1 - i] & 15];
    }
    out[16] = 0;
}

/* ---- lines -------------------------------------------------------------------------------------------------------- */

typedef struct line { const char *s; size_t n; } line;

/* Exactly n lines, each ended ('\r' before the end is dropped; the last may lack its end). */
static fh_status split(line *lines, size_t n, const char *text, size_t len, const char *file, const char *what, fh_err *err)
{
    size_t at = 0;
    if (len > TEXT_MOST || memchr(text, 0, len))
        return fh_fail(err, FH_EFORMAT, "%s: is no %s of minisign's form: %s", file, what, len > TEXT_MOST ? "too long" : "it holds a NUL byte");
    for (size_t i = 0; i < n; i++) {
        const char *end = memchr(text + at, '\n', len - at);
        size_t stop = end ? (size_t)(end - text) : len;
        if (at == len) return fh_fail(err, FH_EFORMAT, "%s: is no %s of minisign's form: it has %zu lines, not %zu: is it the right file?", file, what, i, n);
        lines[i] = (line){text + at, stop - at};
        if (lines[i].n && lines[i].s[lines[i].n - 1] == '\r') lines[i].n--;
        at = end ? stop + 1 : len;
    }
    return at == len ? FH_OK : fh_fail(err, FH_EFORMAT, "%s: is no %s of minisign's form: something follows line %zu", file, what, n);
}

static bool begins(const line *l, const char *with) { return l->n >= strlen(with) && !memcmp(l->s, with, strlen(with)); }

static fh_status decode(uint8_t *out, size_t bytes, const line *l, const char *file, size_t number, fh_err *err)
{
    size_t n = 0;
    if (sodium_base642bin(out, bytes, l->s, l->n, NULL, &n, NULL, sodium_base64_VARIANT_ORIGINAL) || n != bytes)
        return fh_fail(err, FH_EFORMAT, "%s: line %zu is not the base64 of %zu bytes: is it the right file?", file, number, bytes);
    return FH_OK;
}

static fh_status untrusted(const line *l, const char *file, fh_err *err)
{
    if (begins(l, UNTRUSTED)) return FH_OK;
    return fh_fail(err, FH_EFORMAT, "%s: line 1 does not begin with '" UNTRUSTED "': is it a file of fhtool or minisign?", file);
}

static uint64_t le64(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

/* ---- parsing --------------------------------------------------------------------------------------------------------- */

fh_status fh_pubkey_parse(fh_pubkey **out, const char *text, size_t len, const char *file, fh_err *err)
{
    line l[2];
    uint8_t raw[PUBLIC_BYTES];
    fh_status rc = fh_sign_available(err);
    *out = NULL;
    if (rc < 0 || (rc = split(l, 2, text, len, file, "public key", err)) < 0 || (rc = untrusted(&l[0], file, err)) < 0 ||
        (rc = decode(raw, sizeof raw, &l[1], file, 2, err)) < 0) return rc;
    if (raw[0] != 'E' || raw[1] != 'd') return fh_fail(err, FH_EUNSUPPORTED, "%s: is no Ed25519 public key", file);
    fh_pubkey *k = fh_calloc(1, sizeof *k);
    if (!k) return fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
    memcpy(k->id, raw + 2, FH_KEY_ID);
    memcpy(k->key, raw + 2 + FH_KEY_ID, sizeof k->key);
    id_hex(k->hex, k->id);
    *out = k;
    return FH_OK;
}

fh_status fh_secret_parse(fh_secret *out, const char *text, size_t len, const char *file, fh_err *err)
{
    line l[2];
    uint8_t raw[SECRET_BYTES];
    fh_status rc = fh_sign_available(err);
    if (rc < 0 || (rc = split(l, 2, text, len, file, "secret key", err)) < 0 || (rc = untrusted(&l[0], file, err)) < 0 ||
        (rc = decode(raw, sizeof raw, &l[1], file, 2, err)) < 0) goto out;
    bool scrypt = raw[2] == 'S' && raw[3] == 'c', plain = !raw[2] && !raw[3];
    if (raw[0] != 'E' || raw[1] != 'd' || raw[4] != 'B' || raw[5] != '2' || (!scrypt && !plain)) {
        rc = fh_fail(err, FH_EUNSUPPORTED, "%s: is no Ed25519 secret key, or one hidden in a way that is not known here", file);
        goto out;
    }
    *out = (fh_secret){.ops = le64(raw + 38), .memory = le64(raw + 46), .encrypted = scrypt};
    memcpy(out->salt, raw + 6, sizeof out->salt);
    memcpy(out->hidden, raw + 54, sizeof out->hidden);
    /* What the file asks for is spent before anything in it can be believed. */
    if (scrypt && (out->memory > crypto_pwhash_scryptsalsa208sha256_MEMLIMIT_SENSITIVE || out->ops > crypto_pwhash_scryptsalsa208sha256_OPSLIMIT_SENSITIVE))
        rc = fh_fail(err, FH_EFORMAT, "%s: asks for %llu bytes and %llu steps to try a password; minisign takes at most %u and %u", file,
                     (unsigned long long)out->memory, (unsigned long long)out->ops, crypto_pwhash_scryptsalsa208sha256_MEMLIMIT_SENSITIVE,
                     crypto_pwhash_scryptsalsa208sha256_OPSLIMIT_SENSITIVE);
out:
    sodium_memzero(raw, sizeof raw);
    return rc;
}

fh_status fh_signature_parse(fh_signature *out, const char *text, size_t len, const char *file, fh_err *err)
{
    line l[4];
    uint8_t raw[SIGNATURE_BYTES];
    fh_signature s = {.comment = NULL};
    *out = s;
    fh_status rc = fh_sign_available(err);
    if (rc < 0 || (rc = split(l, 4, text, len, file, "signature", err)) < 0 || (rc = untrusted(&l[0], file, err)) < 0 ||
        (rc = decode(raw, sizeof raw, &l[1], file, 2, err)) < 0) return rc;
    if (raw[0] != 'E' || (raw[1] != 'D' && raw[1] != 'd')) return fh_fail(err, FH_EUNSUPPORTED, "%s: is no Ed25519 signature", file);
    size_t skip = strlen(TRUSTED);
    if (!begins(&l[2], TRUSTED) || l[2].n - skip > COMMENT_MOST)
        return fh_fail(err, FH_EFORMAT, "%s: line 3 is not '" TRUSTED "' and at most %d bytes", file, COMMENT_MOST);
    if ((rc = decode(s.over_all, sizeof s.over_all, &l[3], file, 4, err)) < 0) return rc;
    s.hashed = raw[1] == 'D';
    memcpy(s.id, raw + 2, FH_KEY_ID);
    memcpy(s.signature, raw + 2 + FH_KEY_ID, sizeof s.signature);
    if (!(s.comment = fh_strndup(l[2].s + skip, l[2].n - skip))) return fh_fail(err, FH_ENOMEM, "%s: out of memory", file);
    *out = s;
    return FH_OK;
}

void fh_signature_free(fh_signature *s)
{
    fh_free(s->comment);
    *s = (fh_signature){.comment = NULL};
}

/* ---- keys ------------------------------------------------------------------------------------------------------------- */

static void checksum(uint8_t out[32], const uint8_t id[FH_KEY_ID], const uint8_t key[64])
{
    crypto_generichash_state s;
    crypto_generichash_init(&s, NULL, 0, 32);
    crypto_generichash_update(&s, (const uint8_t *)"Ed", 2);
    crypto_generichash_update(&s, id, FH_KEY_ID);
    crypto_generichash_update(&s, key, 64);
    crypto_generichash_final(&s, out, 32);
}

/* XOR with what the password gives: hides and shows. */
static fh_status hide(uint8_t hidden[FH_KEY_BYTES], const char *password, const uint8_t salt[32], uint64_t ops, uint64_t memory, const char *file, fh_err *err)
{
    uint8_t stream[FH_KEY_BYTES];
    if (crypto_pwhash_scryptsalsa208sha256(stream, sizeof stream, password, strlen(password), salt, ops, (size_t)memory))
        return fh_fail(err, FH_ENOMEM, "%s: out of memory: its password is slow to try on purpose, and takes %llu MiB", file, (unsigned long long)memory >> 20);
    for (size_t i = 0; i < sizeof stream; i++) hidden[i] ^= stream[i];
    sodium_memzero(stream, sizeof stream);
    return FH_OK;
}

static fh_status write_text(const char *path, unsigned flags, const char *comment, const uint8_t *raw, size_t bytes, fh_err *err)
{
    char base64[2 * SECRET_BYTES];
    char *text = fh_sprintf(UNTRUSTED "%s\n%s\n", comment, sodium_bin2base64(base64, sizeof base64, raw, bytes, sodium_base64_VARIANT_ORIGINAL));
    fh_status rc = text ? fh_file_write(path, text, strlen(text), flags, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
    if (text) sodium_memzero(text, strlen(text));
    sodium_memzero(base64, sizeof base64);
    fh_free(text);
    return rc;
}

fh_status fh_key_make(const char *secret, const char *pub, const char *password, int cost, char id[17], fh_err *err)
{
    uint8_t raw[SECRET_BYTES] = {'E', 'd', 0, 0, 'B', '2'}, open[PUBLIC_BYTES] = {'E', 'd'};
    uint8_t *hidden = raw + SECRET_BYTES - FH_KEY_BYTES;
    char comment[64] = "minisign public key ";
    bool sensitive = cost == FH_KEY_COST_SENSITIVE;
    uint64_t ops = sensitive ? crypto_pwhash_scryptsalsa208sha256_OPSLIMIT_SENSITIVE : crypto_pwhash_scryptsalsa208sha256_OPSLIMIT_INTERACTIVE;
    uint64_t memory = sensitive ? crypto_pwhash_scryptsalsa208sha256_MEMLIMIT_SENSITIVE : crypto_pwhash_scryptsalsa208sha256_MEMLIMIT_INTERACTIVE;
    fh_status rc = fh_sign_available(err);
    if (rc < 0) return rc;
    const char *taken = fh_file_exists(secret) ? secret : fh_file_exists(pub) ? pub : NULL;
    if (taken) return fh_fail(err, FH_EFAIL, "%s: is there already, and a key is never replaced: choose another name", taken);
    randombytes_buf(hidden, FH_KEY_ID);
    crypto_sign_keypair(open + 2 + FH_KEY_ID, hidden + FH_KEY_ID);
    checksum(hidden + FH_KEY_ID + 64, hidden, hidden + FH_KEY_ID);
    memcpy(open + 2, hidden, FH_KEY_ID);
    id_hex(id, hidden);
    strcat(comment, id);
    if (password) {
        raw[2] = 'S', raw[3] = 'c';
        randombytes_buf(raw + 6, 32);
        for (int i = 0; i < 8; i++) raw[38 + i] = (uint8_t)(ops >> 8 * i), raw[46 + i] = (uint8_t)(memory >> 8 * i);
        if ((rc = hide(hidden, password, raw + 6, ops, memory, secret, err)) < 0) goto out;
    }
    if ((rc = write_text(secret, FH_NO_CLOBBER | FH_PRIVATE, password ? "fhtool encrypted secret key" : "fhtool secret key", raw, sizeof raw, err)) < 0)
        goto out;
    if ((rc = write_text(pub, FH_NO_CLOBBER, comment, open, sizeof open, err)) < 0) unlink(secret); /* half a pair is of no use */
out:
    sodium_memzero(raw, sizeof raw);
    return rc;
}

static fh_status read_secret(fh_secret *out, const char *path, const fh_job *job, fh_err *err)
{
    char *text = NULL;
    size_t len = 0;
    struct stat st;
    fh_status rc = fh_file_read(&text, &len, path, TEXT_MOST, err);
    if (rc < 0) return rc;
    if (!stat(path, &st) && S_ISREG(st.st_mode) && st.st_mode & 077)
        fh_job_say(job, FH_WARN, "%s: others than its owner can read this secret key (mode %03o): chmod 600", path, (unsigned)st.st_mode & 0777);
    rc = fh_secret_parse(out, text, len, path, err);
    sodium_memzero(text, len);
    fh_free(text);
    return rc;
}

fh_status fh_key_look(const char *path, bool *encrypted, const fh_job *job, fh_err *err)
{
    fh_secret s;
    fh_status rc = read_secret(&s, path, job, err);
    if (rc == FH_OK) *encrypted = s.encrypted;
    sodium_memzero(&s, sizeof s);
    return rc;
}

/* A secret key is its seed and, after it, the public key that follows from it: one that does not would sign what nobody can check. */
static bool halves_agree(const uint8_t key[64])
{
    uint8_t pub[crypto_sign_PUBLICKEYBYTES], again[crypto_sign_SECRETKEYBYTES];
    crypto_sign_seed_keypair(pub, again, key);
    bool agree = !sodium_memcmp(again, key, sizeof again);
    sodium_memzero(again, sizeof again);
    return agree;
}

fh_status fh_key_open(fh_key **out, const char *path, const char *password, const fh_job *job, fh_err *err)
{
    fh_secret s;
    uint8_t sum[32];
    fh_key *k = NULL;
    *out = NULL;
    fh_status rc = read_secret(&s, path, job, err);
    if (rc < 0) goto out;
    if (s.encrypted && !password) { rc = fh_fail(err, FH_EUSAGE, "%s: this key is encrypted: its password is needed", path); goto out; }
    if (s.encrypted && (rc = hide(s.hidden, password, s.salt, s.ops, s.memory, path, err)) < 0) goto out;
    checksum(sum, s.hidden, s.hidden + FH_KEY_ID);
    bool blank = !s.encrypted && sodium_is_zero(s.hidden + FH_KEY_ID + 64, sizeof sum); /* minisign -W leaves it out */
    if (!halves_agree(s.hidden + FH_KEY_ID) || (!blank && sodium_memcmp(sum, s.hidden + FH_KEY_ID + 64, sizeof sum))) {
        rc = s.encrypted ? fh_fail(err, FH_ECHECK, "%s: this is not its password, or the file is damaged", path)
                         : fh_fail(err, FH_EFORMAT, "%s: its checksum is wrong: the file is damaged", path);
        goto out;
    }
    if (!(k = fh_calloc(1, sizeof *k))) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path); goto out; }
    memcpy(k->id, s.hidden, FH_KEY_ID);
    memcpy(k->key, s.hidden + FH_KEY_ID, sizeof k->key);
    id_hex(k->hex, k->id);
    *out = k;
out:
    sodium_memzero(&s, sizeof s);
    return rc;
}

void fh_key_close(fh_key *k)
{
    if (k) sodium_memzero(k, sizeof *k);
    fh_free(k);
}

const char *fh_key_id(const fh_key *k) { return k->hex; }

fh_status fh_pubkey_open(fh_pubkey **out, const char *path_or_text, fh_err *err)
{
    char *text = NULL;
    size_t len = 0, n = strlen(path_or_text);
    *out = NULL;
    /* 42 bytes are 56 characters of base64, and no path has that form and is there. */
    bool itself = n == 56 && strspn(path_or_text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") == n && !fh_file_exists(path_or_text);
    if (itself) {
        if (!(text = fh_sprintf(UNTRUSTED "-\n%s\n", path_or_text))) return fh_fail(err, FH_ENOMEM, "out of memory");
        len = strlen(text);
    }
    fh_status rc = itself ? FH_OK : fh_file_read(&text, &len, path_or_text, TEXT_MOST, err);
    if (rc == FH_OK) rc = fh_pubkey_parse(out, text, len, itself ? "--pubkey" : path_or_text, err);
    fh_free(text);
    return rc;
}

void fh_pubkey_close(fh_pubkey *k) { fh_free(k); }
const char *fh_pubkey_id(const fh_pubkey *k) { return k->hex; }

/* ---- signing and checking ------------------------------------------------------------------------------------------------ */

static fh_status hash_file(uint8_t out[64], const fh_map *map, const fh_job *job, fh_err *err)
{
    crypto_generichash_state s;
    crypto_generichash_init(&s, NULL, 0, 64);
    for (size_t at = 0; at < map->size; at += PIECE) {
        if (fh_job_stopped(job)) return fh_fail(err, FH_EINTERRUPTED, "%s: interrupted", map->path);
        crypto_generichash_update(&s, map->data + at, fh_min(PIECE, map->size - at));
    }
    crypto_generichash_final(&s, out, 64);
    return FH_OK;
}

/* What the comment's signature is of; freed by the caller. */
static uint8_t *signed_comment(const uint8_t signature[64], const char *comment, size_t *n)
{
    *n = 64 + strlen(comment);
    uint8_t *all = fh_malloc(*n);
    if (!all) return NULL;
    memcpy(all, signature, 64);
    memcpy(all + 64, comment, *n - 64);
    return all;
}

fh_status fh_sign_file(const fh_key *k, const char *path, const char *signature, const char *comment, const fh_job *job, fh_err *err)
{
    fh_map map = {0};
    uint8_t hash[64], raw[SIGNATURE_BYTES] = {'E', 'D'}, over_all[64], *all = NULL;
    char first[2 * SIGNATURE_BYTES], second[2 * SIGNATURE_BYTES], *text = NULL;
    size_t n;
    if (strlen(comment) > COMMENT_MOST || strpbrk(comment, "\r\n")) return fh_fail(err, FH_EUSAGE, "--comment: one line of at most %d bytes", COMMENT_MOST);
    fh_status rc = fh_map_open(&map, path, err);
    if (rc < 0 || (rc = hash_file(hash, &map, job, err)) < 0) goto out;
    memcpy(raw + 2, k->id, FH_KEY_ID);
    crypto_sign_detached(raw + 2 + FH_KEY_ID, NULL, hash, sizeof hash, k->key);
    if (!(all = signed_comment(raw + 2 + FH_KEY_ID, comment, &n))) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path); goto out; }
    crypto_sign_detached(over_all, NULL, all, n, k->key);
    sodium_bin2base64(first, sizeof first, raw, sizeof raw, sodium_base64_VARIANT_ORIGINAL);
    sodium_bin2base64(second, sizeof second, over_all, sizeof over_all, sodium_base64_VARIANT_ORIGINAL);
    text = fh_sprintf(UNTRUSTED "signature of fhtool, key %s\n%s\n" TRUSTED "%s\n%s\n", k->hex, first, comment, second);
    rc = text ? fh_file_write(signature, text, strlen(text), 0, err) : fh_fail(err, FH_ENOMEM, "%s: out of memory", path);
out:
    fh_free(all);
    fh_free(text);
    fh_map_close(&map);
    return rc;
}

fh_status fh_sign_check(const fh_pubkey *k, const char *path, const char *signature, char **comment, const fh_job *job, fh_err *err)
{
    fh_map map = {0};
    fh_signature s = {.comment = NULL};
    uint8_t hash[64] = {0}, *all = NULL;
    char *text = NULL, hex[17];
    size_t len = 0, n;
    *comment = NULL;
    fh_status rc = fh_file_read(&text, &len, signature, TEXT_MOST, err);
    if (rc < 0 || (rc = fh_signature_parse(&s, text, len, signature, err)) < 0 || (rc = fh_map_open(&map, path, err)) < 0) goto out;
    id_hex(hex, s.id);
    if (memcmp(s.id, k->id, FH_KEY_ID)) {
        rc = fh_fail(err, FH_ECHECK, "%s: is by the key %s, not by %s: it proves nothing here", signature, hex, k->hex);
        goto out;
    }
    if (s.hashed && (rc = hash_file(hash, &map, job, err)) < 0) goto out;
    if (crypto_sign_verify_detached(s.signature, s.hashed ? hash : map.data ? map.data : hash, s.hashed ? sizeof hash : map.size, k->key)) {
        rc = fh_fail(err, FH_ECHECK, "%s: is not the signature of %s by the key %s: one of them was altered", signature, path, k->hex);
        goto out;
    }
    if (!(all = signed_comment(s.signature, s.comment, &n))) { rc = fh_fail(err, FH_ENOMEM, "%s: out of memory", path); goto out; }
    if (crypto_sign_verify_detached(s.over_all, all, n, k->key)) {
        rc = fh_fail(err, FH_ECHECK, "%s: its trusted comment was altered ('%.200s')", signature, s.comment);
        goto out;
    }
    *comment = s.comment, s.comment = NULL;
out:
    fh_signature_free(&s);
    fh_free(all);
    fh_free(text);
    fh_map_close(&map);
    return rc;
}

#else

fh_status fh_sign_available(fh_err *err)
{
    return fh_fail(err, FH_EUNSUPPORTED,
                   "this fhtool was built without libsodium: nothing can be signed and no signature checked (install libsodium-dev and build again)");
}
fh_status fh_key_make(const char *secret, const char *pub, const char *password, int cost, char id[17], fh_err *err) { return fh_sign_available(err); }
fh_status fh_key_look(const char *path, bool *encrypted, const fh_job *job, fh_err *err) { return fh_sign_available(err); }
fh_status fh_key_open(fh_key **out, const char *path, const char *password, const fh_job *job, fh_err *err) { *out = NULL; return fh_sign_available(err); }
void fh_key_close(fh_key *k) { (void)k; }
const char *fh_key_id(const fh_key *k) { return ""; }
fh_status fh_pubkey_open(fh_pubkey **out, const char *path_or_text, fh_err *err) { *out = NULL; return fh_sign_available(err); }
void fh_pubkey_close(fh_pubkey *k) { (void)k; }
const char *fh_pubkey_id(const fh_pubkey *k) { return ""; }
fh_status fh_signature_parse(fh_signature *out, const char *text, size_t len, const char *file, fh_err *err)
{
    *out = (fh_signature){.comment = NULL};
    return fh_sign_available(err);
}
void fh_signature_free(fh_signature *s) { (void)s; }
fh_status fh_secret_parse(fh_secret *out, const char *text, size_t len, const char *file, fh_err *err) { return fh_sign_available(err); }
fh_status fh_pubkey_parse(fh_pubkey **out, const char *text, size_t len, const char *file, fh_err *err) { *out = NULL; return fh_sign_available(err); }
fh_status fh_sign_file(const fh_key *k, const char *path, const char *signature, const char *comment, const fh_job *job, fh_err *err)
{
    return fh_sign_available(err);
}
fh_status fh_sign_check(const fh_pubkey *k, const char *path, const char *signature, char **comment, const fh_job *job, fh_err *err)
{
    *comment = NULL;
    return fh_sign_available(err);
}

#endif
