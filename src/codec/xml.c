#include "codec/xml.h"

#include <libxml/xmlreader.h>
#include <pthread.h>

#define XSI "http://www.w3.org/2001/XMLSchema-instance"

// ---- writing

// XML 1.0, 2.2: of what is UTF-8, all but most control characters, U+FFFE and U+FFFF. (Surrogates are no UTF-8.)
static bool is_xml_text(const char *s)
{
    if (!str_is_utf8(s, strlen(s)))
        return false;
    for (const unsigned char *p = (const unsigned char *)s; *p; p++)
        if ((*p < 0x20 && !strchr("\t\n\r", *p)) || (p[0] == 0xef && p[1] == 0xbf && p[2] >= 0xbe))
            return false;
    return true;
}

static const char *escape_of(char c)
{
    switch (c) {
    case '&': return "&amp;";
    case '<': return "&lt;";
    case '>': return "&gt;";
    case '"': return "&quot;";
    case '\'': return "&apos;";
    case '\r': return "&#13;"; // else read back as a line feed
    case '\n': return "&#10;"; // else read back as a blank in an attribute
    case '\t': return "&#9;";
    default: return NULL;
    }
}

bool xml_add_text(StrBuf *b, const char *text, Err *err)
{
    if (!is_xml_text(text))
        return err_set(err, ERR_INVALID, "a text that XML cannot hold (no UTF-8, or with control characters)");
    const char *from = text;
    for (const char *p = text; *p; p++) {
        const char *escape = escape_of(*p);
        if (!escape)
            continue;
        if (!str_add_bytes(b, from, (size_t)(p - from), err) || !str_add(b, escape, err))
            return false;
        from = p + 1;
    }
    return str_add(b, from, err);
}

bool xml_add_element(StrBuf *b, const char *name, const char *text, Err *err)
{
    return str_addf(b, err, "<%s>", name) && xml_add_text(b, text, err) && str_addf(b, err, "</%s>", name);
}

// ---- reading

struct XmlReader {
    xmlTextReader *xml;
    XmlRead read;
    void *ctx;
    XmlLimits limits;
    uint64_t bytes, nodes;
    unsigned declared; // bytes of DECLARATION seen at the end of what was read
    bool ended;
    Err failed; // the first error, of `read` or of our own
};

// A DTD is refused where it begins, before libxml2 looks at what it declares. (The same bytes in a comment or a CDATA
// section are refused, too: SOAP has none of either.)
static const char DECLARATION[] = "<!D";

static bool has_declaration(XmlReader *r, const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (p[i] == DECLARATION[r->declared])
            r->declared++;
        else
            r->declared = p[i] == DECLARATION[0];
        if (r->declared == sizeof(DECLARATION) - 1)
            return true;
    }
    return false;
}

static int on_read(void *ctx, char *buf, int cap)
{
    XmlReader *r = ctx;
    size_t n = 0;
    if (r->failed.code != ERR_NONE || cap <= 0)
        return -1;
    if (!r->read(r->ctx, buf, (size_t)cap, &n, &r->failed))
        return -1;
    r->bytes += n;
    if (r->limits.bytes && r->bytes > r->limits.bytes)
        (void)err_set(&r->failed, ERR_TOO_LARGE, "an XML document above %llu bytes",
                      (unsigned long long)r->limits.bytes);
    else if (has_declaration(r, buf, n))
        (void)err_set(&r->failed, ERR_PROTOCOL, "an XML document with a DTD");
    return r->failed.code == ERR_NONE ? (int)n : -1;
}

#if LIBXML_VERSION >= 21200
typedef const xmlError *ReportedError;
#else
typedef xmlErrorPtr ReportedError;
#endif

static void on_error(void *ctx, ReportedError e)
{
    XmlReader *r = ctx;
    if (e->level < XML_ERR_ERROR)
        return; // a warning
    int length = e->message ? (int)strcspn(e->message, "\r\n") : 0;
    if (e->code == XML_ERR_NO_MEMORY)
        (void)err_no_memory(&r->failed);
    else
        (void)err_set(&r->failed, ERR_PROTOCOL, "not well-formed XML, line %d: %.*s", e->line, MIN(length, 200),
                      length ? e->message : "");
    str_make_utf8(r->failed.details); // it quotes the document
}

// What libxml2 says outside of a document's own handler would go to stderr.
static void on_talk(void *ctx, const char *fmt, ...)
{
    (void)ctx, (void)fmt;
}

static pthread_once_t global_once = PTHREAD_ONCE_INIT;

bool xml_reader_new(XmlRead read, void *ctx, XmlLimits limits, XmlReader **ret, Err *err)
{
    (void)pthread_once(&global_once, xmlInitParser); // cannot fail with a valid control
    xmlSetGenericErrorFunc(NULL, on_talk); // of this thread
    XmlReader *r = mem_calloc(1, sizeof(*r), err);
    if (!r)
        return false;
    *r = (XmlReader){.read = read, .ctx = ctx, .limits = limits};
    const int options = XML_PARSE_NONET | XML_PARSE_NOWARNING | XML_PARSE_COMPACT | XML_PARSE_IGNORE_ENC;
    r->xml = xmlReaderForIO(on_read, NULL, r, NULL, "UTF-8", options);
    if (!r->xml) {
        bool fine = r->failed.code != ERR_NONE ? false : err_no_memory(err);
        if (r->failed.code != ERR_NONE && err->code == ERR_NONE)
            *err = r->failed;
        free(r);
        return fine;
    }
    xmlTextReaderSetStructuredErrorHandler(r->xml, on_error, r);
    *ret = r;
    return true;
}

