#include "wire/http_client_parts.h"

#include "base/clock.h"

#include <pthread.h>
#include <stdio.h>

#define CONNECT_MS 5000L
#define TIMEOUT_MS_DEFAULT 30000
#define MAX_ANSWER_DEFAULT ((size_t)4 << 20)
#define AHEAD_MAX ((size_t)64 << 10) // bytes that arrived and were not read: then the server waits

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
    c->multi = curl_multi_init();
    c->curl = c->multi ? curl_easy_init() : NULL;
    if (!c->curl) {
        http_client_free(c);
        return err_no_memory(err);
    }
    *ret = c;
    return true;
}

void http_client_free(HttpClient *c)
{
    if (!c)
        return;
    curl_easy_cleanup(c->curl); // NULL is fine
    if (c->multi)
        (void)curl_multi_cleanup(c->multi); // a valid handle
    str_clear(&c->ahead);
    free(c->ca_pem);
    free(c);
}

bool http_client_trust(HttpClient *c, const TlsTrust *trust, Err *err)
{
    const char *ca = trust->ca_pem && *trust->ca_pem ? trust->ca_pem : NULL;
    return tls_check_init(trust, &c->tls, err) && mem_replace(&c->ca_pem, ca, err);
}

const TlsCertificate *http_client_shown(const HttpClient *c)
{
    return c->tls.seen ? &c->tls.shown : NULL;
}

// ---- what libcurl is told

static size_t on_body(char *p, size_t size, size_t n, void *ctx)
{
    HttpClient *c = ctx;
    (void)size; // always 1
    if (c->ahead.len - c->taken >= AHEAD_MAX) {
        c->paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    if (c->taken == c->ahead.len)
        c->taken = c->ahead.len = 0;
    return str_add_bytes(&c->ahead, p, n, &c->failed) ? n : CURL_WRITEFUNC_ERROR;
}

static CURLcode on_ssl_ctx(CURL *curl, void *ssl_ctx, void *ctx)
{
    HttpClient *c = ctx;
    (void)curl;
    tls_check_install(&c->tls, ssl_ctx);
    return CURLE_OK;
}

static bool set_cas(HttpClient *c)
{
    if (c->ca_pem)
        return SET(CURLOPT_CAPATH, NULL) && // these, and not the system's besides
            SET(CURLOPT_CAINFO_BLOB, (&(struct curl_blob){.data = c->ca_pem, .len = strlen(c->ca_pem)}));
    // Where they are of no use: reading the system's takes longer than the handshake
    bool unused = c->tls.pinned || c->tls.any;
    return !unused || (SET(CURLOPT_CAINFO, NULL) && SET(CURLOPT_CAPATH, NULL));
}

static bool set_tls(HttpClient *c)
{
    // A resumed TLS session shows no certificate
    return SET(CURLOPT_SSL_CTX_FUNCTION, on_ssl_ctx) && SET(CURLOPT_SSL_CTX_DATA, c) &&
        SET(CURLOPT_SSL_SESSIONID_CACHE, 0L) && SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2) &&
        SET(CURLOPT_SSL_VERIFYPEER, 1L) && SET(CURLOPT_SSL_VERIFYHOST, c->tls.pinned || c->tls.any ? 0L : 2L) &&
        set_cas(c);
}

static bool set_connection(HttpClient *c, const HttpRequest *r)
{
    return SET(CURLOPT_URL, r->url) && SET(CURLOPT_PROTOCOLS_STR, "http,https") && SET(CURLOPT_PROXY, "") &&
        SET(CURLOPT_NOSIGNAL, 1L) && SET(CURLOPT_ERRORBUFFER, c->error) && SET(CURLOPT_CONNECTTIMEOUT_MS, CONNECT_MS) &&
        set_tls(c);
}

