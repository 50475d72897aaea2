/* Keys and signatures: what the minisign program wrote, what was altered in any byte, keys that ask for too much, every failing step. */
#include "tests/unit/fhead_files.h"

#include "artifacts/release_private.h"

#ifdef FH_HAVE_SODIUM
#define GOLDEN "tests/golden/minisign/"

static fh_pubkey *pubkey(const char *path)
{
    fh_pubkey *k;
    fh_err err = {FH_OK, ""};
    if (fh_pubkey_open(&k, path, &err) < 0) fail_msg("%s", err.text);
    return k;
}

static void what_minisign_signed_is_believed(void **state)
{
    static const struct {
        const char *file, *comment;
    } signatures[] = {{GOLDEN "hashed.minisig", "hashed, by minisign"}, {GOLDEN "legacy.minisig", "as it is, by minisign"}};
    fh_pubkey *k = pubkey(GOLDEN "key.pub");
    for (size_t i = 0; i < sizeof signatures / sizeof *signatures; i++) {
        char *comment;
        fh_err err = {FH_OK, ""};
        if (fh_sign_check(k, GOLDEN "text.txt", signatures[i].file, &comment, NULL, &err) < 0) fail_msg("%s", err.text);
        assert_string_equal(comment, signatures[i].comment);
        fh_free(comment);
        assert_int_equal(fh_sign_check(k, GOLDEN "key.pub", signatures[i].file, &comment, NULL, &err), FH_ECHECK);
        assert_null(comment);
    }
    fh_pubkey_close(k);
}

/* Sign text.txt with the key that minisign made: in place("s.minisig"). */
static fh_status sign_text(const char *comment, fh_err *err)
{
    fh_key *k = NULL;
    fh_status rc = fh_key_open(&k, GOLDEN "key", NULL, NULL, err);
    if (rc == FH_OK) rc = fh_sign_file(k, GOLDEN "text.txt", place("s.minisig"), comment, NULL, err);
    fh_key_close(k);
    return rc;
}

static void signing_twice_gives_the_same_bytes_and_the_key_of_minisign_works(void **state)
{
    fh_err err = {FH_OK, ""};
    fh_pubkey *k = pubkey(GOLDEN "key.pub");
    size_t n, m;
    char *comment;
    if (sign_text("bound", &err) < 0) fail_msg("%s", err.text);
    char *first = load(place("s.minisig"), &n);
    assert_int_equal(sign_text("bound", &err), FH_OK);
    char *second = load(place("s.minisig"), &m);
    assert_true(n == m && !memcmp(first, second, n));
    assert_int_equal(fh_sign_check(k, GOLDEN "text.txt", place("s.minisig"), &comment, NULL, &err), FH_OK);
    assert_string_equal(comment, "bound");
    fh_free(comment);
    fh_free(first);
    fh_free(second);
    fh_pubkey_close(k);
}

/* The first line is not signed, in minisign neither, and nothing reads it. */
static void any_altered_byte_of_a_signature_is_found(void **state)
{
    fh_err err = {FH_OK, ""};
    fh_pubkey *k = pubkey(GOLDEN "key.pub");
    size_t size;
    char *comment;
    assert_int_equal(sign_text("fhtool release n 1.0 0123", &err), FH_OK);
    char *text = load(place("s.minisig"), &size);
    size_t from = 0;
    while (text[from++] != '\n') {}
    for (size_t i = from; i < size - 1; i++) { /* the last line may lack its end */
        for (int bit = 0; bit < 8; bit++) {
            text[i] ^= (char)(1 << bit);
            assert_int_equal(fh_file_write(place("s.minisig"), text, size, 0, &err), FH_OK);
            if (fh_sign_check(k, GOLDEN "text.txt", place("s.minisig"), &comment, NULL, &err) >= 0) fail_msg("byte %zu, bit %d: not found", i, bit);
            text[i] ^= (char)(1 << bit);
            if (i % 16) break; /* each byte, and each bit of some */
        }
    }
    fh_free(text);
    fh_pubkey_close(k);
}

static void keys_are_made_in_pairs_and_never_replaced(void **state)
{
    char id[17], secret[4200], pub[4200];
    fh_err err = {FH_OK, ""};
    struct stat st;
    fh_key *k;
    bool encrypted;
    snprintf(secret, sizeof secret, "%s", place("new.key"));
    snprintf(pub, sizeof pub, "%s", place("new.pub"));
    if (fh_key_make(secret, pub, "pass word", FH_KEY_COST_INTERACTIVE, id, &err) < 0) fail_msg("%s", err.text);
    assert_true(!stat(secret, &st) && (st.st_mode & 0777) == 0600);
    assert_int_equal(fh_key_make(secret, pub, NULL, FH_KEY_COST_INTERACTIVE, id, &err), FH_EFAIL);
    assert_int_equal(fh_key_look(secret, &encrypted, NULL, &err), FH_OK);
    assert_true(encrypted);
    assert_int_equal(fh_key_open(&k, secret, "pass  word", NULL, &err), FH_ECHECK);
    assert_int_equal(fh_key_open(&k, secret, NULL, NULL, &err), FH_EUSAGE);
    assert_int_equal(fh_key_open(&k, secret, "pass word", NULL, &err), FH_OK);
    fh_pubkey *p = pubkey(pub);
    assert_string_equal(fh_key_id(k), fh_pubkey_id(p));
    fh_pubkey_close(p);
    fh_key_close(k);
    unlink(secret);
    assert_int_equal(fh_key_make(secret, pub, NULL, FH_KEY_COST_INTERACTIVE, id, &err), FH_EFAIL); /* half a pair is not made either */
    assert_int_not_equal(stat(secret, &st), 0);
    unlink(pub);
}