void xml_reader_free(XmlReader *r)
{
    if (!r)
        return;
    xmlFreeTextReader(r->xml);
    free(r);
}

static bool fail(XmlReader *r, Err *err)
{
    if (err->code == ERR_NONE)
        *err = r->failed;
    return false;
}

static bool check_node(XmlReader *r, int type)
{
    r->nodes++;
    if (r->limits.nodes && r->nodes > r->limits.nodes)
        return err_set(&r->failed, ERR_TOO_LARGE, "an XML document of more than %llu nodes",
                       (unsigned long long)r->limits.nodes);
    if (r->limits.depth && xmlTextReaderDepth(r->xml) > r->limits.depth)
        return err_set(&r->failed, ERR_TOO_LARGE, "an XML document of more than %d levels", r->limits.depth);
    if (type == XML_READER_TYPE_DOCUMENT_TYPE || type == XML_READER_TYPE_ENTITY_REFERENCE)
        return err_set(&r->failed, ERR_PROTOCOL, "an XML document with a DTD or entities");
    return true;
}

// To the next node of any sort; r->ended at the end of the document.
static bool step(XmlReader *r, Err *err)
{
    if (r->failed.code != ERR_NONE)
        return fail(r, err);
    int more = xmlTextReaderRead(r->xml);
    if (more < 0 && r->failed.code == ERR_NONE)
        (void)err_set(&r->failed, ERR_PROTOCOL, "not well-formed XML");
    r->ended = more == 0;
    // libxml2 goes on after some errors that it reports, a namespace without a declaration for one
    if (r->failed.code != ERR_NONE || (more > 0 && !check_node(r, xmlTextReaderNodeType(r->xml))))
        return fail(r, err);
    return true;
}

XmlWalk xml_walk(const XmlReader *r)
{
    if (r->nodes == 0)
        return (XmlWalk){.depth = -1};
    return (XmlWalk){.depth = xmlTextReaderDepth(r->xml), .ended = xmlTextReaderIsEmptyElement(r->xml) == 1};
}

bool xml_next(XmlReader *r, XmlWalk *w, bool *ret_more, Err *err)
{
    while (!w->ended) {
        if (!step(r, err))
            return false;
        if (r->ended) {
            w->ended = true;
            break;
        }
        int type = xmlTextReaderNodeType(r->xml), depth = xmlTextReaderDepth(r->xml);
        if (type == XML_READER_TYPE_ELEMENT && depth == w->depth + 1) {
            *ret_more = true;
            return true;
        }
        w->ended = type == XML_READER_TYPE_END_ELEMENT && depth <= w->depth;
    }
    *ret_more = false;
    return true;
}

bool xml_finish(XmlReader *r, Err *err)
{
    while (!r->ended)
        if (!step(r, err))
            return false;
    return true;
}

const char *xml_name(const XmlReader *r)
{
    const xmlChar *name = xmlTextReaderConstLocalName(r->xml);
    return name ? (const char *)name : "";
}

bool xml_is(const XmlReader *r, const char *local_name)
{
    return str_eq(xml_name(r), local_name);
}

bool xml_is_in(const XmlReader *r, const char *namespace_uri, const char *local_name)
{
    const xmlChar *uri = xmlTextReaderConstNamespaceUri(r->xml);
    return uri && str_eq((const char *)uri, namespace_uri) && xml_is(r, local_name);
}

static bool gather_text(XmlReader *r, StrBuf *b, Err *err)
{
    int depth = xmlTextReaderDepth(r->xml);
    if (xmlTextReaderIsEmptyElement(r->xml) == 1)
        return true;
    for (;;) {
        if (!step(r, err))
            return false;
        int type = xmlTextReaderNodeType(r->xml);
        if (r->ended || (type == XML_READER_TYPE_END_ELEMENT && xmlTextReaderDepth(r->xml) <= depth))
            return true;
        if (type == XML_READER_TYPE_ELEMENT) {
            (void)err_set(&r->failed, ERR_PROTOCOL, "an XML element <%s> where there should be text", xml_name(r));
            return fail(r, err);
        }
        const xmlChar *value = xmlTextReaderConstValue(r->xml);
        if (type != XML_READER_TYPE_COMMENT && type != XML_READER_TYPE_PROCESSING_INSTRUCTION && value &&
            !str_add(b, (const char *)value, &r->failed))
            return fail(r, err);
    }
}

bool xml_text(XmlReader *r, size_t max, char **ret, Err *err)
{
    StrBuf b = STR_BUF(max);
    if (!gather_text(r, &b, err) || !str_add(&b, "", err)) {
        str_clear(&b);
        return false;
    }
    *ret = b.s;
    return true;
}

// Into memory that free() takes.
static bool take(xmlChar *value, const char *from, char **ret, Err *err)
{
    *ret = value ? mem_strdup(from, err) : NULL;
    bool fine = !value || *ret;
    xmlFree(value);
    return fine;
}

bool xml_attribute(const XmlReader *r, const char *name, char **ret, Err *err)
{
    xmlChar *value = xmlTextReaderGetAttribute(r->xml, (const xmlChar *)name);
    return take(value, (const char *)value, ret, err);
}

bool xml_xsi_type(const XmlReader *r, char **ret, Err *err)
{
    xmlChar *value = xmlTextReaderGetAttributeNs(r->xml, (const xmlChar *)"type", (const xmlChar *)XSI);
    const char *colon = value ? strchr((const char *)value, ':') : NULL;
    return take(value, colon ? colon + 1 : (const char *)value, ret, err);
}
