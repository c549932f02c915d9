#include "http/answer.h"

#include "base/clock.h"
#include "codec/json.h"

#include <microhttpd.h>

#define HEARTBEAT_MS 5000
#define STREAM_INTERVAL_MS 50
#define STREAM_PENDING_MAX (UINT64_C(8) << 20) // one round of events
#define STREAM_BLOCK 16384

static struct MHD_Response *with_headers(struct MHD_Response *r, const char *type)
{
    if (r &&
        (MHD_add_response_header(r, "Content-Type", type) != MHD_YES ||
         MHD_add_response_header(r, "Cache-Control", "no-store") != MHD_YES ||
         MHD_add_response_header(r, "X-Content-Type-Options", "nosniff") != MHD_YES)) {
        MHD_destroy_response(r);
        return NULL;
    }
    return r;
}

// Takes over text. type NULL: JSON.
static struct MHD_Response *from_text(char *text, const char *type)
{
    struct MHD_Response *r = MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE);
    if (!r)
        free(text);
    return with_headers(r, type ? type : "application/json");
}

char *http_answer_error_text(const Err *err)
{
    char title[ERR_SHORT_MAX];
    char details[ERR_DETAILS_MAX];
    memcpy(title, err_short(err), MIN(strlen(err_short(err)) + 1, sizeof(title)));
    memcpy(details, err->details, sizeof(details));
    title[sizeof(title) - 1] = '\0';
    details[sizeof(details) - 1] = '\0';
    str_make_utf8(title); // a message may quote bytes from outside
    str_make_utf8(details);

    Err why = ERR_INIT; // lack of memory: the connection is then closed without an answer
    cleanup_json json_t *body = json_object();
    char *text;
    if (!body || !codec_json_set_text(body, "error", title, &why) ||
        !codec_json_set_text(body, "details", details, &why) ||
        !codec_json_set_time(body, "timestamp", clock_utc_us(), &why) || !codec_json_dump(body, &text, &why))
        return NULL;
    return text;
}

struct MHD_Response *http_answer_error(const Err *err)
{
    char *text = http_answer_error_text(err);
    return text ? from_text(text, NULL) : NULL;
}

struct MHD_Response *http_answer_json(HttpResponse *response, Err *err)
{
    cleanup_json json_t *body = mem_take(response->body);
    cleanup_free char *cookie = mem_take(response->cookie);
    char *text = mem_take(response->text);
    if (!text && !body) {
        err_set(err, ERR_INTERNAL, "the handler gave no answer");
        return NULL;
    }
    if (!text && !codec_json_dump(body, &text, err))
        return NULL;
    struct MHD_Response *r = from_text(text, response->type);
    if (r && cookie && MHD_add_response_header(r, "Set-Cookie", cookie) != MHD_YES) {
        MHD_destroy_response(r);
        r = NULL;
    }
    if (!r)
        err_no_memory(err);
    return r;
}

typedef struct Stream {
    HttpStream source;
    HttpWatch *watch;
    StrBuf pending; // bytes from `sent` on are still to be sent
    size_t sent;
    int64_t last_ms; // of the last bytes
    bool ended;
} Stream;

static void stream_free(void *cls)
{
    Stream *s = cls;
    if (s->source.close)
        s->source.close(s->source.ctx);
    str_clear(&s->pending);
    free(s);
}

// Fills `pending`, waiting for as long as that takes. False: nothing will come any more.
static bool stream_fill(Stream *s, Err *err)
{
    s->sent = 0;
    s->pending.len = 0;
    while (!s->ended && !http_watch_stopping(s->watch)) {
        if (!s->source.next(s->source.ctx, &s->pending, &s->ended, err))
            return false;
        if (s->pending.len > 0)
            return true;
        if (s->ended)
            break;
        if (clock_mono_ms() - s->last_ms >= HEARTBEAT_MS)
            return str_add(&s->pending, ": heartbeat\n\n", err);
        if (!http_watch_sleep(s->watch, s->source.interval_ms))
            break;
    }
    return false;
}

static ssize_t stream_read(void *cls, uint64_t pos, char *buf, size_t max)
{
    (void)pos;
    Stream *s = cls;
    if (s->sent == s->pending.len) {
        Err err = ERR_INIT;
        if (!stream_fill(s, &err))
            return err.code == ERR_NONE ? MHD_CONTENT_READER_END_OF_STREAM : MHD_CONTENT_READER_END_WITH_ERROR;
    }
    size_t n = MIN(max, s->pending.len - s->sent);
    memcpy(buf, s->pending.s + s->sent, n);
    s->sent += n;
    s->last_ms = clock_mono_ms();
    return (ssize_t)n;
}

struct MHD_Response *http_answer_stream(HttpResponse *response, HttpWatch *watch, bool with_body)
{
    static const char type[] = "text/event-stream";
    if (!with_body) {
        http_answer_discard(response);
        return with_headers(MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT), type);
    }
    Stream *s = calloc(1, sizeof(*s));
    if (!s) {
        http_answer_discard(response);
        return NULL;
    }
    s->source = response->stream;
    response->stream = (HttpStream){0};
    if (s->source.interval_ms <= 0)
        s->source.interval_ms = STREAM_INTERVAL_MS;
    s->watch = watch;
    s->pending.max = STREAM_PENDING_MAX;
    s->last_ms = clock_mono_ms();
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, stream_read, s, stream_free);
    if (!r)
        stream_free(s);
    return with_headers(r, type);
}

struct MHD_Response *http_answer_upgrade(const char *protocol, MHD_UpgradeHandler on_upgrade)
{
    struct MHD_Response *r = MHD_create_response_for_upgrade(on_upgrade, NULL);
    if (r && MHD_add_response_header(r, "Upgrade", protocol) != MHD_YES) {
        MHD_destroy_response(r);
        return NULL;
    }
    return r;
}

void http_answer_discard(HttpResponse *response)
{
    json_decref(response->body);
    free(response->text);
    if (response->stream.next && response->stream.close)
        response->stream.close(response->stream.ctx);
    mem_cleanup_close(&response->relay);
    free(response->cookie);
    *response = (HttpResponse){.relay = -1};
}
