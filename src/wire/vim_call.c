// One SOAP call: request, answer, fault, and when to try again.
#include "wire/vim_parts.h"

#include "base/clock.h"

#include <poll.h>
#include <stdio.h>

#define SOAP "http://schemas.xmlsoap.org/soap/envelope/"
#define TRIES 3
#define PAUSE_MS 500 // before the second try; twice that before the third, and so on
#define PAUSE_MAX_MS 5000
#define ANYWAY_MS 5000
// A page of 200 VMs with a hundred devices each is 40 MB; a million changed areas are 90 MB. Nothing of it is kept.
#define REPLY_LIMITS ((XmlLimits){.bytes = UINT64_C(4) << 30, .nodes = UINT64_C(200000000), .depth = 128})

static bool add_request(StrBuf *b, const VimCall *c, Err *err)
{
    return str_add(b,
                   "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                   "<soapenv:Envelope xmlns:soapenv=\"" SOAP "\" xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\" "
                   "xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body>",
                   err) &&
        str_addf(b, err, "<%s xmlns=\"" VIM_NAMESPACE "\">", c->method) &&
        vim_add_moref(b, "_this", c->type, c->moref, err) && str_add(b, c->arguments ? c->arguments : "", err) &&
        str_addf(b, err, "</%s></soapenv:Body></soapenv:Envelope>", c->method);
}

// ---- faults

void vim_fault_clear(Vim *v)
{
    v->fault = (VimFault){0};
    free(mem_take(v->fault_task));
}

const VimFault *vim_fault(const Vim *v)
{
    return &v->fault;
}

static const struct {
    const char *type;
    ErrCode code;
} fault_codes[] = {
    {"InvalidLogin", ERR_UNAUTHORIZED},
    {"NotAuthenticated", ERR_UNAUTHORIZED},
    {"NoPermission", ERR_FORBIDDEN},
    {"ManagedObjectNotFound", ERR_NOT_FOUND},
    {"NotFound", ERR_NOT_FOUND},
    {"TaskInProgress", ERR_BUSY},
    {"ResourceInUse", ERR_BUSY},
    {"ConcurrentAccess", ERR_BUSY},
    {"FileLocked", ERR_BUSY},
    {"InvalidState", ERR_CONFLICT},
    {"InvalidPowerState", ERR_CONFLICT},
    {"InvalidSnapshotFormat", ERR_CONFLICT},
    {"InvalidVmConfig", ERR_CONFLICT},
    {"InvalidVmState", ERR_CONFLICT},
    {"SnapshotFault", ERR_CONFLICT},
    {"ApplicationQuiesceFault", ERR_CONFLICT},
    {"FilesystemQuiesceFault", ERR_CONFLICT},
    {"ToolsUnavailable", ERR_CONFLICT},
    {"TooManySnapshotLevels", ERR_CONFLICT},
    {"MultipleSnapshotsNotSupported", ERR_CONFLICT},
    {"FileFault", ERR_CONFLICT},
    {"FileNotFound", ERR_CONFLICT},
    {"CannotAccessFile", ERR_CONFLICT},
    {"GenericVmConfigFault", ERR_CONFLICT},
    {"VmConfigFault", ERR_CONFLICT},
    {"NotSupported", ERR_UNSUPPORTED},
    {"NotImplemented", ERR_UNSUPPORTED},
    {"MethodNotFound", ERR_UNSUPPORTED},
    {"MethodDisabled", ERR_UNSUPPORTED},
    {"RestrictedVersion", ERR_UNSUPPORTED},
    {"NoDiskSpace", ERR_NO_SPACE},
    {"InsufficientResourcesFault", ERR_NO_SPACE},
    {"InvalidArgument", ERR_INVALID},
    {"InvalidRequest", ERR_INVALID},
    {"InvalidName", ERR_INVALID},
    {"InvalidType", ERR_INVALID},
    {"InvalidProperty", ERR_INVALID},
    {"DuplicateName", ERR_EXISTS},
    {"RequestCanceled", ERR_CANCELLED},
    {"Timedout", ERR_TIMEOUT},
    {"HostNotConnected", ERR_UNAVAILABLE},
    {"HostNotReachable", ERR_UNAVAILABLE},
    {"HostCommunication", ERR_UNAVAILABLE},
    {"HostConnectFault", ERR_UNAVAILABLE},
};

