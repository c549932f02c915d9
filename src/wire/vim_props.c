// Bits of requests and answers, and the property collector: RetrievePropertiesEx, page by page.
#include "wire/vim_parts.h"

#include "base/num.h"

bool vim_add_moref(StrBuf *b, const char *element, const char *type, const char *moref, Err *err)
{
    return str_addf(b, err, "<%s type=\"", element) && xml_add_text(b, type, err) && str_add(b, "\">", err) &&
        xml_add_text(b, moref, err) && str_addf(b, err, "</%s>", element);
}

bool vim_read_text(XmlReader *r, char **ret, Err *err)
{
    char *text = NULL;
    if (!xml_text(r, VIM_TEXT_MAX, &text, err))
        return false;
    free(*ret);
    *ret = text;
    return true;
}

// A short text into a buffer: numbers and words.
static bool read_word(XmlReader *r, char **ret, Err *err)
{
    return xml_text(r, 64, ret, err);
}

bool vim_read_bool(XmlReader *r, bool *ret, Err *err)
{
    cleanup_free char *text = NULL;
    if (!read_word(r, &text, err))
        return false;
    bool yes = str_eq(text, "true") || str_eq(text, "1");
    if (!yes && !str_eq(text, "false") && !str_eq(text, "0"))
        return err_set(err, ERR_PROTOCOL, "'%.64s' where there should be true or false", text);
    *ret = yes;
    return true;
}

bool vim_read_said(XmlReader *r, VimSaid *ret, Err *err)
{
    bool yes = false;
    if (!vim_read_bool(r, &yes, err))
        return false;
    *ret = yes ? VIM_YES : VIM_NO;
    return true;
}

static bool read_number(XmlReader *r, uint64_t max, bool *ret_negative, uint64_t *ret, Err *err)
{
    cleanup_free char *text = NULL;
    Err ignored = ERR_INIT;
    if (!read_word(r, &text, err))
        return false;
    *ret_negative = text[0] == '-';
    if (!num_u64(text + *ret_negative, 0, max, ret, &ignored))
        return err_set(err, ERR_PROTOCOL, "'%.64s' where there should be a number", text);
    return true;
}

bool vim_read_u64(XmlReader *r, uint64_t *ret, Err *err)
{
    bool negative = false;
    uint64_t n = 0;
    if (!read_number(r, INT64_MAX, &negative, &n, err)) // xsd:long
        return false;
    if (negative && n > 0)
        return err_set(err, ERR_PROTOCOL, "a negative number where there can be none");
    *ret = n;
    return true;
}

bool vim_read_i32(XmlReader *r, int32_t *ret, Err *err)
{
    bool negative = false;
    uint64_t n = 0;
    if (!read_number(r, INT32_MAX, &negative, &n, err))
        return false;
    *ret = negative ? -(int32_t)n : (int32_t)n;
    return true;
}

// ---- requests

bool vim_add_paths(StrBuf *b, const VimPaths *sets, size_t n, Err *err)
{
    for (size_t i = 0; i < n; i++) {
        if (!str_add(b, "<propSet>", err) || !xml_add_element(b, "type", sets[i].type, err))
            return false;
        for (const char *const *p = sets[i].paths; *p; p++)
            if (!xml_add_element(b, "pathSet", *p, err))
                return false;
        if (!str_add(b, "</propSet>", err))
            return false;
    }
    return true;
}

// ---- answers

typedef struct Page {
    const VimObjects *objects;
    char *token; // of the next page; NULL: there is none
} Page;

// <name> comes before <val>.
static bool read_property(const VimObjects *o, XmlReader *r, Err *err)
{
    cleanup_free char *name = NULL;
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(r, "name") && !vim_read_text(r, &name, err))
            return false;
        if (!xml_is(r, "val"))
            continue;
        if (!name)
            return err_set(err, ERR_PROTOCOL, "a property without a name before its value");
        if (!o->property(o->ctx, name, r, err))
            return err_context(err, "%.80s", name);
    }
    return false;
}

static bool read_reference(const VimObjects *o, XmlReader *r, Err *err)
{
    cleanup_free char *type = NULL, *moref = NULL;
    if (!xml_attribute(r, "type", &type, err) || !xml_text(r, VIM_MOREF_MAX, &moref, err))
        return false;
    if (!type || !*moref)
        return err_set(err, ERR_PROTOCOL, "an object without a reference");
    return !o->begin || o->begin(o->ctx, type, moref, err);
}

// missingSet (what the user may not read) is passed over: the property is simply not there.
static bool read_object(const VimObjects *o, XmlReader *r, Err *err)
{
    bool more, begun = false;
    XmlWalk w = xml_walk(r);
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return begun ? !o->end || o->end(o->ctx, err) : err_set(err, ERR_PROTOCOL, "an object without a reference");
        if (xml_is(r, "obj")) {
            if (begun || !read_reference(o, r, err))
                return err_set(err, ERR_PROTOCOL, "an object with two references"); // the first error wins
            begun = true;
        } else if (xml_is(r, "propSet")) {
            if (!begun)
                return err_set(err, ERR_PROTOCOL, "properties before the reference of their object");
            if (!read_property(o, r, err))
                return false;
        }
    }
    return false;
}

