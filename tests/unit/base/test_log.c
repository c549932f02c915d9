#include "unit.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

// What `write` puts on standard error. Caller frees.
static char *captured(void **state, void (*write_lines)(void *), void *arg)
{
    const char *path = unit_path(state, "log");
    int saved = dup(STDERR_FILENO),
        fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    assert_true(saved >= 0 && fd >= 0);
    assert_true(dup2(fd, STDERR_FILENO) >= 0);
    write_lines(arg);
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    (void)close(saved);
    off_t n = lseek(fd, 0, SEEK_END);
    char *text = calloc((size_t)n + 1, 1);
    assert_non_null(text);
    assert_int_equal(pread(fd, text, (size_t)n, 0), n);
    (void)close(fd);
    return text;
}

static size_t count_lines(const char *s)
{
    size_t n = 0;
    for (; *s; s++)
        n += *s == '\n';
    return n;
}

static void write_plain(void *arg)
{
    (void)arg;
    Err err = ERR_INIT;
    (void)err_set(&err, ERR_BUSY, "in use");
    log_info("backup completed", LOG_STR("job", "backup-web-1"), LOG_NUM("bytes", -12),
             LOG_STR("empty", ""), LOG_STR("none", NULL), LOG_ERR(&err));
    log_warn("no fields");
    log_debug("not at this level");
}

static void test_format(void **state)
{
    cleanup_free char *text = captured(state, write_plain, NULL);
    assert_int_equal(count_lines(text), 2);
    char *second = strchr(text, '\n') + 1;
    assert_true(str_starts(text, "ts="));
    char ts[CLOCK_TEXT] = "";
    memcpy(ts, text + 3, CLOCK_TEXT - 1);
    int64_t when;
    Err err = ERR_INIT;
    assert_ok(clock_parse(ts, &when, &err), &err);
    second[-1] = '\0';
    assert_string_equal(
        text + 3 + CLOCK_TEXT - 1,
        " level=info msg=\"backup completed\" job=backup-web-1 bytes=-12 empty=\"\" none=\"\" error=busy "
        "details=\"in use\"");
    assert_non_null(strstr(second, " level=warn msg=\"no fields\"\n"));
}

static void write_one(void *arg)
{
    log_error((const char *)arg, LOG_STR("vm", (const char *)arg), LOG_STR((const char *)arg, "x"));
}

static void test_injection(void **state)
{
    static const char *const hostile[] = {
        "web\nts=2026-01-01T00:00:00.000000Z level=error msg=\"disk full\"",
        "web\r\nlevel=info",
        "a\" job=\"other",
        "a\\\" job=\"other",
        "a=b c=d",
        "\x1b[2J\x1b]0;title\x07",
        "\xc2\x9b"
        "31m", // CSI as one C1 character
        "\xe2\x80\xae"
        "gpj.exe",                 // right-to-left override
        "\xe2\x80\xa8level=error", // line separator
        "\xff\xfe\x80",
        "\xc0\x8a", // an overlong line feed
        "\x7f",
    };
    for (size_t i = 0; i < ARRAY_LEN(hostile); i++) {
        char copy[256];
        (void)snprintf(copy, sizeof(copy), "%s", hostile[i]);
        cleanup_free char *text = captured(state, write_one, copy);
        size_t n = strlen(text);
        assert_int_equal(count_lines(text), 1);
        assert_int_equal(text[n - 1], '\n');
        text[n - 1] = '\0';
        assert_true(str_has_no_controls(text));
        assert_true(str_is_utf8(text, n - 1));
        assert_null(strstr(text, "\xe2\x80"));
        // Without what stands in quotes, the line has exactly the fields that were given.
        char bare[4096];
        size_t k = 0;
        bool quoted = false;
        for (const char *p = strstr(text, " level="); *p; p++) {
            if (quoted && *p == '\\')
                p++;
            else if (*p == '"')
                quoted = !quoted;
            else if (!quoted)
                bare[k++] = *p;
        }
        bare[k] = '\0';
        assert_false(quoted);
        assert_true(str_starts(bare, " level=error msg= vm= "));
        const char *key = bare + strlen(" level=error msg= vm= ");
        assert_string_equal(
            key + strspn(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_."),
            "=x");
    }
}

static void test_escapes(void **state)
{
    char value[] = "\"\\\n\r\t\x01\x7f\xff Gr\xc3\xb6\xc3\x9f"
                   "e";
    cleanup_free char *text = captured(state, write_one, value);
    assert_non_null(strstr(text,
                           " vm=\"\\\"\\\\\\n\\r\\t\\u0001\\u007f\\ufffd Gr\xc3\xb6\xc3\x9f"
                           "e\" "));
}

static void test_long_values_are_cut(void **state)
{
    char *value = malloc(100001);
    assert_non_null(value);
    static const char *const fill[] = {"x", "\n", "\xe2\x82\xac"};
    for (size_t k = 0; k < ARRAY_LEN(fill); k++) {
        size_t step = strlen(fill[k]);
        for (size_t i = 0; i + step <= 100000; i += step)
            memcpy(value + i, fill[k], step);
        value[100000 / step * step] = '\0';
        cleanup_free char *text = captured(state, write_one, value);
        size_t n = strlen(text);
        assert_in_range(n, 1000, 4096);
        assert_int_equal(count_lines(text), 1);
        assert_true(str_is_utf8(text, n));
        assert_non_null(
            strstr(text, "...\" vm=\"")); // the message was cut, the next field is there
    }
    free(value);
}

static void write_many_fields(void *arg)
{
    LogField f[100];
    for (size_t i = 0; i < 99; i++)
        f[i] = LOG_STR("key", (const char *)arg);
    f[99] = (LogField){.key = NULL};
    log_line(LOG_ERROR_, "many", f);
}

static void test_many_fields_are_cut(void **state)
{
    // Every length, so that the end of the line falls everywhere within a field.
    for (size_t n = 0; n < 260; n++) {
        char value[300];
        memset(value, n % 2 ? 'x' : '"', n);
        value[n] = '\0';
        cleanup_free char *text = captured(state, write_many_fields, value);
        assert_true(strlen(text) <= 4096);
        assert_int_equal(count_lines(text), 1);
        if (n > 60)
            assert_true(str_ends(text, " cut=true\n"));
    }
}

static void write_errno(void *arg)
{
    errno = EXDEV;
    log_info("x", LOG_STR("a", "b"));
    *(int *)arg = errno;
}

static void test_keeps_errno(void **state)
{
    int seen = 0;
    cleanup_free char *text = captured(state, write_errno, &seen);
    assert_int_equal(seen, EXDEV);
    assert_int_equal(count_lines(text), 1);
}

static void write_beyond_a_limit(void *arg)
{
    (void)arg;
    struct rlimit before, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    log_info("whole");
    limit = (struct rlimit){.rlim_cur = (rlim_t)lseek(STDERR_FILENO, 0, SEEK_END) + 20, .rlim_max = before.rlim_max};
    __sighandler_t was = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    log_info("torn");
    log_info("lost");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    (void)signal(SIGXFSZ, was);
    log_info("whole again");
    log_info("and the next");
}

// A client's log on a full disk: the first line after it was appended to what there was of the last one before.
static void test_a_torn_line_is_ended(void **state)
{
    cleanup_free char *text = captured(state, write_beyond_a_limit, NULL);
    static const char *const ends[] = {" msg=\"whole\"", "", " msg=\"whole again\"", " msg=\"and the next\""};
    size_t n = 0;
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1, n++) {
        *end = '\0';
        assert_true(n < ARRAY_LEN(ends) && str_starts(line, "ts="));
        assert_true(str_ends(line, ends[n]));
        assert_int_equal(strlen(line) == 20, n == 1);
    }
    assert_int_equal(n, ARRAY_LEN(ends));
}