static ErrCode fault_code(const char *type)
{
    for (size_t i = 0; i < ARRAY_LEN(fault_codes); i++)
        if (str_eq(fault_codes[i].type, type))
            return fault_codes[i].code;
    return ERR_PROTOCOL;
}

bool vim_fault_fail(const Vim *v, const char *what, Err *err)
{
    const VimFault *f = &v->fault;
    ErrCode code = fault_code(f->type);
    (void)err_set(err, code, "%s%s%s%s%s%s; %s at %s", f->type, *f->property ? " (" : "", f->property,
                  *f->property ? ")" : "", *f->text ? ": " : "", f->text, what, v->host);
    // The codes' own titles speak of tokens
    return code == ERR_UNAUTHORIZED ? err_title(err, "not logged in")
        : code == ERR_FORBIDDEN     ? err_title(err, "no permission")
                                    : false;
}

static void copy_text(char *to, size_t cap, const char *from)
{
    (void)snprintf(to, cap, "%s", from); // cut to what fits,
    str_make_utf8(to);                   // which may be within a character
}

// "faultMessage": keys and texts, among which a failed quiescing shows itself where the type is a general one.
static bool read_messages(Vim *v, XmlReader *r, Err *err)
{
    cleanup_free char *text = NULL;
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (!xml_is(r, "key") && !xml_is(r, "message"))
            continue;
        if (!vim_read_text(r, &text, err))
            return false;
        if (strcasestr(text, "quiesc"))
            v->fault.quiescing = true;
    }
    return false;
}

bool vim_fault_read(Vim *v, XmlReader *r, Err *err)
{
    cleanup_free char *type = NULL, *text = NULL;
    size_t n = strlen(xml_name(r));
    if (!xml_xsi_type(r, &type, err))
        return false;
    if (type)
        copy_text(v->fault.type, sizeof(v->fault.type), type);
    else if (str_ends(xml_name(r), "Fault") &&
             n - 5 < sizeof(v->fault.type)) // <InvalidLoginFault>, without an xsi:type
        (void)snprintf(v->fault.type, sizeof(v->fault.type), "%.*s", (int)(n - 5), xml_name(r));
    v->fault.quiescing = strstr(v->fault.type, "Quiesce") != NULL || str_eq(v->fault.type, "ToolsUnavailable");
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        bool is_property =
            xml_is(r, "invalidProperty") || xml_is(r, "privilegeId") || xml_is(r, "file") || xml_is(r, "name");
        if (xml_is(r, "task")) {
            if (!vim_read_text(r, &v->fault_task, err))
                return false;
        } else if (is_property) {
            if (!vim_read_text(r, &text, err))
                return false;
            copy_text(v->fault.property, sizeof(v->fault.property), text);
        } else if (xml_is(r, "faultMessage") && !read_messages(v, r, err)) {
            return false;
        }
    }
    return false;
}

static bool read_detail(Vim *v, XmlReader *r, Err *err)
{
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (!*v->fault.type && !vim_fault_read(v, r, err))
            return false;
    }
    return false;
}

static bool read_fault(Vim *v, XmlReader *r, Err *err)
{
    cleanup_free char *text = NULL;
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more) {
            if (!*v->fault.type)
                copy_text(v->fault.type, sizeof(v->fault.type), "Fault");
            return true;
        }
        if (xml_is(r, "detail") && !read_detail(v, r, err))
            return false;
        if (xml_is(r, "faultstring")) {
            if (!vim_read_text(r, &text, err))
                return false;
            copy_text(v->fault.text, sizeof(v->fault.text), text);
            if (strcasestr(text, "quiesc"))
                v->fault.quiescing = true;
        }
    }
    return false;
}

// ---- answers