static bool set_options(HttpClient *c, const HttpRequest *r)
{
    return set_connection(c, r) && SET(CURLOPT_CUSTOMREQUEST, r->method) && SET(CURLOPT_HTTPHEADER, c->headers) &&
        SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) && SET(CURLOPT_FOLLOWLOCATION, 0L) &&
        SET(CURLOPT_WRITEFUNCTION, on_body) && SET(CURLOPT_WRITEDATA, c) &&
        SET(CURLOPT_USERAGENT, "sendense/" SENDENSE_VERSION) && SET(CURLOPT_PATH_AS_IS, 1L) &&
        SET(CURLOPT_FRESH_CONNECT, r->once ? 1L : 0L) &&
        (!r->body ||
         (SET(CURLOPT_POSTFIELDS, r->body) && SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(r->body))));
}

static bool add_header(struct curl_slist **list, const char *line, Err *err)
{
    struct curl_slist *longer = curl_slist_append(*list, line);
    if (!longer)
        return err_no_memory(err);
    *list = longer;
    return true;
}

static bool add_secret(struct curl_slist **list, const char *before, const Secret *secret, Err *err)
{
    if (!secret || !secret_is_set(secret))
        return true;
    char line[SECRET_MAX + 32];
    (void)snprintf(line, sizeof(line), "%s%s", before, secret_reveal(secret)); // fits: SECRET_MAX
    bool fine = add_header(list, line, err);
    explicit_bzero(line, sizeof(line));
    return fine;
}

static bool add_content_type(struct curl_slist **list, const HttpRequest *r, Err *err)
{
    cleanup_free char *line =
        mem_printf(err, "Content-Type: %s", r->content_type ? r->content_type : "application/json");
    return line && add_header(list, line, err);
}

static bool make_headers(const HttpRequest *r, struct curl_slist **ret, Err *err)
{
    const char *accept = r->content_type ? "Accept: */*" : "Accept: application/json, text/event-stream";
    // An empty "Expect:" keeps libcurl from waiting for 100 Continue
    return add_header(ret, accept, err) && add_header(ret, "Expect:", err) &&
        (!r->body || add_content_type(ret, r, err)) && (!r->header || add_header(ret, r->header, err)) &&
        add_secret(ret, "Authorization: Bearer ", r->token, err) && add_secret(ret, "Cookie: ", r->cookie, err);
}

static void clear_headers(struct curl_slist **list)
{
    // The secrets are in some of them
    for (struct curl_slist *i = *list; i; i = i->next)
        explicit_bzero(i->data, strlen(i->data));
    curl_slist_free_all(*list);
    *list = NULL;
}

// ---- what libcurl says

static bool bad_url(const char *url, const char *why, Err *err)
{
    return err_set(err, ERR_USAGE, "the URL %s: %s; it is http://HOST:PORT or https://HOST:PORT", url, why);
}

static bool untrusted(const HttpClient *c, const char *why, Err *err)
{
    const TlsCheck *t = &c->tls;
    if (t->refused && t->seen)
        (void)err_set(
            err, ERR_PROTOCOL,
            "%s: the server's certificate has the SHA-256 thumbprint %s, which is not the expected one; if it "
            "was renewed, check that and give the new thumbprint",
            c->request->url, t->shown.sha256);
    else
        (void)err_set(err, ERR_PROTOCOL, "%s: %s", c->request->url, why);
    return err_title(err, "certificate not trusted");
}

bool http_client_error(const HttpClient *c, CURLcode code, Err *err)
{
    const char *why = c->error[0] ? c->error : curl_easy_strerror(code);
    const HttpRequest *r = c->request;
    if (c->tls.refused)
        return untrusted(c, why, err);
    switch (code) {
    case CURLE_OPERATION_TIMEDOUT: return err_set(err, ERR_TIMEOUT, "%s %s: %s", r->method, r->url, why);
    case CURLE_URL_MALFORMAT: return bad_url(r->url, why, err);
    case CURLE_OUT_OF_MEMORY: return err_no_memory(err);
    case CURLE_PEER_FAILED_VERIFICATION: return untrusted(c, why, err);
    case CURLE_SSL_CACERT_BADFILE: return err_set(err, ERR_INVALID, "the CA certificates: %s", why);
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_SSL_CONNECT_ERROR: // a server that goes down ends a handshake as well
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_PARTIAL_FILE: return err_set(err, ERR_UNAVAILABLE, "%s %s: %s", r->method, r->url, why);
    default: return err_set(err, ERR_PROTOCOL, "%s %s: %s", r->method, r->url, why);
    }
}

