#include "base/log.h"

#include "base/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#define LINE_BYTES 4096      // PIPE_BUF: one write of this size is never torn by another's
#define VALUE_BYTES 1600     // of one value as written: a long message leaves room for the fields
#define CUT_VALUE "..."      // stands for the rest of a value
#define CUT_LINE " cut=true" // stands for the fields that found no room
#define KEY_BYTES 40

typedef struct Line {
    char text[LINE_BYTES];
    size_t len;
} Line;

static pthread_once_t level_once = PTHREAD_ONCE_INIT;
static LogLevel level_min = LOG_INFO_;
static atomic_bool torn; // the last line has no end
static const char *const level_names[] = {"debug", "info", "warn", "error"};

static void read_level(void)
{
    const char *s = getenv("SENDENSE_LOG");
    for (size_t i = 0; s && i < ARRAY_LEN(level_names); i++)
        if (strcmp(s, level_names[i]) == 0)
            level_min = (LogLevel)i;
}

// The callers have looked whether there is room.
static void put(Line *l, const char *s, size_t n)
{
    memcpy(l->text + l->len, s, n);
    l->len += n;
}

static void put_text(Line *l, const char *s)
{
    put(l, s, strlen(s));
}

// Decodes one code point of at most n bytes at p: its length, or 0 where it is not UTF-8.
static size_t code_point(const unsigned char *p, size_t n, uint32_t *ret)
{
    if (p[0] < 0x80) {
        *ret = p[0];
        return 1;
    }
    size_t len = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (p[0] < 0xc2 || p[0] > 0xf4 || n < len)
        return 0;
    uint32_t c = p[0] & (0x7fU >> len);
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (p[i] & 0x3fU);
    }
    if (c < least[len] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
        return 0;
    *ret = c;
    return len;
}

// What would end a line, steer a terminal, or show text in another order than it is stored.
static bool is_unsafe(uint32_t c)
{
    return c < 0x20 || (c >= 0x7f && c <= 0x9f) || c == 0x2028 || c == 0x2029 || c == 0x200e ||
        c == 0x200f || (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) || c == 0xfeff;
}

// How the code point at p is written: into out, its length in the line; *ret_used bytes of p are done.
static size_t escape(const unsigned char *p, size_t n, char out[16], size_t *ret_used)
{
    uint32_t c = 0;
    size_t len = code_point(p, n, &c);
    *ret_used = len ? len : 1;
    if (len == 0)
        return (size_t)snprintf(out, 16, "\\ufffd");
    if (c == '"' || c == '\\')
        return (size_t)snprintf(out, 16, "\\%c", (char)c);
    if (c == '\n' || c == '\r' || c == '\t')
        return (size_t)snprintf(out, 16, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
    if (is_unsafe(c))
        return (size_t)snprintf(out, 16, "\\u%04" PRIx32, c);
    memcpy(out, p, len);
    return len;
}

// Room for one key, an empty quoted value and every mark of a cut must be there.
static void put_quoted(Line *l, const char *s)
{
    size_t end = MIN(l->len + VALUE_BYTES, LINE_BYTES - sizeof("\"" CUT_VALUE "\"" CUT_LINE "\n"));
    const unsigned char *p = (const unsigned char *)s;
    size_t n = strlen(s);
    put(l, "\"", 1);
    while (n > 0) {
        char piece[16];
        size_t used, len = escape(p, n, piece, &used);
        if (l->len + len > end) {
            put_text(l, CUT_VALUE);
            break;
        }
        put(l, piece, len);
        p += used;
        n -= used;
    }
    put(l, "\"", 1);
}

static bool is_plain(const char *s)
{
    size_t n = 0;
    for (; s[n]; n++)
        if (!((s[n] >= 'a' && s[n] <= 'z') || (s[n] >= 'A' && s[n] <= 'Z') ||
              (s[n] >= '0' && s[n] <= '9') || strchr("._-:/+@,%", s[n])))
            return false;
    return n > 0 && n <= 200;
}

static bool put_field(Line *l, const LogField *f)
{
    size_t least = KEY_BYTES + sizeof(" =\"" CUT_VALUE "\"" CUT_LINE "\n"),
           value = f->is_number ? 24 : 0;
    bool plain = !f->is_number && f->text && is_plain(f->text);
    if (plain)
        value = strlen(f->text);
    if (l->len + least + value > LINE_BYTES)
        return false;
    put(l, " ", 1);
    for (size_t i = 0; f->key[i] && i < KEY_BYTES; i++) {
        char c = f->key[i];
        bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
            c == '_' || c == '.';
        put(l, word ? &c : "_", 1);
    }
    put(l, "=", 1);
    if (f->is_number) {
        char number[24];
        (void)snprintf(number, sizeof(number), "%" PRId64, f->number);
        put_text(l, number);
    } else if (plain) {
        put_text(l, f->text);
    } else {
        put_quoted(l, f->text ? f->text : "");
    }
    return true;
}

// Whether all of it was written; *ret_done: how much of it was.
static bool write_all(const char *text, size_t n, size_t *ret_done)
{
    for (*ret_done = 0; *ret_done < n;) {
        ssize_t r = write(STDERR_FILENO, text + *ret_done, n - *ret_done);
        if (r <= 0 && !(r < 0 && errno == EINTR))
            return false; // nobody to tell that the log cannot be written
        *ret_done += r > 0 ? (size_t)r : 0;
    }
    return true;
}

static void write_line(const Line *l)
{
    size_t done;
    // What a full disk has of a line must not become part of the next one.
    if (atomic_exchange(&torn, false) && !write_all("\n", 1, &done))
        atomic_store(&torn, true);
    else if (!write_all(l->text, l->len, &done) && done > 0)
        atomic_store(&torn, true);
}

void log_line(LogLevel level, const char *msg, const LogField *fields)
{
    (void)pthread_once(&level_once, read_level); // cannot fail for a static control
    if (level < level_min)
        return;
    int saved = errno; // a caller may log before it looks at errno
    Line l;
    l.len = 0;
    char ts[CLOCK_TEXT];
    clock_format(clock_utc_us(), ts);
    put_text(&l, "ts=");
    put_text(&l, ts);
    put_text(&l, " level=");
    put_text(&l, level_names[level]);
    put_text(&l, " msg=");
    put_quoted(&l, msg);
    for (const LogField *f = fields; f && f->key; f++) {
        if (!put_field(&l, f)) {
            put_text(&l, CUT_LINE);
            break;
        }
    }
    put(&l, "\n", 1);
    write_line(&l);
    errno = saved;
}