static bool read_body(Vim *v, const VimCall *c, XmlReader *r, bool *ret_found, Err *err)
{
    size_t n = strlen(c->method);
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (*ret_found)
            continue;
        if (xml_is_in(r, SOAP, "Fault")) {
            if (!read_fault(v, r, err))
                return false;
            *ret_found = true;
        } else if (str_starts(xml_name(r), c->method) && str_eq(xml_name(r) + n, "Response")) {
            v->begun = true;
            if (c->on_reply && !c->on_reply(c->ctx, r, err))
                return false;
            *ret_found = true;
        }
    }
    return false;
}

static bool read_envelope(Vim *v, const VimCall *c, XmlReader *r, Err *err)
{
    bool more, found = false;
    XmlWalk document = xml_walk(r);
    if (!xml_next(r, &document, &more, err))
        return false;
    if (!more || !xml_is_in(r, SOAP, "Envelope"))
        return err_set(err, ERR_PROTOCOL, "no SOAP envelope");
    XmlWalk envelope = xml_walk(r);
    for (;;) {
        if (!xml_next(r, &envelope, &more, err))
            return false;
        if (!more)
            break;
        if (xml_is_in(r, SOAP, "Body") && !read_body(v, c, r, &found, err))
            return false;
    }
    if (!found)
        return err_set(err, ERR_PROTOCOL, "neither a fault nor %sResponse in it", c->method);
    return xml_finish(r, err);
}

static bool read_http(void *ctx, char *buf, size_t cap, size_t *ret_n, Err *err)
{
    return http_client_read(ctx, buf, cap, ret_n, err);
}

// The server's cookie, if it sets one: as it came, up to the first semicolon.
static bool take_cookie(Vim *v, Err *err)
{
    static const char name[] = "vmware_soap_session=";
    const char *value;
    for (size_t i = 0; (value = http_client_header(v->http, "Set-Cookie", i)); i++) {
        size_t n = strcspn(value, ";");
        if (!str_starts(value, name) || n >= SECRET_MAX)
            continue;
        char cookie[SECRET_MAX + 1];
        (void)snprintf(cookie, sizeof(cookie), "%.*s", (int)n, value);
        bool fine = str_has_no_controls(cookie) ? secret_set(&v->cookie, cookie, err)
                                                : err_set(err, ERR_PROTOCOL, "a session cookie that is no text");
        explicit_bzero(cookie, sizeof(cookie));
        if (!fine)
            return false;
    }
    return true;
}

static bool read_answer(Vim *v, const VimCall *c, int status, Err *err)
{
    XmlReader *r = NULL;
    if (status == 502 || status == 503 || status == 504)
        return err_set(err, ERR_UNAVAILABLE, "HTTP status %d", status);
    if (status != 200 && status != 500)
        return err_set(err, ERR_PROTOCOL, "HTTP status %d", status);
    if (!take_cookie(v, err) || !xml_reader_new(read_http, v->http, REPLY_LIMITS, &r, err))
        return false;
    bool fine = read_envelope(v, c, r, err);
    xml_reader_free(r);
    if (fine && (status == 500) != (*v->fault.type != '\0'))
        return err_set(err, ERR_PROTOCOL, "HTTP status %d with %s", status, *v->fault.type ? "a fault" : "no fault");
    return fine;
}

// Once. False with v->fault set: the server refused.
static bool exchange(Vim *v, const VimCall *c, const char *body, Err *err)
{
    int status;
    HttpRequest r = {.method = "POST",
                     .url = v->url,
                     .body = body,
                     .content_type = "text/xml; charset=utf-8",
                     .header = v->action,
                     // A session that is logged in refuses to log in again: one may be that whose answer was cut off
                     .cookie = str_eq(c->method, "Login") ? NULL : &v->cookie,
                     .once = !c->repeats,
                     .timeout_ms = v->timeout_ms + c->wait_ms,
                     .cancel = v->cancel};
    vim_fault_clear(v);
    v->begun = false;
    if (!http_client_open(v->http, &r, &status, err))
        return err_context(err, "%s", c->method);
    bool fine = read_answer(v, c, status, err);
    if (http_client_shown(v->http))
        v->shown = *http_client_shown(v->http);
    http_client_end(v->http);
    if (!fine) {
        vim_fault_clear(v); // of an answer that cannot be believed
        return err_context(err, "the answer of %s to %s", v->host, c->method);
    }
    v->last_ms = clock_mono_ms();
    return !*v->fault.type || vim_fault_fail(v, c->method, err);
}