static bool read_page(Page *p, XmlReader *r, Err *err)
{
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(r, "token") && !vim_read_text(r, &p->token, err))
            return false;
        if (xml_is(r, "objects") && !read_object(p->objects, r, err))
            return false;
    }
    return false;
}

// No returnval: nothing was found.
static bool on_page(void *ctx, XmlReader *r, Err *err)
{
    Page *p = ctx;
    free(mem_take(p->token)); // of an answer that broke off
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(r, "returnval") && !read_page(p, r, err))
            return false;
    }
    return false;
}

static bool continue_page(Vim *v, Page *p, Err *err)
{
    StrBuf b = STR_BUF(VIM_REQUEST_MAX);
    bool fine = xml_add_element(&b, "token", p->token, err);
    free(mem_take(p->token));
    // Not repeated: whether the server has moved on to the next page is not to be known
    VimCall c = {.method = "ContinueRetrievePropertiesEx",
                 .type = "PropertyCollector",
                 .moref = v->property_collector,
                 .arguments = b.s,
                 .on_reply = on_page,
                 .ctx = p,
                 .bound = true};
    fine = fine && vim_call(v, &c, err);
    str_clear(&b);
    return fine;
}

// set: XML of the objectSet.
static bool retrieve(Vim *v, const char *set, unsigned max_objects, bool hands_on, const VimPaths *sets, size_t n,
                     const VimObjects *objects, Err *err)
{
    Page p = {.objects = objects};
    StrBuf b = STR_BUF(VIM_REQUEST_MAX);
    bool fine = str_add(&b, "<specSet>", err) && vim_add_paths(&b, sets, n, err) && str_add(&b, set, err) &&
        str_add(&b, "</specSet>", err) &&
        (max_objects == 0 ? str_add(&b, "<options/>", err)
                          : str_addf(&b, err, "<options><maxObjects>%u</maxObjects></options>", max_objects));
    VimCall c = {.method = "RetrievePropertiesEx",
                 .type = "PropertyCollector",
                 .moref = v->property_collector,
                 .arguments = b.s,
                 .on_reply = on_page,
                 .ctx = &p,
                 .repeats = true,
                 .hands_on = hands_on,
                 .bound = hands_on};
    fine = fine && vim_call(v, &c, err);
    while (fine && p.token && *p.token)
        fine = continue_page(v, &p, err);
    free(p.token);
    str_clear(&b);
    return fine;
}

bool vim_properties(Vim *v, const char *type, const char *moref, const char *select, const VimPaths *sets, size_t n,
                    const VimObjects *objects, Err *err)
{
    StrBuf b = STR_BUF(VIM_REQUEST_MAX);
    bool fine = str_add(&b, "<objectSet>", err) && vim_add_moref(&b, "obj", type, moref, err) &&
        (!select || (str_add(&b, "<skip>false</skip>", err) && str_add(&b, select, err))) &&
        str_add(&b, "</objectSet>", err) && retrieve(v, b.s, 0, false, sets, n, objects, err);
    str_clear(&b);
    return fine;
}

static bool create_view(Vim *v, const char *const *types, char **ret, Err *err)
{
    StrBuf b = STR_BUF(VIM_REQUEST_MAX);
    bool fine = vim_add_moref(&b, "container", "Folder", v->root_folder, err);
    for (; fine && *types; types++)
        fine = xml_add_element(&b, "type", *types, err);
    fine = fine && xml_add_element(&b, "recursive", "true", err);
    VimCall c = {.method = "CreateContainerView",
                 .type = "ViewManager",
                 .moref = v->view_manager,
                 .arguments = b.s,
                 .repeats = true};
    fine = fine && vim_call_text(v, c, ret, err);
    str_clear(&b);
    return fine;
}

static bool walk_view(Vim *v, const char *view, const VimPaths *sets, size_t n, const VimObjects *objects, Err *err)
{
    StrBuf b = STR_BUF(VIM_REQUEST_MAX);
    bool fine = str_add(&b, "<objectSet>", err) && vim_add_moref(&b, "obj", "ContainerView", view, err) &&
        str_add(&b,
                "<skip>true</skip><selectSet xsi:type=\"TraversalSpec\"><type>ContainerView</type><path>view</path>"
                "<skip>false</skip></selectSet></objectSet>",
                err) &&
        retrieve(v, b.s, VIM_PAGE, true, sets, n, objects, err);
    str_clear(&b);
    return fine;
}

bool vim_view(Vim *v, const char *const *types, const VimPaths *sets, size_t n, const VimObjects *objects, Err *err)
{
    cleanup_free char *view = NULL;
    if (!create_view(v, types, &view, err))
        return false;
    bool fine = walk_view(v, view, sets, n, objects, err);
    VimCall destroy = {.method = "DestroyView", .type = "ContainerView", .moref = view, .repeats = true};
    vim_call_anyway(v, &destroy);
    return fine;
}
