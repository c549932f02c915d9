// The XML reader and writer: whatever is read as text is written and read back as the same.
#include "fuzz.h"

#include "codec/xml.h"

typedef struct Bytes {
    const uint8_t *p;
    size_t n, piece;
} Bytes;

static bool read_bytes(void *ctx, char *buf, size_t cap, size_t *ret_n, Err *err)
{
    Bytes *b = ctx;
    (void)err;
    *ret_n = MIN(MIN(cap, b->n), b->piece);
    memcpy(buf, b->p, *ret_n);
    b->p += *ret_n;
    b->n -= *ret_n;
    return true;
}

static void check_error(const Err *err)
{
    fuzz_check(err->code == ERR_PROTOCOL || err->code == ERR_TOO_LARGE);
}

static XmlReader *new_reader(Bytes *b)
{
    Err err = ERR_INIT;
    XmlReader *r = NULL;
    fuzz_check(xml_reader_new(read_bytes, b, (XmlLimits){.bytes = 1 << 20, .nodes = 10000, .depth = 32}, &r, &err));
    return r;
}

static void round_trip(const char *text)
{
    Err err = ERR_INIT;
    StrBuf out = STR_BUF(1 << 22);
    char *back = NULL;
    bool more;
    fuzz_check(xml_add_element(&out, "t", text, &err)); // what XML held it can hold
    Bytes b = {(const uint8_t *)out.s, out.len, SIZE_MAX};
    XmlReader *r = new_reader(&b);
    XmlWalk w = xml_walk(r);
    fuzz_check(xml_next(r, &w, &more, &err) && more && xml_is(r, "t"));
    fuzz_check(xml_text(r, 1 << 20, &back, &err) && str_eq(back, text) && xml_finish(r, &err));
    free(back);
    str_clear(&out);
    xml_reader_free(r);
}

// Every other element by its text, the rest by their children.
static bool walk(XmlReader *r, unsigned *count, Err *err)
{
    bool more;
    XmlWalk w = xml_walk(r);
    while (xml_next(r, &w, &more, err)) {
        char *type = NULL, *xsi = NULL, *text = NULL;
        if (!more)
            return true;
        fuzz_check(xml_attribute(r, "type", &type, err) && xml_xsi_type(r, &xsi, err) && *xml_name(r));
        free(type);
        free(xsi);
        if ((*count)++ % 2 == 0) {
            if (!walk(r, count, err))
                return false;
            continue;
        }
        if (!xml_text(r, 1000, &text, err))
            return false;
        round_trip(text);
        free(text);
    }
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    for (unsigned first = 0; first < 2; first++) {
        Err err = ERR_INIT;
        Bytes b = {data, n, first ? SIZE_MAX : 3};
        XmlReader *r = new_reader(&b);
        unsigned count = first;
        if (!walk(r, &count, &err) || !xml_finish(r, &err))
            check_error(&err);
        xml_reader_free(r);
    }
    return 0;
}
