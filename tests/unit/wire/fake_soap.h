// A server of SOAP for the tests of wire/vim.h, without a network: the HTTP client's calls are linked to it (--wrap).
// It gives one reply after the other, and keeps what it was asked.
#pragma once

#include "unit.h"

#include "base/file.h"
#include "base/str.h"
#include "codec/xml.h"
#include "wire/http_client.h"
#include "wire/vim.h"

#define FAKE_MAX 48
#define FAKE_FIXTURES SOURCE_ROOT "/tests/fixtures/vsphere/"
#define FAKE_ENVELOPE_BEGIN                                                                                 \
    "<?xml version=\"1.0\"?><e:Envelope xmlns:e=\"http://schemas.xmlsoap.org/soap/envelope/\" xmlns:xsi=\"" \
    "http://www.w3.org/2001/XMLSchema-instance\"><e:Body>"
#define FAKE_ENVELOPE_END "</e:Body></e:Envelope>"

typedef struct FakeReply {
    int status;
    char *body;      // owned
    size_t len, cut; // what is given; SIZE_MAX: all
    bool breaks;     // instead of an end
    ErrCode fails;   // nothing is answered
    const char *cookie;
} FakeReply;

static struct {
    FakeReply replies[FAKE_MAX];
    char *requests[FAKE_MAX];
    char *cookies[FAKE_MAX]; // that came with them
    bool once[FAKE_MAX];
    size_t n, asked;
    size_t at; // bytes of the running reply that were given
    bool open;
} fake;

static inline void fake_reset(void)
{
    for (size_t i = 0; i < FAKE_MAX; i++) {
        free(fake.replies[i].body);
        free(fake.requests[i]);
        free(fake.cookies[i]);
    }
    memset(&fake, 0, sizeof(fake));
}

static inline FakeReply *fake_add(int status, const char *body)
{
    assert_true(fake.n < FAKE_MAX);
    FakeReply *r = &fake.replies[fake.n++];
    *r = (FakeReply){.status = status, .body = strdup(body), .len = strlen(body), .cut = SIZE_MAX};
    assert_non_null(r->body);
    return r;
}

static inline char *fake_file(const char *name)
{
    char path[512];
    char *text = NULL;
    size_t n = 0;
    Err err = ERR_INIT;
    (void)snprintf(path, sizeof(path), FAKE_FIXTURES "%s", name);
    assert_ok(file_read(path, 1 << 20, &text, &n, &err), &err);
    return text;
}

// A recorded reply, "04-FindByInventoryPath".
static inline FakeReply *fake_fixture(const char *name)
{
    char file[128];
    (void)snprintf(file, sizeof(file), "%s.resp.xml", name);
    cleanup_free char *text = fake_file(file);
    return fake_add(strstr(text, ":Fault>") ? 500 : 200, text);
}

// <METHODResponse>INSIDE</METHODResponse> in an envelope.
static inline FakeReply *fake_answer(const char *method, const char *inside)
{
    Err err = ERR_INIT;
    cleanup_free char *text =
        mem_printf(&err, FAKE_ENVELOPE_BEGIN "<%sResponse xmlns=\"urn:vim25\">%s</%sResponse>" FAKE_ENVELOPE_END,
                   method, inside, method);
    assert_non_null(text);
    return fake_add(200, text);
}

static inline FakeReply *fake_fault(const char *type, const char *text, const char *inside)
{
    Err err = ERR_INIT;
    cleanup_free char *body =
        mem_printf(&err,
                   FAKE_ENVELOPE_BEGIN
                   "<e:Fault><faultcode>ServerFaultCode</faultcode><faultstring>%s</faultstring><detail>"
                   "<%sFault xmlns=\"urn:vim25\" xsi:type=\"%s\">%s</%sFault></detail></e:Fault>" FAKE_ENVELOPE_END,
                   text, type, type, inside, type);
    assert_non_null(body);
    return fake_add(500, body);
}

bool __wrap_http_client_open(HttpClient *c, const HttpRequest *r, int *ret_status, Err *err);
bool __wrap_http_client_read(HttpClient *c, void *buf, size_t cap, size_t *ret_n, Err *err);
void __wrap_http_client_end(HttpClient *c);
const char *__wrap_http_client_header(HttpClient *c, const char *name, size_t index);

bool __wrap_http_client_open(HttpClient *c, const HttpRequest *r, int *ret_status, Err *err)
{
    (void)c;
    assert_false(fake.open);
    if (r->cancel && atomic_load(r->cancel))
        return err_set(err, ERR_CANCELLED, "cancelled");
    if (fake.asked >= fake.n)
        fail_msg("an unexpected request: %s", r->body);
    size_t i = fake.asked++;
    fake.requests[i] = strdup(r->body);
    fake.cookies[i] = strdup(r->cookie ? secret_reveal(r->cookie) : "");
    fake.once[i] = r->once;
    if (fake.replies[i].fails != ERR_NONE)
        return err_set(err, fake.replies[i].fails, "it failed");
    fake.at = 0;
    fake.open = true;
    *ret_status = fake.replies[i].status;
    return true;
}

