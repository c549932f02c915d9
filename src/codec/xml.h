// XML 1.0, as much as SOAP needs: text and elements to bytes, and a bounded reader over libxml2's xmlTextReader. No
// network, no DTD, no entities but the five of XML itself and numbers, UTF-8 whatever the document declares.
#pragma once

#include "base/str.h"

// ---- writing: appended to b. ERR_INVALID: no UTF-8, or a character that XML 1.0 cannot hold.

bool xml_add_text(StrBuf *b, const char *text, Err *err) must_check; // escaped; right within quotes, too
// <name>text</name>. name is one of ours: not checked.
bool xml_add_element(StrBuf *b, const char *name, const char *text, Err *err) must_check;

// ---- reading: a walk forward, one element after the other, never back. Elements are told by their local name; where
// the namespace matters, there is xml_is_in(). All errors are ERR_PROTOCOL (not well-formed, ends too early, a DTD, no
// sense), ERR_TOO_LARGE (a limit), ERR_NO_MEMORY, or what `read` failed with. A failed reader fails for ever.

typedef struct XmlReader XmlReader;

// Up to cap bytes into buf; *ret_n 0: the end.
typedef bool (*XmlRead)(void *ctx, char *buf, size_t cap, size_t *ret_n, Err *err);

typedef struct XmlLimits { // 0: no limit but libxml2's (text of one node 10 MB, 256 levels)
    uint64_t bytes;
    uint64_t nodes;
    int depth;
} XmlLimits;

// ctx is borrowed until xml_reader_free(). Memory is in proportion to one element, not to the document.
bool xml_reader_new(XmlRead read, void *ctx, XmlLimits limits, XmlReader **ret, Err *err) must_check;
void xml_reader_free(XmlReader *r); // NULL is fine

// A walk over the child elements of one element, which may be done within another:
//     XmlWalk w = xml_walk(r);
//     while (xml_next(r, &w, &more, err) && more)
//         if (xml_is(r, "name")) …
// What was not read of a child is skipped. Before the first xml_next() of all, the current element is the document.
typedef struct XmlWalk {
    int depth;
    bool ended;
} XmlWalk;
XmlWalk xml_walk(const XmlReader *r); // of the current element
// To the next child element, which becomes the current one; *ret_more false: there are no more.
bool xml_next(XmlReader *r, XmlWalk *w, bool *ret_more, Err *err) must_check;
// The rest of the document, which must be well-formed.
bool xml_finish(XmlReader *r, Err *err) must_check;

const char *xml_name(const XmlReader *r); // local name of the current element; borrowed until the next step
bool xml_is(const XmlReader *r, const char *local_name);
bool xml_is_in(const XmlReader *r, const char *namespace_uri, const char *local_name);
// The text of the current element, whole; up to max bytes, else ERR_TOO_LARGE. ERR_PROTOCOL: it has child elements. The
// caller's.
bool xml_text(XmlReader *r, size_t max, char **ret, Err *err) must_check;
// The value of an attribute without a namespace, or the local part of xsi:type, whatever the prefixes. *ret NULL: there
// is none. The caller's.
bool xml_attribute(const XmlReader *r, const char *name, char **ret, Err *err) must_check;
bool xml_xsi_type(const XmlReader *r, char **ret, Err *err) must_check;
