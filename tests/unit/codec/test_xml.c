#include "unit.h"

#include "codec/xml.h"

#include <sys/resource.h>

typedef struct Text { // a document in pieces
    const char *p;
    size_t n, piece;
    bool breaks; // instead of an end
} Text;

static bool read_text(void *ctx, char *buf, size_t cap, size_t *ret_n, Err *err)
{
    Text *t = ctx;
    size_t n = MIN(MIN(cap, t->n), t->piece);
    if (n == 0 && t->breaks)
        return err_set(err, ERR_UNAVAILABLE, "it broke");
    memcpy(buf, t->p, n);
    t->p += n;
    t->n -= n;
    *ret_n = n;
    return true;
}

static XmlReader *reader(Text *t, XmlLimits limits)
{
    Err err = ERR_INIT;
    XmlReader *r = NULL;
    assert_ok(xml_reader_new(read_text, t, limits, &r, &err), &err);
    return r;
}

static Text text(const char *s)
{
    return (Text){.p = s, .n = strlen(s), .piece = SIZE_MAX};
}

// Reads all of it: elements, attributes, texts of leaves are not looked at.
static bool swallow(Text t, XmlLimits limits, Err *err)
{
    XmlReader *r = reader(&t, limits);
    bool fine = xml_finish(r, err);
    xml_reader_free(r);
    return fine;
}

static void to_first(XmlReader *r, XmlWalk *w)
{
    Err err = ERR_INIT;
    bool more = false;
    assert_ok(xml_next(r, w, &more, &err), &err);
    assert_true(more);
}

static void writes_any_text(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    static const char hard[] = "a<b>&\"c'\r\n\t]]>ü€\xf0\x9f\x98\x80";
    StrBuf b = STR_BUF(1000);
    cleanup_free char *back = NULL;
    assert_ok(xml_add_element(&b, "t", hard, &err), &err);
    assert_null(strchr(strchr(b.s, '>') + 1, '\r')); // it would be read back as a line feed
    Text t = text(b.s);
    XmlReader *r = reader(&t, (XmlLimits){0});
    XmlWalk w = xml_walk(r);
    to_first(r, &w);
    assert_ok(xml_text(r, 1000, &back, &err), &err);
    assert_string_equal(back, hard);
    assert_ok(xml_finish(r, &err), &err);
    xml_reader_free(r);
    str_clear(&b);
}

static void refuses_what_xml_cannot_hold(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    static const char *const bad[] = {"\x01",         "a\x1f",        "\x0b",         "\xff",
                                      "\xed\xa0\x80", "\xef\xbf\xbe", "\xef\xbf\xbf", "\xc0\x80"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        StrBuf b = STR_BUF(1000);
        assert_fails(xml_add_text(&b, bad[i], &err), &err, ERR_INVALID);
        str_clear(&b);
    }
}

// A moref carries both a plain type and an xsi:type, and the latter comes under any prefix.
static void attributes_by_namespace(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    cleanup_free char *type = NULL, *xsi = NULL, *value = NULL, *none = NULL;
    Text t = text("<v xmlns:_X-i='http://www.w3.org/2001/XMLSchema-instance' type='VirtualMachineSnapshot' "
                  "_X-i:type='xsd:ManagedObjectReference' other='1'>snapshot-79</v>");
    XmlReader *r = reader(&t, (XmlLimits){0});
    XmlWalk w = xml_walk(r);
    to_first(r, &w);
    assert_ok(xml_attribute(r, "type", &type, &err), &err);
    assert_ok(xml_xsi_type(r, &xsi, &err), &err);
    assert_ok(xml_attribute(r, "nothing", &none, &err), &err);
    assert_string_equal(type, "VirtualMachineSnapshot");
    assert_string_equal(xsi, "ManagedObjectReference");
    assert_null(none);
    assert_ok(xml_text(r, 100, &value, &err), &err);
    assert_string_equal(value, "snapshot-79");
    xml_reader_free(r);

    cleanup_free char *plain = NULL, *missing = NULL;
    t = text("<v xmlns:x='http://www.w3.org/2001/XMLSchema-instance' x:type='T'/>");
    r = reader(&t, (XmlLimits){0});
    w = xml_walk(r);
    to_first(r, &w);
    assert_ok(xml_attribute(r, "type", &missing, &err), &err);
    assert_null(missing); // the prefixed one is another attribute
    assert_ok(xml_xsi_type(r, &plain, &err), &err);
    assert_string_equal(plain, "T");
    xml_reader_free(r);
}

