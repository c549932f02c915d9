// The request target of HTTP.
#include "fuzz.h"

#include "http/url.h"

#define URL_MAX 8192

static void add(StrBuf *b, const char *s)
{
    Err err = ERR_INIT;
    for (; *s; s++)
        fuzz_check(str_addf(b, &err, "%%%02X", (unsigned)(unsigned char)*s));
}

// The same URL with every byte percent-encoded.
static char *encode(const HttpUrl *url)
{
    Err err = ERR_INIT;
    StrBuf b = STR_BUF(64 * URL_MAX);
    for (size_t i = 0; i < url->n_segments; i++) {
        fuzz_check(str_add(&b, "/", &err));
        add(&b, url->segments[i]);
    }
    for (size_t i = 0; i < url->n_query; i++) {
        fuzz_check(str_add(&b, i == 0 ? "?" : "&", &err));
        add(&b, url->query[i].name);
        fuzz_check(str_add(&b, "=", &err));
        add(&b, url->query[i].value);
    }
    return b.s;
}

static void check_text(const char *s)
{
    fuzz_check(str_is_utf8(s, strlen(s)) && str_has_no_controls(s));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    Err err = ERR_INIT;
    HttpUrl url, again;
    char *target = fuzz_text(data, MIN(n, URL_MAX));
    if (!http_url_parse(target, &url, &err)) {
        fuzz_check(err.code == ERR_INVALID || err.code == ERR_NOT_FOUND);
        free(target);
        return 0;
    }
    fuzz_check(url.n_segments >= 1 && url.n_segments <= HTTP_SEGMENTS_MAX && url.n_query <= HTTP_QUERY_MAX);
    fuzz_check(strstr(target, url.raw) != NULL && !strchr(url.raw, '?'));
    char *encoded = encode(&url);
    fuzz_check(http_url_parse(encoded, &again, &err));
    fuzz_check(again.n_segments == url.n_segments && again.n_query == url.n_query);
    for (size_t i = 0; i < url.n_segments; i++) {
        check_text(url.segments[i]);
        fuzz_check(str_eq(url.segments[i], again.segments[i]));
    }
    for (size_t i = 0; i < url.n_query; i++) {
        check_text(url.query[i].name);
        check_text(url.query[i].value);
        fuzz_check(url.query[i].name[0] != '\0');
        fuzz_check(str_eq(url.query[i].name, again.query[i].name) && str_eq(url.query[i].value, again.query[i].value));
    }
    http_url_clear(&url);
    http_url_clear(&again);
    free(encoded);
    free(target);
    return 0;
}
