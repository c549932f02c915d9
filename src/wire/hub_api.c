#include "wire/hub_api.h"

#include "wire/hub_api_parts.h"

#include <stdio.h>

#define PATH_MAX_BYTES 8192
#define STREAM_SILENCE_MS 30000

static bool copy_token(HubApi *h, const Secret *token, Err *err)
{
    return !token || !secret_is_set(token) || secret_set(&h->token, secret_reveal(token), err);
}

// Nothing that is sent there leaves this machine.
static bool is_loopback(const char *url)
{
    static const char *const hosts[] = {"localhost", "127.0.0.1", "[::1]"};
    const char *host = url + strlen("http://");
    for (size_t i = 0; i < ARRAY_LEN(hosts); i++) {
        size_t n = strlen(hosts[i]);
        if (strncmp(host, hosts[i], n) == 0 && (host[n] == '\0' || host[n] == ':' || host[n] == '/'))
            return true;
    }
    return false;
}

bool hub_api_new(const char *url, const Secret *token, const TlsTrust *trust, HubApi **ret, Err *err)
{
    if (!str_starts(url, "http://") && !str_starts(url, "https://"))
        return err_set(err, ERR_USAGE, "the hub's URL %s starts with neither http:// nor https://", url);
    if (trust && (trust->thumbprint || trust->ca_pem) && str_starts(url, "http://") && !is_loopback(url))
        return err_set(err, ERR_USAGE,
                       "a certificate to trust goes with https://, and %s has none: what is sent there anybody on the "
                       "way can read",
                       url);
    HubApi *h = mem_calloc(1, sizeof(*h), err);
    if (!h)
        return false;
    h->url = mem_strdup(url, err);
    if (!h->url || !copy_token(h, token, err) || (trust && !hub_trust_copy(trust, &h->trust, err)) ||
        !http_client_new(&h->http, err) || !http_client_trust(h->http, &h->trust, err)) {
        hub_api_free(h);
        return false;
    }
    h->max_answer = WORK_BODY_MAX;
    size_t n = strlen(h->url);
    while (n > 0 && h->url[n - 1] == '/')
        h->url[--n] = '\0';
    *ret = h;
    return true;
}

void hub_api_free(HubApi *h)
{
    if (!h)
        return;
    http_client_free(h->http);
    secret_clear(&h->token);
    hub_trust_clear(&h->trust);
    free(h->url);
    free(h);
}

void hub_api_set_cancel(HubApi *h, const atomic_bool *cancel)
{
    h->cancel = cancel;
}

void hub_api_set_timeout(HubApi *h, int timeout_ms)
{
    h->timeout_ms = timeout_ms;
}

void hub_api_set_max_answer(HubApi *h, size_t bytes)
{
    h->max_answer = bytes;
}

const char *hub_api_thumbprint(const HubApi *h)
{
    return h->trust.thumbprint;
}

int hub_api_status(const HubApi *h)
{
    return h->status;
}

bool hub_api_is_unknown(const HubApi *h)
{
    return h->status < 400 || h->status >= 500 || h->status == 408 || h->status == 429;
}

bool hub_api_segment(StrBuf *path, const char *segment, Err *err)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
    for (const unsigned char *p = (const unsigned char *)segment; *p; p++)
        if (!(strchr(plain, *p) ? str_add_bytes(path, p, 1, err) : str_addf(path, err, "%%%02X", *p)))
            return false;
    return true;
}

ErrCode hub_api_code(int status)
{
    switch (status) {
    case 400: return ERR_INVALID;
    case 401: return ERR_UNAUTHORIZED;
    case 403: return ERR_FORBIDDEN;
    case 404: return ERR_NOT_FOUND;
    case 405: return ERR_METHOD;
    case 409: return ERR_CONFLICT;
    case 413: return ERR_TOO_LARGE;
    case 422: return ERR_DAMAGED;
    case 501: return ERR_UNSUPPORTED;
    case 502: return ERR_PROTOCOL;
    case 503: return ERR_UNAVAILABLE;
    case 504: return ERR_TIMEOUT;
    case 507: return ERR_NO_SPACE;
    default: return status >= 500 ? ERR_INTERNAL : status >= 400 ? ERR_INVALID : ERR_PROTOCOL;
    }
}

// The hub's own words where it has some.
bool hub_api_refused(const char *method, const char *url, const HttpAnswer *a, Err *err)
{
    cleanup_json json_t *body = NULL;
    Err ignored = ERR_INIT;
    const char *title = NULL, *details = NULL;
    if (codec_json_parse(a->body, a->body_len, WORK_BODY_MAX, &body, &ignored) && json_is_object(body)) {
        title = json_string_value(json_object_get(body, "error"));
        details = json_string_value(json_object_get(body, "details"));
    }
    if (title && details)
        (void)err_set(err, hub_api_code(a->status), "%s", details);
    else
        (void)err_set(err, hub_api_code(a->status), "%s %s answered %d: %.500s", method, url, a->status, a->body);
    return title ? err_title(err, title) : false;
}

bool hub_api_exchange(HubApi *h, const char *method, const char *path, const char *body, HttpAnswer *ret, Err *err)
{
    h->status = 0;
    cleanup_free char *url = mem_printf(err, "%s%s", h->url, path);
    if (!url)
        return false;
    HttpRequest r = {.method = method,
                     .url = url,
                     .body = body,
                     .token = &h->token,
                     .timeout_ms = h->timeout_ms,
                     .max_answer = h->max_answer,
                     .cancel = h->cancel};
    if (!http_client_call(h->http, &r, ret, err))
        return false;
    h->status = ret->status;
    return true;
}