static void elements_by_namespace(void **state)
{
    (void)state;
    Text t = text("<a:x xmlns:a='urn:1'><x xmlns='urn:2'/></a:x>");
    XmlReader *r = reader(&t, (XmlLimits){0});
    XmlWalk document = xml_walk(r);
    to_first(r, &document);
    assert_true(xml_is(r, "x") && xml_is_in(r, "urn:1", "x") && !xml_is_in(r, "urn:2", "x"));
    XmlWalk w = xml_walk(r);
    to_first(r, &w);
    assert_true(xml_is_in(r, "urn:2", "x") && !xml_is_in(r, "urn:1", "x"));
    xml_reader_free(r);
}

// What a reader does not look at is skipped, however deep; an element of the same name further down is no sibling.
static void walks_nest(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Text t = text("<r><!-- c --><skip><k>no</k><k><k/></k></skip><k>1</k> <k/><list><k>a</k><b/></list><k>2</k></r>");
    t.piece = 1;
    XmlReader *r = reader(&t, (XmlLimits){0});
    StrBuf seen = STR_BUF(100);
    XmlWalk document = xml_walk(r);
    to_first(r, &document);
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, &err) && more) {
        cleanup_free char *value = NULL;
        if (xml_is(r, "list")) {
            XmlWalk inner = xml_walk(r);
            to_first(r, &inner);
            assert_ok(xml_text(r, 10, &value, &err), &err);
            // and not to its end
        } else if (xml_is(r, "k")) {
            assert_ok(xml_text(r, 10, &value, &err), &err);
        }
        if (value)
            assert_ok(str_addf(&seen, &err, "[%s]", value), &err);
    }
    assert_int_equal(err.code, ERR_NONE);
    assert_string_equal(seen.s, "[1][][a][2]");
    assert_ok(xml_next(r, &document, &more, &err), &err);
    assert_false(more);
    assert_ok(xml_finish(r, &err), &err);
    xml_reader_free(r);
    str_clear(&seen);
}

static void texts_are_whole_and_bounded(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    static const struct {
        const char *document;
        const char *value; // NULL: an error,
        ErrCode code;      // of this code
    } cases[] = {
        {"<t>a&amp;b<![CDATA[<c>]]><!-- no --><?p no?>d&#x20;e</t>", "a&b<c>d e", ERR_NONE},
        {"<t>  </t>", "  ", ERR_NONE},
        {"<t></t>", "", ERR_NONE},
        {"<t>12345678901</t>", NULL, ERR_TOO_LARGE},
        {"<t>a<b/></t>", NULL, ERR_PROTOCOL},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        cleanup_free char *value = NULL;
        Text t = text(cases[i].document);
        XmlReader *r = reader(&t, (XmlLimits){0});
        XmlWalk w = xml_walk(r);
        to_first(r, &w);
        if (cases[i].value) {
            assert_ok(xml_text(r, 10, &value, &err), &err);
            assert_string_equal(value, cases[i].value);
        } else {
            assert_fails(xml_text(r, 10, &value, &err), &err, cases[i].code);
            assert_fails(xml_finish(r, &err), &err, cases[i].code); // once failed, for ever
        }
        xml_reader_free(r);
    }
}

