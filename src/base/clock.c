#include "base/clock.h"

#include <stdio.h>
#include <time.h>

#define US_PER_S INT64_C(1000000)
#define FIRST_S INT64_C(-62167219200) // 0000-01-01T00:00:00Z
#define LAST_S INT64_C(253402300799)  // 9999-12-31T23:59:59Z

int64_t clock_utc_us(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_REALTIME, &t); // cannot fail for this clock
    return (int64_t)t.tv_sec * US_PER_S + t.tv_nsec / 1000;
}

int64_t clock_mono_ms(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t); // cannot fail for this clock
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void clock_format(int64_t utc_us, char out[CLOCK_TEXT])
{
    int64_t s = utc_us / US_PER_S, us = utc_us % US_PER_S;
    if (us < 0) { // before 1970: round down, not towards zero
        us += US_PER_S;
        s--;
    }
    if (s < FIRST_S) {
        s = FIRST_S;
        us = 0;
    } else if (s > LAST_S) {
        s = LAST_S;
        us = US_PER_S - 1;
    }
    time_t t = (time_t)s;
    struct tm tm;
    (void)gmtime_r(&t, &tm); // within four-digit years: cannot fail
    char text[80];           // room for any int, so that the compiler need not guess
    (void)snprintf(text, sizeof(text), "%04d-%02d-%02dT%02d:%02d:%02d.%06dZ", tm.tm_year + 1900,
                   tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, (int)us);
    memcpy(out, text, CLOCK_TEXT - 1);
    out[CLOCK_TEXT - 1] = '\0';
}

// n digits at *p as a number within min..max; *p moves behind them.
static bool take(const char **p, int n, int min, int max, int *ret)
{
    int v = 0;
    for (int i = 0; i < n; i++) {
        char c = (*p)[i];
        if (c < '0' || c > '9')
            return false;
        v = v * 10 + (c - '0');
    }
    if (v < min || v > max)
        return false;
    *p += n;
    *ret = v;
    return true;
}

static bool take_char(const char **p, char c)
{
    if (**p != c)
        return false;
    (*p)++;
    return true;
}

static int days_in_month(int year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return month == 2 && leap ? 29 : days[month - 1];
}

static bool take_fraction(const char **p, int64_t *ret_us)
{
    int64_t us = 0, weight = US_PER_S / 10;
    int n = 0;
    for (; **p >= '0' && **p <= '9'; (*p)++, n++) {
        us += weight * (**p - '0'); // below a microsecond the weight is 0: cut off
        weight /= 10;
    }
    *ret_us = us;
    return n >= 1 && n <= 9;
}

static bool take_offset(const char **p, int64_t *ret_s)
{
    if (**p == 'Z' || **p == 'z') {
        (*p)++;
        *ret_s = 0;
        return true;
    }
    int sign = **p == '-' ? -1 : 1;
    if (**p != '+' && **p != '-')
        return false;
    (*p)++;
    int h, m;
    if (!take(p, 2, 0, 23, &h) || !take_char(p, ':') || !take(p, 2, 0, 59, &m))
        return false;
    *ret_s = sign * (h * 3600 + m * 60);
    return true;
}

static bool parse(const char *p, int64_t *ret)
{
    int year, month, day, h, m, s;
    int64_t us = 0, offset = 0;
    if (!take(&p, 4, 0, 9999, &year) || !take_char(&p, '-') || !take(&p, 2, 1, 12, &month) ||
        !take_char(&p, '-') || !take(&p, 2, 1, days_in_month(year, month), &day) ||
        (*p != 'T' && *p != 't'))
        return false;
    p++;
    if (!take(&p, 2, 0, 23, &h) || !take_char(&p, ':') || !take(&p, 2, 0, 59, &m) ||
        !take_char(&p, ':') || !take(&p, 2, 0, 60, &s))
        return false;
    if (take_char(&p, '.') && !take_fraction(&p, &us))
        return false;
    if (!take_offset(&p, &offset) || *p)
        return false;
    struct tm tm = {.tm_year = year - 1900,
                    .tm_mon = month - 1,
                    .tm_mday = day,
                    .tm_hour = h,
                    .tm_min = m,
                    .tm_sec = s};
    int64_t t = (int64_t)timegm(&tm) - offset;
    if (s == 60 &&
        t % 86400 != 0) // a leap second is the last of a UTC day; it counts as the next one's first
        return false;
    if (t < FIRST_S || t > LAST_S)
        return false;
    *ret = t * US_PER_S + us;
    return true;
}

bool clock_parse(const char *s, int64_t *ret_utc_us, Err *err)
{
    if (!parse(s, ret_utc_us))
        return err_set(err, ERR_INVALID, "not a time of RFC 3339, such as 2026-01-02T03:04:05Z");
    return true;
}