static bool multi_error(CURLMcode code, Err *err)
{
    return code == CURLM_OUT_OF_MEMORY ? err_no_memory(err)
                                       : err_set(err, ERR_INTERNAL, "libcurl: %s", curl_multi_strerror(code));
}

static void look_for_end(HttpClient *c)
{
    int left;
    for (CURLMsg *m; (m = curl_multi_info_read(c->multi, &left));) {
        if (m->msg == CURLMSG_DONE) {
            c->done = true;
            c->result = m->data.result;
        }
    }
}

// Until something is there to read, or the exchange has ended. silence_ms 0: libcurl has a deadline of its own.
static bool advance(HttpClient *c, int silence_ms, Err *err)
{
    const HttpRequest *r = c->request;
    int64_t deadline = silence_ms ? clock_mono_ms() + silence_ms : INT64_MAX;
    while (c->taken == c->ahead.len && !c->done) {
        int running;
        if (r->cancel && atomic_load(r->cancel))
            return err_set(err, ERR_CANCELLED, "%s %s was cancelled", r->method, r->url);
        if (clock_mono_ms() >= deadline)
            return err_set(err, ERR_TIMEOUT, "%s %s: nothing came for %d ms", r->method, r->url, silence_ms);
        if (c->paused) {
            c->paused = false;
            (void)curl_easy_pause(c->curl, CURLPAUSE_CONT); // an error shows itself as the exchange's end
        }
        CURLMcode code = curl_multi_perform(c->multi, &running);
        if (code == CURLM_OK)
            look_for_end(c);
        if (code == CURLM_OK && c->taken == c->ahead.len && !c->done)
            code = curl_multi_poll(c->multi, NULL, 0, HTTP_CLIENT_POLL_MS, NULL);
        if (code != CURLM_OK)
            return multi_error(code, err);
    }
    if (c->failed.code != ERR_NONE && err->code == ERR_NONE)
        *err = c->failed;
    if (c->failed.code != ERR_NONE)
        return err_context(err, "%s %s", r->method, r->url);
    return (c->taken < c->ahead.len || c->result == CURLE_OK) || http_client_error(c, c->result, err);
}

static bool begin(HttpClient *c, const HttpRequest *r, Err *err)
{
    if (!str_starts(r->url, "http://") && !str_starts(r->url, "https://"))
        return bad_url(r->url, "no such protocol here", err);
    c->request = r;
    c->error[0] = '\0';
    c->paused = c->done = false;
    c->result = CURLE_OK;
    c->failed = ERR_INIT;
    c->tls.refused = false;
    c->taken = 0;
    c->ahead = STR_BUF(AHEAD_MAX + CURL_MAX_WRITE_SIZE);
    return true;
}

static bool start(HttpClient *c, Err *err)
{
    CURLMcode code = curl_multi_add_handle(c->multi, c->curl);
    return code == CURLM_OK || multi_error(code, err);
}

void http_client_end(HttpClient *c)
{
    (void)curl_multi_remove_handle(c->multi, c->curl); // fine if it was never added
    curl_easy_reset(c->curl);                          // options hold borrowed text; connections stay
    clear_headers(&c->headers);
    str_clear(&c->ahead);
    c->request = NULL;
}

static bool open_with(HttpClient *c, const HttpRequest *r, int silence_ms, int *ret_status, Err *err)
{
    long status = 0;
    if (!begin(c, r, err))
        return false;
    if (!make_headers(r, &c->headers, err))
        goto failed;
    if (!set_options(c, r) ||
        (!silence_ms && !SET(CURLOPT_TIMEOUT_MS, (long)(r->timeout_ms ? r->timeout_ms : TIMEOUT_MS_DEFAULT)))) {
        (void)err_set(err, ERR_USAGE, "libcurl cannot send to %s", r->url);
        goto failed;
    }
    if (!start(c, err) || !advance(c, silence_ms, err))
        goto failed;
    if (curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &status) != CURLE_OK || status == 0) {
        (void)err_set(err, ERR_PROTOCOL, "%s %s: no status in the answer", r->method, r->url);
        goto failed;
    }
    *ret_status = (int)status;
    return true;