bool hub_api_ask(HubApi *h, const char *method, const char *path, const char *body, HttpAnswer *ret, Err *err)
{
    cleanup(http_answer_clear) HttpAnswer a = {0};
    if (!hub_api_exchange(h, method, path, body, &a, err))
        return false;
    if (a.status < 200 || a.status > 202)
        return hub_api_refused(method, path, &a, err);
    *ret = a;
    a = (HttpAnswer){0};
    return true;
}

bool hub_api_call(HubApi *h, const char *method, const char *path, const json_t *body, json_t **ret_answer, Err *err)
{
    cleanup_free char *text = NULL;
    cleanup(http_answer_clear) HttpAnswer a = {0};
    if ((body && !codec_json_dump(body, &text, err)) || !hub_api_ask(h, method, path, text, &a, err))
        return false;
    if (!codec_json_parse(a.body, a.body_len, h->max_answer, ret_answer, err)) {
        err->code = err->code == ERR_INVALID ? ERR_PROTOCOL : err->code;
        return err_context(err, "the answer to %s %s", method, path);
    }
    return true;
}

// ---- server-sent events (the WHATWG's format; only event and data are used)

typedef struct Stream {
    StrBuf line;  // not yet ended
    StrBuf event; // of the message that is being read
    StrBuf data;
    HubApiEvent on_event;
    void *ctx;
    Err failed;
} Stream;

static bool stream_message(Stream *s)
{
    cleanup_json json_t *data = NULL;
    bool more = true;
    if (s->data.len > 0) {
        if (!codec_json_parse(s->data.s, s->data.len, WORK_BODY_MAX, &data, &s->failed))
            return false;
        more = s->on_event(s->ctx, s->event.len > 0 ? s->event.s : "message", data);
    }
    str_clear(&s->event);
    str_clear(&s->data);
    return more;
}

static const char *field_value(const char *line, const char *name)
{
    size_t n = strlen(name);
    if (strncmp(line, name, n) != 0 || line[n] != ':')
        return NULL;
    return line + n + (line[n + 1] == ' ' ? 2 : 1);
}

static bool stream_line(Stream *s)
{
    if (s->line.len > 0 && s->line.s[s->line.len - 1] == '\r')
        s->line.s[--s->line.len] = '\0';
    if (s->line.len == 0)
        return stream_message(s);
    const char *event = field_value(s->line.s, "event");
    const char *data = field_value(s->line.s, "data");
    bool fine = true;
    if (event) {
        str_clear(&s->event);
        fine = str_add(&s->event, event, &s->failed);
    } else if (data) {
        fine = (s->data.len == 0 || str_add(&s->data, "\n", &s->failed)) && str_add(&s->data, data, &s->failed);
    }
    str_clear(&s->line);
    return fine;
}

static bool stream_data(void *ctx, const char *p, size_t n)
{
    Stream *s = ctx;
    while (n > 0) {
        const char *end = memchr(p, '\n', n);
        size_t part = end ? (size_t)(end - p) : n;
        if (!str_add_bytes(&s->line, p, part, &s->failed))
            return false;
        if (!end)
            return true;
        if (!stream_line(s))
            return false;
        p += part + 1;
        n -= part + 1;
    }
    return true;
}

static void stream_clear(Stream *s)
{
    str_clear(&s->line);
    str_clear(&s->event);
    str_clear(&s->data);
}

bool hub_api_events(HubApi *h, const char *path, HubApiEvent on_event, void *ctx, Err *err)
{
    cleanup_free char *url = mem_printf(err, "%s%s", h->url, path);
    if (!url)
        return false;
    cleanup(stream_clear) Stream s = {.line = STR_BUF(WORK_BODY_MAX),
                                      .event = STR_BUF(64),
                                      .data = STR_BUF(WORK_BODY_MAX),
                                      .on_event = on_event,
                                      .ctx = ctx};
    cleanup(http_answer_clear) HttpAnswer a = {0};
    HttpRequest r = {.method = "GET",
                     .url = url,
                     .token = &h->token,
                     .timeout_ms = STREAM_SILENCE_MS,
                     .cancel = h->cancel,
                     .on_data = stream_data,
                     .ctx = &s};
    h->status = 0;
    if (!http_client_call(h->http, &r, &a, err))
        return false;
    h->status = a.status;
    if (a.status != 200)
        return hub_api_refused("GET", path, &a, err);
    if (s.failed.code != ERR_NONE) {
        if (err->code == ERR_NONE)
            *err = s.failed;
        return err_context(err, "events of %s", path);
    }
    return true;
}

// ---- paths of jobs

bool hub_api_is_backup(const char *job_id)
{
    return str_starts(job_id, "backup-");
}

bool hub_api_job_path(const char *job_id, const char *call, char **ret, Err *err)
{
    StrBuf path = STR_BUF(PATH_MAX_BYTES);
    if (!str_add(&path, hub_api_is_backup(job_id) ? "/api/v1/backups/" : "/api/v1/replications/", err) ||
        !hub_api_segment(&path, job_id, err) || !str_addf(&path, err, "/%s", call)) {
        str_clear(&path);
        return false;
    }
    *ret = path.s;
    return true;
}

char *hub_api_record_url(const HubApi *h, const char *job_id, Err *err)
{
    cleanup_free char *path = NULL;
    if (!hub_api_job_path(job_id, hub_api_is_backup(job_id) ? "complete" : "changeid", &path, err))
        return NULL;
    return mem_printf(err, "%s%s", h->url, path);
}