static void nothing_but_plain_utf8_xml(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    static const char *const bad[] = {
        "",
        "x",
        "<a>",
        "<a></b>",
        "<a/><b/>",
        "<a/>x",
        "<a>\x01</a>",
        "<a>\xff</a>",
        "<a>&#1;</a>",
        "<a>&nothing;</a>",
        "<a b='1' b='2'/>",
        "<p:a/>", // a prefix that nothing declares
        "<!DOCTYPE a><a/>",
        "<!DOCTYPE a SYSTEM 'file:///etc/hostname'><a/>",
        "<!DOCTYPE a [<!ENTITY e SYSTEM 'file:///etc/hostname'>]><a>&e;</a>",
        "<!DOCTYPE a [<!ENTITY x 'xx'><!ENTITY y '&x;&x;&x;&x;&x;&x;&x;&x;'>]><a b='&y;'>&y;</a>",
        "<?xml version='1.0'?>\n<!DOCTYPE a PUBLIC 'x' 'http://127.0.0.1:9/x'><a/>",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        for (size_t piece = 1; piece < 6; piece += 4) {
            Text t = text(bad[i]);
            t.piece = piece;
            if (swallow(t, (XmlLimits){0}, &err))
                fail_msg("'%s' was read", bad[i]);
            assert_int_equal(err.code, ERR_PROTOCOL);
            err_clear(&err);
        }
    // Another encoding, whether it is declared or shows itself
    static const char utf16[] = "\xff\xfe<\0a\0/\0>\0";
    Text t = {.p = utf16, .n = sizeof(utf16) - 1, .piece = SIZE_MAX};
    assert_fails(swallow(t, (XmlLimits){0}, &err), &err, ERR_PROTOCOL);
    assert_fails(swallow(text("<?xml version='1.0' encoding='ISO-8859-1'?><a>\xe4</a>"), (XmlLimits){0}, &err), &err,
                 ERR_PROTOCOL);
    assert_ok(swallow(text("<?xml version='1.0' encoding='UTF-8'?>\n<a>\xc3\xa4</a>\n"), (XmlLimits){0}, &err), &err);
}

static void limits_hold(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    static const char d[] = "<a><b><c>x</c></b></a>";
    assert_ok(swallow(text(d), (XmlLimits){.bytes = sizeof(d) - 1, .nodes = 7, .depth = 3}, &err), &err);
    assert_fails(swallow(text(d), (XmlLimits){.bytes = sizeof(d) - 2}, &err), &err, ERR_TOO_LARGE);
    assert_fails(swallow(text(d), (XmlLimits){.nodes = 6}, &err), &err, ERR_TOO_LARGE);
    assert_fails(swallow(text(d), (XmlLimits){.depth = 2}, &err), &err, ERR_TOO_LARGE);
    StrBuf deep = STR_BUF(1 << 20);
    for (int i = 0; i < 10000; i++)
        assert_ok(str_add(&deep, "<a>", &err), &err);
    assert_fails(swallow(text(deep.s), (XmlLimits){.depth = 128}, &err), &err, ERR_TOO_LARGE);
    assert_false(swallow(text(deep.s), (XmlLimits){0}, &err)); // libxml2's own limit
    str_clear(&deep);
}

static void truncated_at_every_byte(void **state)
{
    (void)state;
    static const char d[] = "<?xml version=\"1.0\"?>\n<a x='1'><b xmlns='urn:b'>t &amp; u</b><c/><![CDATA[z]]></a>";
    for (size_t n = 0; n < sizeof(d) - 1; n++) {
        Err err = ERR_INIT;
        Text t = {.p = d, .n = n, .piece = 7};
        assert_fails(swallow(t, (XmlLimits){0}, &err), &err, ERR_PROTOCOL);
        t.breaks = true;
        assert_fails(swallow(t, (XmlLimits){0}, &err), &err, ERR_UNAVAILABLE); // the cause, not its effect
    }
}

typedef struct Endless {
    size_t left, at; // elements; bytes of the one that is being given
    int phase;
} Endless;

static bool read_endless(void *ctx, char *buf, size_t cap, size_t *ret_n, Err *err)
{
    static const char one[] = "<changedArea><start>1234567890</start><length>65536</length></changedArea>\n";
    static const char *const ends[] = {"<r>", "</r>"};
    Endless *e = ctx;
    size_t n = 0;
    (void)err;
    while (n < cap && e->phase < 3) {
        const char *from = e->phase == 1 ? one : ends[e->phase / 2];
        size_t part = MIN(cap - n, strlen(from) - e->at);
        memcpy(buf + n, from + e->at, part);
        n += part;
        e->at += part;
        if (e->at < strlen(from))
            break;
        e->at = 0;
        if (e->phase != 1 || --e->left == 0)
            e->phase++;
    }
    *ret_n = n;
    return true;
}

static void a_million_elements_cost_no_memory(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Endless e = {.left = 1000000};
    struct rusage before, after;
    XmlReader *r = NULL;
    size_t count = 0;
    bool more;
    assert_int_equal(getrusage(RUSAGE_SELF, &before), 0);
    assert_ok(xml_reader_new(read_endless, &e, (XmlLimits){.bytes = 1 << 30}, &r, &err), &err);
    XmlWalk document = xml_walk(r);
    to_first(r, &document);
    XmlWalk w = xml_walk(r);
    while (xml_next(r, &w, &more, &err) && more)
        count++;
    assert_int_equal(err.code, ERR_NONE);
    assert_int_equal(count, 1000000);
    assert_ok(xml_finish(r, &err), &err);
    xml_reader_free(r);
    assert_int_equal(getrusage(RUSAGE_SELF, &after), 0);
    assert_true(after.ru_maxrss - before.ru_maxrss < 16 << 10); // KiB; the document has 78 MB
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_any_text),
        cmocka_unit_test(refuses_what_xml_cannot_hold),
        cmocka_unit_test(attributes_by_namespace),
        cmocka_unit_test(elements_by_namespace),
        cmocka_unit_test(walks_nest),
        cmocka_unit_test(texts_are_whole_and_bounded),
        cmocka_unit_test(nothing_but_plain_utf8_xml),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(truncated_at_every_byte),
        cmocka_unit_test(a_million_elements_cost_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