failed:
    http_client_end(c);
    return false;
}

int http_client_silence(const HttpRequest *r)
{
    return r->timeout_ms ? r->timeout_ms : TIMEOUT_MS_DEFAULT;
}

bool http_client_open(HttpClient *c, const HttpRequest *r, int *ret_status, Err *err)
{
    return open_with(c, r, http_client_silence(r), ret_status, err);
}

static bool read_with(HttpClient *c, void *buf, size_t cap, int silence_ms, size_t *ret_n, Err *err)
{
    if (!advance(c, silence_ms, err))
        return false;
    size_t n = MIN(cap, c->ahead.len - c->taken);
    if (n > 0)
        memcpy(buf, c->ahead.s + c->taken, n);
    c->taken += n;
    *ret_n = n;
    return true;
}

bool http_client_read(HttpClient *c, void *buf, size_t cap, size_t *ret_n, Err *err)
{
    return read_with(c, buf, cap, http_client_silence(c->request), ret_n, err);
}

const char *http_client_header(HttpClient *c, const char *name, size_t index)
{
    struct curl_header *h;
    return curl_easy_header(c->curl, name, index, CURLH_HEADER, -1, &h) == CURLHE_OK ? h->value : NULL;
}

// The whole body, to on_data or gathered.
static bool read_all(HttpClient *c, const HttpRequest *r, int silence_ms, bool stream, StrBuf *ret, Err *err)
{
    char piece[16384];
    for (;;) {
        size_t n;
        if (!read_with(c, piece, sizeof(piece), silence_ms, &n, err))
            return false;
        if (n == 0 || (stream && !r->on_data(r->ctx, piece, n)))
            return str_add(ret, "", err);
        if (!stream && !str_add_bytes(ret, piece, n, err))
            return err_context(err, "%s %s", r->method, r->url);
    }
}

bool http_client_call(HttpClient *c, const HttpRequest *r, HttpAnswer *ret, Err *err)
{
    StrBuf body = STR_BUF(r->max_answer ? r->max_answer : MAX_ANSWER_DEFAULT);
    int status, silence_ms = r->on_data ? http_client_silence(r) : 0;
    if (!open_with(c, r, silence_ms, &status, err))
        return false;
    bool fine = read_all(c, r, silence_ms, r->on_data && status == 200, &body, err);
    http_client_end(c);
    if (!fine) {
        str_clear(&body);
        return false;
    }
    *ret = (HttpAnswer){.status = status, .body = body.s, .body_len = body.len};
    return true;
}

bool http_client_connect(HttpClient *c, const HttpRequest *r, Err *err)
{
    if (!begin(c, r, err))
        return false;
    return ((set_connection(c, r) && SET(CURLOPT_CONNECT_ONLY, 1L) &&
             SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1)) ||
            err_set(err, ERR_USAGE, "libcurl cannot connect to %s", r->url)) &&
        start(c, err) && advance(c, http_client_silence(r), err);
}

static bool shake_hands(HttpClient *c, const HttpRequest *r, TlsCertificate *ret, Err *err)
{
    bool fine = http_client_connect(c, r, err);
    http_client_end(c);
    if (fine && !c->tls.seen)
        return err_set(err, ERR_PROTOCOL, "%s: no certificate was shown", r->url);
    if (fine)
        *ret = c->tls.shown;
    return fine;
}

bool http_client_certificate(const char *url, int timeout_ms, const atomic_bool *cancel, TlsCertificate *ret, Err *err)
{
    HttpClient *c = NULL;
    if (!http_client_new(&c, err))
        return false;
    c->tls.any = true;
    HttpRequest r = {.method = "a TLS handshake with", .url = url, .timeout_ms = timeout_ms, .cancel = cancel};
    bool fine = shake_hands(c, &r, ret, err);
    http_client_free(c);
    return fine;
}
