#include "wire/http_client.h"

#include "base/str.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>

#define CONNECT_MS 5000L
#define TIMEOUT_MS_DEFAULT 30000
#define MAX_ANSWER_DEFAULT (4u << 20)

struct HttpClient {
    CURL *curl;
    char error[CURL_ERROR_SIZE];
    // of the running exchange
    const HttpRequest *request;
    StrBuf body;
    bool stopped; // on_data wants no more
    Err failed;   // the body is too large, or memory is gone
};

static pthread_once_t global_once = PTHREAD_ONCE_INIT;
static CURLcode global_result;

static void global_init(void)
{
    global_result = curl_global_init(CURL_GLOBAL_DEFAULT);
}

void http_answer_clear(HttpAnswer *a)
{
    free(a->body);
    *a = (HttpAnswer){0};
}

bool http_client_new(HttpClient **ret, Err *err)
{
    (void)pthread_once(&global_once, global_init); // cannot fail with a valid control
    if (global_result != CURLE_OK)
        return err_set(err, ERR_INTERNAL, "libcurl: %s", curl_easy_strerror(global_result));
    HttpClient *c = mem_calloc(1, sizeof(*c), err);
    if (!c)
        return false;
    c->curl = curl_easy_init();
    if (!c->curl) {
        free(c);
        return err_no_memory(err);
    }
    *ret = c;
    return true;
}

void http_client_free(HttpClient *c)
{
    if (!c)
        return;
    curl_easy_cleanup(c->curl);
    free(c);
}

static size_t on_body(char *p, size_t size, size_t n, void *ctx)
{
    HttpClient *c = ctx;
    long status = 0;
    (void)size; // always 1
    if (c->request->on_data) {
        (void)curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &status); // a known option
        if (status == 200) {
            c->stopped = !c->request->on_data(c->request->ctx, p, n);
            return c->stopped ? CURL_WRITEFUNC_ERROR : n;
        }
    }
    return str_add_bytes(&c->body, p, n, &c->failed) ? n : CURL_WRITEFUNC_ERROR;
}

static int on_progress(void *ctx, curl_off_t a, curl_off_t b, curl_off_t d, curl_off_t e)
{
    const HttpClient *c = ctx;
    (void)a, (void)b, (void)d, (void)e;
    return c->request->cancel && atomic_load(c->request->cancel);
}

#define SET(option, value) (curl_easy_setopt(c->curl, (option), (value)) == CURLE_OK)

static bool set_deadlines(HttpClient *c, const HttpRequest *r)
{
    long timeout_ms = r->timeout_ms ? r->timeout_ms : TIMEOUT_MS_DEFAULT;
    if (!SET(CURLOPT_CONNECTTIMEOUT_MS, CONNECT_MS))
        return false;
    if (r->on_data)
        return SET(CURLOPT_LOW_SPEED_LIMIT, 1L) && SET(CURLOPT_LOW_SPEED_TIME, MAX(1, timeout_ms / 1000));
    return SET(CURLOPT_TIMEOUT_MS, timeout_ms);
}

static bool set_options(HttpClient *c, const HttpRequest *r, struct curl_slist *headers)
{
    return SET(CURLOPT_URL, r->url) && SET(CURLOPT_CUSTOMREQUEST, r->method) && SET(CURLOPT_HTTPHEADER, headers) &&
        SET(CURLOPT_PROTOCOLS_STR, "http,https") && SET(CURLOPT_PROXY, "") && SET(CURLOPT_FOLLOWLOCATION, 0L) &&
        SET(CURLOPT_NOSIGNAL, 1L) && SET(CURLOPT_ERRORBUFFER, c->error) && SET(CURLOPT_WRITEFUNCTION, on_body) &&
        SET(CURLOPT_WRITEDATA, c) && SET(CURLOPT_XFERINFOFUNCTION, on_progress) && SET(CURLOPT_XFERINFODATA, c) &&
        SET(CURLOPT_NOPROGRESS, 0L) && SET(CURLOPT_USERAGENT, "sendense/" SENDENSE_VERSION) &&
        SET(CURLOPT_PATH_AS_IS, 1L) &&
        (!r->body ||
         (SET(CURLOPT_POSTFIELDS, r->body) && SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(r->body)))) &&
        set_deadlines(c, r);
}

