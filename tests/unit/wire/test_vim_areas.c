// QueryChangedDiskAreas: an answer is believed only if it can be right.
#include "fake_soap.h"

#include <inttypes.h>
#include <sys/resource.h>

#define MIB (UINT64_C(1) << 20)
static const VimDisk disk = {.key = 2001, .capacity = 100 * MIB};

typedef struct Seen {
    uint64_t count, bytes, end;
    uint64_t refuse_at; // count at which on_area refuses; 0: never
} Seen;

static bool on_area(void *ctx, uint64_t offset, uint64_t length, Err *err)
{
    Seen *s = ctx;
    assert_true(length > 0 && offset >= s->end);
    s->count++;
    s->bytes += length;
    s->end = offset + length;
    return s->count != s->refuse_at || err_set(err, ERR_NO_SPACE, "enough");
}

static bool ask(FakeSession *s, uint64_t start, Seen *seen, uint64_t *ret_next)
{
    *seen = (Seen){.refuse_at = seen->refuse_at};
    return vim_changed_areas(s->vim, "vm-62", "snapshot-79", &disk, start, "52 66/5490", on_area, seen, ret_next,
                             &s->err);
}

static FakeReply *answer(const char *inside)
{
    Err err = ERR_INIT;
    cleanup_free char *text = mem_printf(&err, "<returnval>%s</returnval>", inside);
    return fake_answer("QueryChangedDiskAreas", text);
}

static void asks_as_recorded(void **state)
{
    FakeSession *s = *state;
    VimDisk d = {.key = 204, .capacity = MIB};
    Seen seen = {0};
    uint64_t next = 77;
    static const struct {
        const char *fixture, *change_id;
    } cases[] = {{"16-QueryChangedDiskAreas-full", "*"},
                 {"31-QueryChangedDiskAreas-incr", "52d0eb97-27ad-4c3d-874a-c34e85f2ea95/446"}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        fake_again();
        fake_fixture(cases[i].fixture);
        // vcsim does not have the call: no tracking, whatever the reason
        assert_fails(vim_changed_areas(s->vim, "vm-62", "snapshot-79", &d, 0, cases[i].change_id, on_area, &seen, &next,
                                       &s->err),
                     &s->err, ERR_CONFLICT);
        assert_string_equal(vim_fault(s->vim)->type, "MethodNotFound");
        fake_assert_like(0, cases[i].fixture, NULL);
    }
    assert_int_equal(next, 77);
}

static void areas_and_pages(void **state)
{
    FakeSession *s = *state;
    Seen seen = {0};
    uint64_t next = 0;
    fake_again();
    answer("<startOffset>0</startOffset><length>52428800</length><changedArea><start>0</start><length>65536</length>"
           "</changedArea><changedArea><start>65536</start><length>1</length></changedArea>"
           "<changedArea><start>52428799</start><length>1</length></changedArea>");
    assert_ok(ask(s, 0, &seen, &next), &s->err);
    assert_int_equal(seen.count, 3);
    assert_int_equal(seen.bytes, 65538);
    assert_int_equal(next, 50 * MIB);
    answer("<startOffset>52428800</startOffset><length>52428800</length>"); // nothing changed there
    assert_ok(ask(s, next, &seen, &next), &s->err);
    assert_int_equal(seen.count, 0);
    assert_int_equal(next, disk.capacity);
    fake_assert_asked(1,
                      "<deviceKey>2001</deviceKey><startOffset>52428800</startOffset><changeId>52 66/5490</changeId>");
    assert_fails(ask(s, next, &seen, &next), &s->err, ERR_INTERNAL); // never at the capacity: InvalidArgument
    assert_int_equal(fake.asked, 2);
}

#define WINDOW "<startOffset>1048576</startOffset><length>1048576</length>"
#define AREA(start, length) "<changedArea><start>" start "</start><length>" length "</length></changedArea>"