void vim_pause(Vim *v, int ms)
{
    int64_t end = clock_mono_ms() + ms;
    for (int64_t left = ms; left > 0 && !(v->cancel && atomic_load(v->cancel)); left = end - clock_mono_ms())
        (void)poll(NULL, 0, (int)MIN(left, 50)); // nothing tells when a server is back
}

static bool may_repeat(const Vim *v, const VimCall *c, const Err *err)
{
    bool unclear = !*v->fault.type && (err->code == ERR_UNAVAILABLE || err->code == ERR_TIMEOUT);
    return unclear && c->repeats && !(c->hands_on && v->begun);
}

// With a session that has ended: in a new one, once.
static bool exchange_logged_in(Vim *v, const VimCall *c, const char *body, Err *err)
{
    if (exchange(v, c, body, err))
        return true;
    if (!str_eq(v->fault.type, "NotAuthenticated") || v->no_login)
        return false;
    err_clear(err);
    if (!vim_login(v, err))
        return err_context(err, "the session had ended");
    if (!c->bound)
        return exchange(v, c, body, err);
    return err_set(err, ERR_UNAVAILABLE, "the session of %s had ended; there is a new one", v->host);
}

static bool call_with(Vim *v, const VimCall *c, const char *body, Err *err)
{
    int64_t begun = clock_mono_ms(), deadline = begun + v->timeout_ms + c->wait_ms;
    unsigned logins = v->logins;
    for (int i = 1;; i++) {
        if (exchange_logged_in(v, c, body, err))
            return true;
        bool gone = c->bound && v->logins != logins; // what it is bound to
        int pause = MIN(i * PAUSE_MS, PAUSE_MAX_MS);
        int64_t then = clock_mono_ms() + pause;
        bool patient = err->code == ERR_UNAVAILABLE && then < begun + v->patience_ms;
        if (gone || !may_repeat(v, c, err) || ((i >= TRIES || then >= deadline) && !patient))
            return false;
        vim_pause(v, pause);
        err_clear(err);
    }
}

bool vim_call(Vim *v, const VimCall *c, Err *err)
{
    // In one piece, which is wiped: Login's holds the password
    StrBuf body = STR_BUF(VIM_REQUEST_MAX);
    body.cap = strlen(c->arguments ? c->arguments : "") + 4096;
    body.s = mem_calloc(1, body.cap, err);
    bool fine = body.s && add_request(&body, c, err) && call_with(v, c, body.s, err);
    if (body.s)
        explicit_bzero(body.s, body.cap);
    str_clear(&body);
    return fine;
}

void vim_call_anyway(Vim *v, const VimCall *c)
{
    const atomic_bool *cancel = v->cancel;
    VimFault fault = v->fault;
    char *fault_task = mem_take(v->fault_task);
    bool no_login = v->no_login;
    int timeout_ms = v->timeout_ms, patience_ms = v->patience_ms;
    Err ignored = ERR_INIT;
    v->cancel = NULL;
    v->patience_ms = 0;
    v->timeout_ms = MIN(timeout_ms, ANYWAY_MS);
    v->no_login = true; // no new session for this
    bool fine = vim_call(v, c, &ignored);
    (void)fine; // best effort
    vim_fault_clear(v);
    v->no_login = no_login;
    v->timeout_ms = timeout_ms;
    v->patience_ms = patience_ms;
    v->cancel = cancel;
    v->fault = fault;
    v->fault_task = fault_task;
}

static bool on_text(void *ctx, XmlReader *r, Err *err)
{
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(r, "returnval"))
            return vim_read_text(r, ctx, err);
    }
    return false;
}

bool vim_call_text(Vim *v, VimCall c, char **ret, Err *err)
{
    char *text = mem_strdup("", err);
    c.on_reply = on_text;
    c.ctx = &text;
    if (!text || !vim_call(v, &c, err)) {
        free(text);
        return false;
    }
    *ret = text;
    return true;
}