static bool add_header(struct curl_slist **list, const char *line, Err *err)
{
    struct curl_slist *longer = curl_slist_append(*list, line);
    if (!longer)
        return err_no_memory(err);
    *list = longer;
    return true;
}

static bool make_headers(const HttpRequest *r, struct curl_slist **ret, Err *err)
{
    // An empty "Expect:" keeps libcurl from waiting for 100 Continue
    if (!add_header(ret, "Accept: application/json, text/event-stream", err) || !add_header(ret, "Expect:", err))
        return false;
    if (r->body && !add_header(ret, "Content-Type: application/json", err))
        return false;
    if (!r->token || !secret_is_set(r->token))
        return true;
    char line[SECRET_MAX + 32];
    (void)snprintf(line, sizeof(line), "Authorization: Bearer %s",
                   secret_reveal(r->token)); // fits: SECRET_MAX
    bool fine = add_header(ret, line, err);
    explicit_bzero(line, sizeof(line));
    return fine;
}

static void clear_headers(struct curl_slist **list)
{
    // The token is in one of them
    for (struct curl_slist *i = *list; i; i = i->next)
        explicit_bzero(i->data, strlen(i->data));
    curl_slist_free_all(*list);
}

static bool bad_url(const char *url, const char *why, Err *err)
{
    return err_set(err, ERR_USAGE, "the URL %s: %s; it is http://HOST:PORT or https://HOST:PORT", url, why);
}

static bool curl_error(const HttpClient *c, CURLcode code, Err *err)
{
    const char *why = c->error[0] ? c->error : curl_easy_strerror(code);
    switch (code) {
    case CURLE_ABORTED_BY_CALLBACK:
        return err_set(err, ERR_CANCELLED, "%s %s was cancelled", c->request->method, c->request->url);
    case CURLE_OPERATION_TIMEDOUT:
        return err_set(err, ERR_TIMEOUT, "%s %s: %s", c->request->method, c->request->url, why);
    case CURLE_URL_MALFORMAT: return bad_url(c->request->url, why, err);
    case CURLE_OUT_OF_MEMORY: return err_no_memory(err);
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE:
        return err_set(err, ERR_UNAVAILABLE, "%s %s: %s", c->request->method, c->request->url, why);
    default: return err_set(err, ERR_PROTOCOL, "%s %s: %s", c->request->method, c->request->url, why);
    }
}

static bool perform(HttpClient *c, HttpAnswer *ret, Err *err)
{
    long status = 0;
    CURLcode code = curl_easy_perform(c->curl);
    if (c->failed.code != ERR_NONE) {
        if (err->code == ERR_NONE)
            *err = c->failed;
        return err_context(err, "%s %s", c->request->method, c->request->url);
    }
    if (code != CURLE_OK && !c->stopped)
        return curl_error(c, code, err);
    if (curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &status) != CURLE_OK || status == 0)
        return err_set(err, ERR_PROTOCOL, "%s %s: no status in the answer", c->request->method, c->request->url);
    if (!str_add(&c->body, "", err))
        return false;
    *ret = (HttpAnswer){.status = (int)status, .body = c->body.s, .body_len = c->body.len};
    c->body = STR_BUF(0);
    return true;
}

bool http_client_call(HttpClient *c, const HttpRequest *r, HttpAnswer *ret, Err *err)
{
    cleanup(clear_headers) struct curl_slist *headers = NULL;
    if (!str_starts(r->url, "http://") && !str_starts(r->url, "https://"))
        return bad_url(r->url, "no such protocol here", err);
    c->request = r;
    c->error[0] = '\0';
    c->stopped = false;
    c->failed = ERR_INIT;
    c->body = STR_BUF(r->max_answer ? r->max_answer : MAX_ANSWER_DEFAULT);
    if (!make_headers(r, &headers, err))
        return false;
    bool fine = set_options(c, r, headers) ? perform(c, ret, err)
                                           : err_set(err, ERR_USAGE, "libcurl cannot send to %s", r->url);
    curl_easy_reset(c->curl); // options hold borrowed text; connections stay
    c->request = NULL;
    str_clear(&c->body);
    return fine;
}