/* A key file is believed only once its password was tried, which may not cost whatever the file asks for. */
static void a_key_that_asks_for_too_much_is_refused_before_it_gets_it(void **state)
{
    char id[17], secret[4200];
    fh_err err = {FH_OK, ""};
    size_t size;
    fh_secret s;
    snprintf(secret, sizeof secret, "%s", place("big.key"));
    if (fh_key_make(secret, place("big.pub"), "x", FH_KEY_COST_INTERACTIVE, id, &err) < 0) fail_msg("%s", err.text);
    char *text = load(secret, &size);
    size_t base64 = 0;
    while (text[base64++] != '\n') {}
    assert_int_equal(fh_secret_parse(&s, text, size, "big.key", &err), FH_OK);
    assert_true(s.encrypted && s.memory == 16 << 20);
    memset(text + base64 + (6 + 32) / 3 * 4 + 4, '/', 16); /* both limits lie in bytes 38 to 53 */
    assert_int_equal(fh_secret_parse(&s, text, size, "big.key", &err), FH_EFORMAT);
    assert_non_null(strstr(err.text, "minisign takes at most"));
    fh_free(text);
    unlink(secret);
    unlink(place("big.pub"));
}

static void what_is_no_key_and_no_signature_is_refused(void **state)
{
    static const char *const bad[] = {
        "", "\n", "untrusted comment: x\n", "untrusted comment: x\nAAAA\n", "trusted comment: x\nAAAA\n", "untrusted comment: x\n!!!!\n",
        "untrusted comment: x\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3x\n",
        "untrusted comment: x\nAAQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n",
        "untrusted comment: x\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\nmore\n",
    };
    fh_pubkey *k;
    fh_secret s;
    fh_signature signature;
    fh_err err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err.text[0] = 0;
        if (fh_pubkey_parse(&k, bad[i], strlen(bad[i]), "f", &err) >= 0 || !err.text[0]) fail_msg("as public key: '%s'", bad[i]);
        if (fh_secret_parse(&s, bad[i], strlen(bad[i]), "f", &err) >= 0) fail_msg("as secret key: '%s'", bad[i]);
        if (fh_signature_parse(&signature, bad[i], strlen(bad[i]), "f", &err) >= 0) fail_msg("as signature: '%s'", bad[i]);
    }
    assert_int_equal(fh_pubkey_parse(&k, "untrusted comment: \0", 20, "f", &err), FH_EFORMAT);
    assert_int_equal(fh_pubkey_open(&k, "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3", &err), FH_OK);
    assert_string_equal(fh_pubkey_id(k), "E7620F1842B4E81F");
    fh_pubkey_close(k);
}

#ifdef FH_FAULTS
static void any_failing_step_of_signing_is_reported(void **state)
{
    for (int kind = 0; kind < FH_FAULT_KINDS; kind++)
        for (long n = 1;; n++) {
            fh_err err = {FH_OK, ""};
            unlink(place("s.minisig"));
            fh_fault_set(kind, n);
            fh_status rc = sign_text("bound", &err);
            bool fired = fh_fault_fired();
            fh_fault_set(kind, 0);
            if (rc < 0 && (!err.text[0] || fh_file_exists(place("s.minisig")))) fail_msg("step %ld: '%s', or half a signature", n, err.text);
            if (!fired) {
                assert_int_equal(rc, FH_OK);
                break;
            }
            assert_true(n < 1000);
        }
}

static void any_failing_allocation_of_checking_is_reported(void **state)
{
    for (long n = 1;; n++) {
        fh_err err = {FH_OK, ""};
        fh_pubkey *k = NULL;
        char *comment = NULL;
        fh_fault_set(FH_FAULT_ALLOC, n);
        fh_status rc = fh_pubkey_open(&k, GOLDEN "key.pub", &err);
        if (rc == FH_OK) rc = fh_sign_check(k, GOLDEN "text.txt", GOLDEN "hashed.minisig", &comment, NULL, &err);
        bool fired = fh_fault_fired();
        fh_fault_set(FH_FAULT_ALLOC, 0);
        fh_free(comment);
        fh_pubkey_close(k);
        if (!fired) {
            assert_int_equal(rc, FH_OK);
            break;
        }
        assert_int_equal(rc, FH_ENOMEM);
        assert_true(n < 1000);
    }
}
#endif
#endif

static void a_build_without_libsodium_says_so(void **state)
{
    fh_err err = {FH_OK, ""};
    fh_status rc = fh_sign_available(&err);
#ifdef FH_HAVE_SODIUM
    assert_int_equal(rc, FH_OK);
#else
    assert_int_equal(rc, FH_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "libsodium"));
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_build_without_libsodium_says_so),
#ifdef FH_HAVE_SODIUM
        cmocka_unit_test(what_minisign_signed_is_believed),
        cmocka_unit_test(signing_twice_gives_the_same_bytes_and_the_key_of_minisign_works),
        cmocka_unit_test(any_altered_byte_of_a_signature_is_found),
        cmocka_unit_test(keys_are_made_in_pairs_and_never_replaced),
        cmocka_unit_test(a_key_that_asks_for_too_much_is_refused_before_it_gets_it),
        cmocka_unit_test(what_is_no_key_and_no_signature_is_refused),
#ifdef FH_FAULTS
        cmocka_unit_test(any_failing_step_of_signing_is_reported),
        cmocka_unit_test(any_failing_allocation_of_checking_is_reported),
#endif
#endif
    };
    return cmocka_run_group_tests_name("sign", tests, make_scratch, drop_scratch);
}
