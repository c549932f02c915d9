#include "wire/vim.h"

#include "wire/vim_parts.h"

#include "base/clock.h"
#include "base/num.h"

#include <stdio.h>

#define PORT_DEFAULT 443
#define HOST_MAX 300

// ---- addresses

static bool bad_host(const char *host, const char *why, Err *err)
{
    return err_set(err, ERR_USAGE, "the vCenter '%.200s': %s; it is HOST, HOST:PORT or [IPV6]:PORT", host, why);
}

// "https://HOST:PORT/sdk" of a host that came from outside. New memory.
static bool make_url(const char *host, char **ret, Err *err)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_:[]";
    size_t n = strlen(host), name = strcspn(host, ":");
    uint64_t port = PORT_DEFAULT;
    Err ignored = ERR_INIT;
    if (n == 0 || n > HOST_MAX || strspn(host, allowed) != n)
        return bad_host(host, "no name of a host", err);
    if (host[0] == '[') {
        const char *end = strchr(host, ']');
        if (!end || strspn(host + 1, "0123456789abcdefABCDEF:.") != (size_t)(end - host - 1) || end == host + 1)
            return bad_host(host, "no IPv6 address in the brackets", err);
        name = (size_t)(end - host) + 1;
    } else if (name == 0 || strcspn(host, "[]") < n) {
        return bad_host(host, "no name of a host", err);
    }
    if (host[name] && (host[name] != ':' || !num_u64(host + name + 1, 1, 65535, &port, &ignored)))
        return bad_host(host, "no port after the host's name", err);
    *ret = mem_printf(err, "https://%.*s:%u/sdk", (int)name, host, (unsigned)port);
    return *ret != NULL;
}

bool vim_certificate(const char *host, int timeout_ms, const atomic_bool *cancel, TlsCertificate *ret, Err *err)
{
    cleanup_free char *url = NULL;
    return make_url(host, &url, err) &&
        http_client_certificate(url, timeout_ms ? timeout_ms : VIM_TIMEOUT_MS, cancel, ret, err);
}

// ---- the session

static bool read_about(Vim *v, XmlReader *r, Err *err)
{
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        char **to = xml_is(r, "fullName") ? &v->full_name
            : xml_is(r, "apiType")        ? &v->api_type
            : xml_is(r, "apiVersion")     ? &v->api_version
            : xml_is(r, "instanceUuid")   ? &v->instance_uuid
                                          : NULL;
        if (to && !vim_read_text(r, to, err))
            return false;
    }
    return false;
}

static bool read_content(Vim *v, XmlReader *r, Err *err)
{
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        char **to = xml_is(r, "rootFolder")     ? &v->root_folder
            : xml_is(r, "propertyCollector")    ? &v->property_collector
            : xml_is(r, "viewManager")          ? &v->view_manager
            : xml_is(r, "searchIndex")          ? &v->search_index
            : xml_is(r, "sessionManager")       ? &v->session_manager
            : xml_is(r, "authorizationManager") ? &v->authorization_manager
                                                : NULL;
        if (to ? !vim_read_text(r, to, err) : xml_is(r, "about") && !read_about(v, r, err))
            return false;
    }
    return false;
}

static bool on_content(void *ctx, XmlReader *r, Err *err)
{
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(r, "returnval") && !read_content(ctx, r, err))
            return false;
    }
    return false;
}

// The version of the API that is spoken is the server's own. Without the header it would speak an old one, which knows
// no capacityInBytes.
static bool set_version(Vim *v, Err *err)
{
    bool is_version = *v->api_version && strlen(v->api_version) < 32 &&
        strspn(v->api_version, "0123456789.") == strlen(v->api_version);
    char *action = mem_printf(err, "SOAPAction: \"" VIM_NAMESPACE "%s%s\"", is_version ? "/" : "",
                              is_version ? v->api_version : "");
    if (!action)
        return false;
    free(v->action);
    v->action = action;
    return true;
}

static bool retrieve_content(Vim *v, Err *err)
{
    VimCall c = {.method = "RetrieveServiceContent",
                 .type = "ServiceInstance",
                 .moref = "ServiceInstance",
                 .on_reply = on_content,
                 .ctx = v,
                 .repeats = true};
    if (!vim_call(v, &c, err))
        return false;
    if (!*v->root_folder || !*v->property_collector || !*v->session_manager || !*v->search_index)
        return err_set(err, ERR_PROTOCOL, "%s is no vCenter or ESXi host: its service content lacks managers", v->host);
    return set_version(v, err);
}

static bool read_session(Vim *v, XmlReader *r, Err *err)
{
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(r, "key") && !vim_read_text(r, &v->session_key, err))
            return false;
    }
    return false;
}

static bool on_session(void *ctx, XmlReader *r, Err *err)
{
    XmlWalk w = xml_walk(r);
    bool more;
    while (xml_next(r, &w, &more, err)) {
        if (!more)
            return true;
        if (xml_is(r, "returnval") && !read_session(ctx, r, err))
            return false;
    }
    return false;
}