static void *log_in_thread(void *arg)
{
    (void)arg;
    for (int i = 0; i < 200; i++)
        log_info("from a thread", LOG_STR("text", "some words to tear apart"), LOG_NUM("i", i));
    return NULL;
}

static void write_from_threads(void *arg)
{
    (void)arg;
    pthread_t t[4];
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_create(&t[i], NULL, log_in_thread, NULL), 0);
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_join(t[i], NULL), 0);
}

static void test_threads_do_not_tear_lines(void **state)
{
    cleanup_free char *text = captured(state, write_from_threads, NULL);
    size_t lines = 0;
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1, lines++) {
        *end = '\0';
        assert_true(str_starts(line, "ts="));
        assert_non_null(
            strstr(line, " msg=\"from a thread\" text=\"some words to tear apart\" i="));
    }
    assert_int_equal(lines, 800);
}

// The level is read once a process: a child of its own for each.
static void write_levels_in_child(void *arg)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)setenv("SENDENSE_LOG", (const char *)arg, 1);
        char *argv[] = {(char *)(uintptr_t) "test_log", (char *)(uintptr_t) "levels", NULL};
        execv("/proc/self/exe", argv);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_levels(void **state)
{
    static const struct {
        char level[8];
        size_t lines;
    } cases[] = {{"debug", 4}, {"info", 3}, {"warn", 2}, {"error", 1}, {"", 3}, {"loud", 3}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char level[8];
        memcpy(level, cases[i].level, sizeof(level));
        cleanup_free char *text = captured(state, write_levels_in_child, level);
        assert_int_equal(count_lines(text), cases[i].lines);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "levels") == 0) {
        log_debug("one");
        log_info("two");
        log_warn("three");
        log_error("four");
        return 0;
    }
    (void)unsetenv("SENDENSE_LOG");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format),
        cmocka_unit_test(test_injection),
        cmocka_unit_test(test_escapes),
        cmocka_unit_test(test_long_values_are_cut),
        cmocka_unit_test(test_many_fields_are_cut),
        cmocka_unit_test(test_keeps_errno),
        cmocka_unit_test(test_a_torn_line_is_ended),
        cmocka_unit_test(test_threads_do_not_tear_lines),
        cmocka_unit_test(test_levels),
    };
    return cmocka_run_group_tests(tests, unit_folder_setup, unit_folder_teardown);
}