static void what_cannot_be_right(void **state)
{
    FakeSession *s = *state;
    static const char *const bad[] = {
        "",
        "<startOffset>1048576</startOffset>",
        "<length>1048576</length>",
        "<startOffset>1048576</startOffset><length>0</length>",
        "<startOffset>0</startOffset><length>2097152</length>",
        "<startOffset>1048577</startOffset><length>1048576</length>",
        "<startOffset>1048576</startOffset><length>103809025</length>", // a byte past the disk's end
        "<startOffset>1048576</startOffset><length>9223372036854775807</length>",
        "<startOffset>1048576</startOffset><length>9223372036854775808</length>", // no xsd:long
        "<startOffset>1048576</startOffset><length>-1</length>",
        "<startOffset>1048576</startOffset><length>1 MiB</length>",
        "<startOffset>1048576</startOffset><startOffset>1048576</startOffset><length>1048576</length>",
        AREA("1048576", "1") WINDOW, // no telling whether it is within
        WINDOW AREA("1048576", "0"),
        WINDOW AREA("1048575", "1"),
        WINDOW AREA("1048575", "2"),
        WINDOW AREA("2097151", "2"),
        WINDOW AREA("2097152", "1"),
        WINDOW AREA("9223372036854775807", "9223372036854775807"),
        WINDOW AREA("1048576", "9223372036854775807"),
        WINDOW AREA("1048576", "10") AREA("1048585", "1"),  // overlaps
        WINDOW AREA("1048600", "10") AREA("1048576", "10"), // out of order
        WINDOW AREA("1048576", "10") AREA("1048576", "10"), // twice
        WINDOW AREA("1048576", "10") "<length>5</length>",
        WINDOW "<changedArea><start>1048576</start></changedArea>",
        WINDOW "<changedArea><length>1048576</length></changedArea>",
        WINDOW "<changedArea><start>1048576</start><start>1048577</start><length>1</length></changedArea>",
        WINDOW "<changedArea/>",
        WINDOW AREA("x", "1"),
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Seen seen = {0};
        uint64_t next = 77;
        fake_again();
        answer(bad[i]);
        if (ask(s, MIB, &seen, &next))
            fail_msg("believed: %s", bad[i]);
        if (s->err.code != ERR_PROTOCOL)
            fail_msg("%s: %s: %s", bad[i], err_name(s->err.code), s->err.details);
        assert_int_equal(next, 77);
        err_clear(&s->err);
    }
    fake_again();
    Seen seen = {0};
    uint64_t next = 77;
    fake_answer("QueryChangedDiskAreas", ""); // no returnval: not "nothing changed"
    assert_fails(ask(s, MIB, &seen, &next), &s->err, ERR_PROTOCOL);
    fake_answer("QueryChangedDiskAreas", "<returnval>" WINDOW "</returnval><returnval>" WINDOW "</returnval>");
    assert_fails(ask(s, MIB, &seen, &next), &s->err, ERR_PROTOCOL);
}

// Lost tracking is told apart from what has nothing to do with it.
static void refusals(void **state)
{
    FakeSession *s = *state;
    static const struct {
        const char *type;
        ErrCode code;
    } cases[] = {
        {"FileFault", ERR_CONFLICT},           {"InvalidArgument", ERR_CONFLICT},
        {"NotSupported", ERR_CONFLICT},        {"SystemError", ERR_CONFLICT},
        {"SomeFutureFault", ERR_CONFLICT},     {"NotFound", ERR_NOT_FOUND},
        {"NoPermission", ERR_FORBIDDEN},       {"ManagedObjectNotFound", ERR_NOT_FOUND},
        {"HostNotConnected", ERR_UNAVAILABLE},
    };
    Seen seen = {0};
    uint64_t next = 77;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        fake_again();
        fake_fault(cases[i].type, "", "");
        assert_false(ask(s, 0, &seen, &next));
        if (s->err.code != cases[i].code)
            fail_msg("%s: %s", cases[i].type, err_name(s->err.code));
        assert_true(str_starts(s->err.details, cases[i].type));
        err_clear(&s->err);
    }
}