static bool send_login(Vim *v, const char *arguments, Err *err)
{
    VimCall c = {.method = "Login",
                 .type = "SessionManager",
                 .moref = v->session_manager,
                 .arguments = arguments,
                 .on_reply = on_session,
                 .ctx = v,
                 .repeats = true}; // a second session is cheaper than a backup that does not start
    if (!vim_call(v, &c, err))
        return false;
    return *v->session_key || err_set(err, ERR_PROTOCOL, "a session of %s without a key", v->host);
}

bool vim_login(Vim *v, Err *err)
{
    StrBuf b = STR_BUF(VIM_REQUEST_MAX);
    // In one piece, which is wiped. A character becomes 6 bytes at most
    b.cap = 6 * (strlen(v->user) + SECRET_MAX) + 256;
    b.s = mem_calloc(1, b.cap, err);
    secret_clear(&v->cookie); // of a session that has ended: with it there is no logging in
    bool no_login = v->no_login;
    v->no_login = true;
    bool fine = b.s && xml_add_element(&b, "userName", v->user, err) &&
        xml_add_element(&b, "password", secret_reveal(&v->password), err) && send_login(v, b.s, err);
    if (b.s)
        explicit_bzero(b.s, b.cap);
    str_clear(&b);
    v->no_login = no_login;
    v->logins += fine;
    return fine;
}

static void free_vim(Vim *v)
{
    char **texts[] = {&v->host,
                      &v->url,
                      &v->user,
                      &v->session_key,
                      &v->action,
                      &v->full_name,
                      &v->api_type,
                      &v->api_version,
                      &v->instance_uuid,
                      &v->root_folder,
                      &v->property_collector,
                      &v->view_manager,
                      &v->search_index,
                      &v->session_manager,
                      &v->authorization_manager,
                      &v->fault_task};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        free(*texts[i]);
    http_client_free(v->http);
    secret_clear(&v->password);
    secret_clear(&v->cookie);
    free(v);
}

static bool fill_vim(Vim *v, const VimSpec *spec, Err *err)
{
    char **empty[] = {
        &v->session_key,          &v->full_name,    &v->api_type,           &v->api_version,  &v->instance_uuid,
        &v->root_folder,          &v->view_manager, &v->property_collector, &v->search_index, &v->session_manager,
        &v->authorization_manager};
    TlsTrust trust = {.thumbprint = spec->thumbprint, .ca_pem = spec->ca_pem};
    v->cancel = spec->cancel;
    v->timeout_ms = spec->timeout_ms ? spec->timeout_ms : VIM_TIMEOUT_MS;
    v->no_login = true; // until the first one
    for (size_t i = 0; i < ARRAY_LEN(empty); i++)
        if (!(*empty[i] = mem_strdup("", err)))
            return false;
    return make_url(spec->host, &v->url, err) && mem_replace(&v->host, spec->host, err) &&
        mem_replace(&v->user, spec->user, err) && secret_set(&v->password, secret_reveal(spec->password), err) &&
        http_client_new(&v->http, err) && http_client_trust(v->http, &trust, err) && set_version(v, err);
}

bool vim_open(const VimSpec *spec, Vim **ret, Err *err)
{
    Vim *v = mem_calloc(1, sizeof(*v), err);
    if (!v)
        return false;
    if (!fill_vim(v, spec, err) || !retrieve_content(v, err) || !vim_login(v, err)) {
        vim_close(v);
        return false;
    }
    v->no_login = false;
    *ret = v;
    return true;
}

void vim_close(Vim *v)
{
    if (!v)
        return;
    VimCall c = {.method = "Logout", .type = "SessionManager", .moref = v->session_manager, .repeats = true};
    if (v->session_key && *v->session_key)
        vim_call_anyway(v, &c);
    free_vim(v);
}

void vim_set_cancel(Vim *v, const atomic_bool *cancel)
{
    v->cancel = cancel;
}

VimAbout vim_about(const Vim *v)
{
    return (VimAbout){.full_name = v->full_name,
                      .api_type = v->api_type,
                      .api_version = v->api_version,
                      .instance_uuid = v->instance_uuid};
}

void vim_set_patience(Vim *v, int ms)
{
    v->patience_ms = ms;
}

const TlsCertificate *vim_shown(const Vim *v)
{
    return &v->shown;
}

const Secret *vim_session_cookie(const Vim *v)
{
    return &v->cookie;
}

void vim_keep_alive(Vim *v, int idle_ms)
{
    VimCall c = {.method = "CurrentTime", .type = "ServiceInstance", .moref = "ServiceInstance", .repeats = true};
    if (clock_mono_ms() - v->last_ms >= idle_ms)
        vim_call_anyway(v, &c);
}