bool __wrap_http_client_read(HttpClient *c, void *buf, size_t cap, size_t *ret_n, Err *err)
{
    const FakeReply *r = &fake.replies[fake.asked - 1];
    size_t end = MIN(r->len, r->cut), n = MIN(cap, end - fake.at);
    (void)c;
    assert_true(fake.open);
    if (n == 0 && r->breaks)
        return err_set(err, ERR_UNAVAILABLE, "the connection broke");
    memcpy(buf, r->body + fake.at, n);
    fake.at += n;
    *ret_n = n;
    return true;
}

void __wrap_http_client_end(HttpClient *c)
{
    (void)c;
    assert_true(fake.open);
    fake.open = false;
}

const char *__wrap_http_client_header(HttpClient *c, const char *name, size_t index)
{
    (void)c;
    assert_string_equal(name, "Set-Cookie");
    const char *cookie = fake.replies[fake.asked - 1].cookie;
    return index == 0 ? cookie : NULL;
}

// ---- a session on it

typedef struct FakeSession {
    Vim *vim;
    Err err;
    atomic_bool cancel;
} FakeSession;

static inline bool fake_login(FakeSession *s)
{
    cleanup(secret_clear) Secret password = {0};
    assert_ok(secret_set(&password, "pass", &s->err), &s->err);
    VimSpec spec = {.host = "vc.test", .user = "user", .password = &password, .timeout_ms = 5000, .cancel = &s->cancel};
    return vim_open(&spec, &s->vim, &s->err);
}

static inline int fake_open(void **state)
{
    FakeSession *s = calloc(1, sizeof(*s));
    assert_non_null(s);
    fake_reset();
    fake_fixture("01-RetrieveServiceContent")->cookie = "vmware_soap_session=\"before\"; Path=/";
    fake_fixture("03-Login")->cookie = "vmware_soap_session=\"first\"; Path=/; HttpOnly; Secure";
    assert_ok(fake_login(s), &s->err);
    *state = s;
    return 0;
}

static inline int fake_close(void **state)
{
    FakeSession *s = *state;
    assert_int_equal(fake.asked, fake.n); // every reply was wanted
    fake_fixture("33-Logout");
    vim_close(s->vim);
    assert_int_equal(fake.asked, fake.n);
    free(s);
    fake_reset();
    return 0;
}

// The replies from now on.
static inline void fake_again(void)
{
    assert_int_equal(fake.asked, fake.n);
    fake_reset();
}

// ---- requests

// A request's body without its elements of that name, which have none of that name in them; in place.
static inline char *fake_without(char *xml, const char *const *ignored)
{
    char *body = strstr(xml, "<soapenv:Body>");
    assert_non_null(body);
    for (; ignored && *ignored; ignored++) {
        char begin[64], end[64];
        (void)snprintf(begin, sizeof(begin), "<%s>", *ignored);
        (void)snprintf(end, sizeof(end), "</%s>", *ignored);
        for (char *from; (from = strstr(body, begin));) {
            char *to = strstr(from, end);
            assert_non_null(to);
            to += strlen(end);
            memmove(from, to, strlen(to) + 1);
        }
    }
    return body;
}

// The i-th request is the recorded one, what `ignored` names left out of both. (Elements have an order, prefixes are
// the same in both, and neither has blanks in between.)
static inline void fake_assert_like(size_t i, const char *name, const char *const *ignored)
{
    char file[128];
    (void)snprintf(file, sizeof(file), "%s.req.xml", name);
    cleanup_free char *recorded = fake_file(file);
    assert_true(i < fake.asked);
    cleanup_free char *sent = strdup(fake.requests[i]);
    assert_non_null(sent);
    assert_string_equal(fake_without(sent, ignored), fake_without(recorded, ignored));
}

static inline void fake_assert_asked(size_t i, const char *part)
{
    assert_true(i < fake.asked);
    if (!strstr(fake.requests[i], part))
        fail_msg("request %zu has no %s: %s", i, part, fake.requests[i]);
}

// `run` must fail, with ERR_PROTOCOL, on its replies with the last one ending at any byte of it.
static inline void fake_truncate(FakeSession *s, size_t n, const char *const *names, bool (*run)(FakeSession *s))
{
    for (size_t cut = 0;; cut++) {
        fake_again();
        FakeReply *last = NULL;
        for (size_t i = 0; i < n; i++)
            last = fake_fixture(names[i]);
        size_t end = (size_t)(strrchr(last->body, '>') - last->body) + 1;
        if (cut == end) {
            fake.n = 0; // all of it: not of interest here
            fake_reset();
            return;
        }
        last->cut = cut;
        if (run(s))
            fail_msg("%s, cut after %zu bytes, went well", names[n - 1], cut);
        if (s->err.code != ERR_PROTOCOL)
            fail_msg("%s, cut after %zu bytes: %s: %s", names[n - 1], cut, err_name(s->err.code), s->err.details);
        err_clear(&s->err);
        fake.n = fake.asked; // what comes after a failure is not asked for
    }
}