static void broken_answers(void **state)
{
    FakeSession *s = *state;
    Seen seen = {0};
    uint64_t next = 77;
    // Before the first area: asked again
    fake_again();
    fake_add(200, "")->fails = ERR_UNAVAILABLE;
    answer("<startOffset>0</startOffset><length>104857600</length>" AREA("0", "5"));
    assert_ok(ask(s, 0, &seen, &next), &s->err);
    assert_int_equal(seen.count, 1);
    assert_int_equal(next, disk.capacity);
    // After it: not, and the areas count for nothing
    StrBuf b = STR_BUF(1 << 20);
    assert_ok(str_add(&b, "<startOffset>0</startOffset><length>104857600</length>", &s->err), &s->err);
    for (int i = 0; i < 1000; i++) // more than is read ahead
        assert_ok(str_addf(&b, &s->err, AREA("%d", "5"), 10 * i), &s->err);
    fake_again();
    next = 77;
    answer(b.s)->breaks = true;
    str_clear(&b);
    assert_fails(ask(s, 0, &seen, &next), &s->err, ERR_UNAVAILABLE);
    assert_true(seen.count > 0);
    assert_int_equal(next, 77);
    // Truncated at every byte
    FakeReply *r;
    fake_again();
    r = answer("<startOffset>0</startOffset><length>104857600</length>" AREA("0", "5") AREA("10", "5"));
    size_t len = r->len;
    fake_reset();
    for (size_t cut = 0; cut < len; cut++) {
        fake_again();
        r = answer("<startOffset>0</startOffset><length>104857600</length>" AREA("0", "5") AREA("10", "5"));
        r->cut = cut;
        assert_fails(ask(s, 0, &seen, &next), &s->err, ERR_PROTOCOL);
    }
    assert_int_equal(next, 77);
}

static void the_callers_own_error(void **state)
{
    FakeSession *s = *state;
    Seen seen = {.refuse_at = 2};
    uint64_t next = 77;
    fake_again();
    answer("<startOffset>0</startOffset><length>104857600</length>" AREA("0", "5") AREA("10", "5") AREA("20", "5"));
    assert_fails(ask(s, 0, &seen, &next), &s->err, ERR_NO_SPACE);
    assert_int_equal(seen.count, 2);
}

static void a_million_areas(void **state)
{
    FakeSession *s = *state;
    enum { COUNT = 1000000 };
    Seen seen = {0};
    uint64_t next = 0;
    VimDisk d = {.key = 2000, .capacity = UINT64_C(1) << 40};
    StrBuf b = STR_BUF(200u << 20);
    struct rusage before, after;
    assert_ok(str_add(&b, "<startOffset>0</startOffset><length>1099511627776</length>", &s->err), &s->err);
    for (uint64_t i = 0; i < COUNT; i++) {
        char area[128];
        int n =
            snprintf(area, sizeof(area), "<changedArea><start>%" PRIu64 "</start><length>65536</length></changedArea>",
                     i * (MIB - 65536));
        assert_ok(str_add_bytes(&b, area, (size_t)n, &s->err), &s->err);
    }
    fake_again();
    answer(b.s);
    str_clear(&b);
    assert_int_equal(getrusage(RUSAGE_SELF, &before), 0);
    assert_ok(vim_changed_areas(s->vim, "vm-1", "snapshot-2", &d, 0, "*", on_area, &seen, &next, &s->err), &s->err);
    assert_int_equal(getrusage(RUSAGE_SELF, &after), 0);
    assert_int_equal(seen.count, COUNT);
    assert_int_equal(seen.bytes, COUNT * UINT64_C(65536));
    assert_int_equal(next, d.capacity);
    assert_true(after.ru_maxrss - before.ru_maxrss < 16 << 10); // KiB
}

#define IN_SESSION(test) cmocka_unit_test_setup_teardown(test, fake_open, fake_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_SESSION(asks_as_recorded), IN_SESSION(areas_and_pages), IN_SESSION(what_cannot_be_right),
        IN_SESSION(refusals),         IN_SESSION(broken_answers),  IN_SESSION(the_callers_own_error),
        IN_SESSION(a_million_areas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
