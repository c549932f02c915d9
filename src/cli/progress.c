#include "cli/progress.h"

#include "base/clock.h"

#include <stdarg.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define LABEL_COLUMNS 20
#define BAR_MIN 10
#define BAR_MAX 40
#define COLUMNS_DEFAULT 80
#define COLUMNS_MIN 20
#define COLUMNS_MAX 240

void progress_begin(Progress *p, FILE *f, bool quiet)
{
    const char *term = getenv("TERM");
    *p = (Progress){.f = f, .quiet = quiet};
    p->terminal = isatty(fileno(f)) == 1 && term && !str_eq(term, "dumb");
    p->shown_ms = clock_mono_ms();
}

static unsigned terminal_columns(FILE *f)
{
    struct winsize w;
    if (ioctl(fileno(f), TIOCGWINSZ, &w) != 0 || w.ws_col == 0)
        return COLUMNS_DEFAULT;
    return MAX(COLUMNS_MIN, MIN((unsigned)w.ws_col, COLUMNS_MAX));
}

void progress_words(const ProgressItem *item, const Rate *rate, char out[PROGRESS_LINE])
{
    char done[STR_SIZE_MAX], size[STR_SIZE_MAX], percent[TEXT_PERCENT], speed[STR_SIZE_MAX], left[TEXT_DURATION];
    uint64_t seconds;
    str_size(item->done, done);
    str_size(item->size, size);
    str_size(rate_per_second(rate), speed);
    text_percent(item->done, item->size, percent);
    int n = snprintf(out, PROGRESS_LINE, "%s, %s of %s, %s/s", percent, done, size, speed); // fits: short parts
    if (n > 0 && item->done < item->size && rate_left(rate, item->size - item->done, &seconds)) {
        text_duration(seconds, left);
        (void)snprintf(out + n, PROGRESS_LINE - (size_t)n, ", %s left", left);
    }
}

// The label, cut or filled up to LABEL_COLUMNS.
static bool add_label(StrBuf *b, const char *label, Err *err)
{
    StrBuf clean = STR_BUF(PROGRESS_LINE);
    size_t columns = 0;
    bool fine = text_add_clean(&clean, label, err);
    for (const char *s = clean.s; fine && s && *s;) {
        size_t n = 1;
        while (((unsigned char)s[n] & 0xc0) == 0x80)
            n++;
        char one[8] = {0};
        memcpy(one, s, MIN(n, sizeof(one) - 1));
        size_t width = text_width(one);
        if (columns + width > LABEL_COLUMNS)
            break;
        fine = str_add(b, one, err);
        columns += width;
        s += n;
    }
    str_clear(&clean);
    return fine && str_addf(b, err, "%*s", (int)(LABEL_COLUMNS - columns), "");
}

void progress_bar(const ProgressItem *item, const Rate *rate, unsigned columns, char out[PROGRESS_LINE])
{
    char words[PROGRESS_LINE];
    Err full = ERR_INIT;
    StrBuf b = STR_BUF(PROGRESS_LINE - 1);
    progress_words(item, rate, words);
    size_t fixed = LABEL_COLUMNS + 4 + strlen(words);
    bool fine = true;
    if (columns > LABEL_COLUMNS + 1 + strlen(words))
        fine = add_label(&b, item->label, &full) && str_add(&b, " ", &full);
    if (fine && columns >= fixed + BAR_MIN) {
        size_t width = MIN(columns - fixed, BAR_MAX);
        size_t filled =
            item->size == 0 ? 0 : (size_t)((double)MIN(item->done, item->size) / (double)item->size * (double)width);
        fine = str_add(&b, "[", &full);
        for (size_t i = 0; fine && i < width; i++)
            fine = str_add(&b, i < filled ? "#" : "-", &full);
        fine = fine && str_add(&b, "] ", &full);
    }
    if (!fine || !str_add(&b, words, &full))
        str_clear(&b); // what does not fit is not shown
    (void)snprintf(out, PROGRESS_LINE, "%s", b.s ? b.s : "");
    if (!b.s || text_width(out) > columns)
        (void)snprintf(out, PROGRESS_LINE, "%.*s", (int)MIN(columns, PROGRESS_LINE - 1), words);
    str_clear(&b);
}

static void erase(Progress *p)
{
    if (p->lines > 0)
        (void)fprintf(p->f, "\r\033[%uA\033[J", p->lines);
    p->lines = 0;
}

static void draw(Progress *p, const ProgressItem *items, size_t n, const ProgressItem *total)
{
    char line[PROGRESS_LINE];
    unsigned columns = terminal_columns(p->f) - 1;
    erase(p);
    for (size_t i = 0; i < MIN(n, PROGRESS_BARS); i++) {
        progress_bar(&items[i], &p->rates[i], columns, line);
        (void)fprintf(p->f, "%s\n", line);
        p->lines++;
    }
    if (n > 1) {
        progress_bar(total, &p->total, columns, line);
        (void)fprintf(p->f, "%s\n", line);
        p->lines++;
    }
    (void)fflush(p->f); // a bar that is not seen is no failure
}

void progress_show(Progress *p, const char *what, const ProgressItem *items, size_t n)
{
    int64_t now = clock_mono_ms();
    ProgressItem total = {.label = "all disks"};
    for (size_t i = 0; i < n; i++) {
        total.done += MIN(items[i].done, items[i].size);
        total.size += items[i].size;
        if (i < PROGRESS_BARS)
            rate_add(&p->rates[i], now, items[i].done);
    }
    rate_add(&p->total, now, total.done);
    if (p->quiet || n == 0)
        return;
    if (p->terminal) {
        draw(p, items, n, &total);
    } else if (now - p->shown_ms >= PROGRESS_PLAIN_MS) {
        char words[PROGRESS_LINE];
        progress_words(&total, &p->total, words);
        progress_note(p, "%s: %s", what, words);
        p->shown_ms = now;
    }
}

void progress_note(Progress *p, const char *fmt, ...)
{
    char line[4096];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(line, sizeof(line), fmt, ap); // cut at the ceiling on purpose
    va_end(ap);
    if (p->terminal)
        erase(p);
    text_print_clean(p->f, line);
    (void)fputc('\n', p->f);
    (void)fflush(p->f);
}

void progress_end(Progress *p)
{
    if (p->terminal)
        erase(p);
    (void)fflush(p->f);
    memset(p->rates, 0, sizeof(p->rates));
    p->total = (Rate){0};
}
