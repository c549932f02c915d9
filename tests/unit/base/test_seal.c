#include "unit.h"

#include "base/file.h"
#include "base/seal.h"
#include "base/str.h"

#include <sys/stat.h>
#include <unistd.h>

static void write_file(const char *path, const char *text, mode_t mode)
{
    Err err = ERR_INIT;
    assert_ok(file_unlink(path, &err), &err);
    assert_ok(file_create_durable(path, text, strlen(text), 0600, &err), &err);
    assert_int_equal(chmod(path, mode), 0);
}

static void assert_unusable(const char *path, const char *words)
{
    Err err = ERR_INIT;
    SealKey k = {0};
    assert_false(seal_key_read(path, &k, &err));
    assert_string_equal(err_short(&err), "key file not usable");
    assert_non_null(strstr(err.details, words));
    assert_non_null(strstr(err.details, path));
    assert_fails(false, &err, ERR_UNAVAILABLE);
    assert_null(k.bytes_);
}

static void make_key(void **state, const char *name, SealKey *ret)
{
    Err err = ERR_INIT;
    const char *path = unit_path(state, name);
    assert_ok(seal_key_make(path, &err), &err);
    assert_ok(seal_key_read(path, ret, &err), &err);
}

static void test_key_file(void **state)
{
    Err err = ERR_INIT;
    SealKey k = {0}, again = {0};
    struct stat st;
    const char *path = unit_path(state, "key");
    assert_unusable(path, "missing");
    assert_false(file_exists(path)); // reading makes none
    make_key(state, "key", &k);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_int_equal(st.st_size, 65);
    assert_ok(seal_key_read(path, &again, &err), &err);
    assert_memory_equal(k.bytes_, again.bytes_, 32);
    assert_fails(seal_key_make(path, &err), &err, ERR_EXISTS); // a key is never replaced
    assert_ok(seal_key_read(path, &again, &err), &err);
    assert_memory_equal(k.bytes_, again.bytes_, 32);
    FileList list = {0};
    assert_ok(file_list(*(char **)state, 10, &list, &err), &err);
    for (size_t i = 0; i < list.len; i++)
        assert_false(str_ends(list.names[i], ".partial"));
    file_list_clear(&list);
    seal_key_clear(&k);
    seal_key_clear(&again);
    seal_key_clear(&again);
}

static void test_key_files_refused(void **state)
{
    char hex[80];
    const char *path = unit_path(state, "bad");
    memset(hex, 'a', 64);
    hex[64] = '\0';
    static const mode_t open_modes[] = {0640, 0604, 0660, 0602, 0610};
    for (size_t i = 0; i < ARRAY_LEN(open_modes); i++) {
        write_file(path, hex, open_modes[i]);
        assert_unusable(path, "others");
    }
    static const char *const lengths[] = {"", "\n", "aa",
                                          "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                                          "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        write_file(path, lengths[i], 0600);
        assert_unusable(path, "64 hex digits");
    }
    hex[10] = 'g';
    write_file(path, hex, 0600);
    assert_unusable(path, "hex digits");
    assert_unusable(unit_path(state, "."), "regular");
    hex[10] = 'b';
    write_file(path, hex, 0400);
    SealKey k = {0};
    Err err = ERR_INIT;
    assert_ok(seal_key_read(path, &k, &err), &err); // read-only is fine: systemd's credentials are
    seal_key_clear(&k);
}

static void test_round_trip(void **state)
{
    Err err = ERR_INIT;
    SealKey k = {0};
    Secret s = {0}, back = {0};
    char longest[SECRET_MAX + 1];
    make_key(state, "trip", &k);
    memset(longest, 'x', SECRET_MAX);
    longest[SECRET_MAX] = '\0';
    const char *const all[] = {"p", "h\xc3\xbcnter2 \"with\" blanks", longest};
    size_t length = 0;
    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        char *one = NULL, *two = NULL;
        assert_ok(secret_set(&s, all[i], &err), &err);
        assert_ok(seal_secret(&k, &s, "id-1\nhost", &one, &err), &err);
        assert_ok(seal_secret(&k, &s, "id-1\nhost", &two, &err), &err);
        assert_string_not_equal(one, two); // a nonce is used once
        assert_true(length == 0 || strlen(one) == length);
        length = strlen(one);
        assert_ok(seal_open(&k, one, "id-1\nhost", &back, &err), &err);
        assert_string_equal(secret_reveal(&back), all[i]);
        free(one);
        free(two);
    }
    secret_clear(&s);
    secret_clear(&back);
    seal_key_clear(&k);
}

static void assert_does_not_open(const SealKey *k, const char *text, const char *binding)
{
    Err err = ERR_INIT;
    Secret s = {0};
    assert_false(seal_open(k, text, binding, &s, &err));
    assert_string_equal(err_short(&err), "key file not usable");
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    assert_false(secret_is_set(&s));
}

// A row that was changed, another row's password, another key: none opens.
static void test_what_does_not_open(void **state)
{
    Err err = ERR_INIT;
    SealKey k = {0}, other = {0};
    Secret s = {0};
    char *text = NULL;
    make_key(state, "one", &k);
    make_key(state, "two", &other);
    assert_ok(secret_set(&s, "secret", &err), &err);
    assert_ok(seal_secret(&k, &s, "id\nhost", &text, &err), &err);
    assert_does_not_open(&other, text, "id\nhost");
    assert_does_not_open(&k, text, "id\nother");
    assert_does_not_open(&k, text, "");
    assert_does_not_open(&k, "", "id\nhost");
    assert_does_not_open(&k, "v1:", "id\nhost");
    assert_does_not_open(&k, text + 1, "id\nhost");
    size_t n = strlen(text);
    for (size_t at = 3; at < n; at += 97) {
        char was = text[at];
        text[at] = was == '0' ? '1' : '0';
        assert_does_not_open(&k, text, "id\nhost");
        text[at] = 'x';
        assert_does_not_open(&k, text, "id\nhost");
        text[at] = was;
    }
    text[n - 2] = '\0';
    assert_does_not_open(&k, text, "id\nhost");
    free(text);
    secret_clear(&s);
    seal_key_clear(&k);
    seal_key_clear(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_key_file),
        cmocka_unit_test(test_key_files_refused),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_what_does_not_open),
    };
    return cmocka_run_group_tests(tests, unit_folder_setup, unit_folder_teardown);
}
