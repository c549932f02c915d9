#include "image/layout.h"

#include <stdio.h>

static const char *const suffixes[LAYOUT_KINDS] = {
    [LAYOUT_RECORD] = ".json",
    [LAYOUT_DELETED] = ".json.deleted",
    [LAYOUT_FULL_IMAGE] = "-full.qcow2",
    [LAYOUT_FULL_HASHES] = "-full.hashes",
    [LAYOUT_INCR_IMAGE] = "-incr.qcow2",
    [LAYOUT_INCR_HASHES] = "-incr.hashes",
    [LAYOUT_FULL_JOURNAL] = "-full.journal",
    [LAYOUT_INCR_JOURNAL] = "-incr.journal",
};

#define PARTIAL ".partial-"

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

// [A-Za-z0-9._-], not starting with '.' or '-', 1 to 79 bytes: what name_slug() makes.
static bool is_slug(const char *s, size_t n)
{
    if (n == 0 || n > 79 || s[0] == '.' || s[0] == '-')
        return false;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '.' || c == '_' || c == '-'))
            return false;
    }
    return true;
}

// "<prefix><slug>-<digits>" with min to max digits.
static bool is_slug_and_number(const char *name, const char *prefix, size_t min, size_t max)
{
    size_t n = strlen(name), p = strlen(prefix);
    if (n <= p || strncmp(name, prefix, p) != 0)
        return false;
    size_t start = n;
    while (start > p && is_digit(name[start - 1]))
        start--;
    size_t digits = n - start;
    if (digits < min || digits > max || start <= p + 1 || name[start - 1] != '-')
        return false;
    return is_slug(name + p, start - 1 - p);
}

bool layout_is_context(const char *name)
{
    return is_slug_and_number(name, "ctx-", 14, 14);
}

bool layout_is_stem(const char *stem)
{
    return is_slug_and_number(stem, "backup-", 1, 19);
}

bool layout_is_attempt(const char *attempt)
{
    size_t n = strlen(attempt);
    return n > 0 && n < LAYOUT_ATTEMPT && strspn(attempt, "0123456789abcdef") == n;
}

bool layout_disk_no(const char *name, unsigned *ret_no)
{
    if (strncmp(name, "disk-", 5) != 0)
        return false;
    const char *p = name + 5;
    size_t n = strlen(p);
    if (n == 0 || n > 5 || strspn(p, "0123456789") != n || (p[0] == '0' && n > 1))
        return false;
    *ret_no = (unsigned)strtoul(p, NULL, 10);
    return true;
}

bool layout_parse(const char *name, LayoutName *ret)
{
    LayoutName r = {0};
    size_t n = strlen(name);
    if (n >= LAYOUT_NAME)
        return false;

    // The last ".partial-" counts: a VM's name may hold one as well.
    const char *partial = NULL;
    for (const char *p = strstr(name, PARTIAL); p; p = strstr(p + 1, PARTIAL))
        partial = p;
    if (partial && layout_is_attempt(partial + strlen(PARTIAL))) {
        (void)snprintf(r.attempt, sizeof(r.attempt), "%s", partial + strlen(PARTIAL)); // its length was checked
        n = (size_t)(partial - name);
    }
    for (int k = 0; k < LAYOUT_KINDS; k++) {
        size_t s = strlen(suffixes[k]);
        if (n <= s || n - s >= LAYOUT_STEM || memcmp(name + n - s, suffixes[k], s) != 0)
            continue;
        r.kind = (LayoutKind)k;
        memcpy(r.stem, name, n - s);
        r.stem[n - s] = '\0';
        if (!layout_is_stem(r.stem) || (r.kind == LAYOUT_DELETED && r.attempt[0]))
            continue;
        *ret = r;
        return true;
    }
    return false;
}

bool layout_name(LayoutKind kind, const char *stem, const char *attempt, char out[LAYOUT_NAME], Err *err)
{
    if (!layout_is_stem(stem))
        return err_set(err, ERR_INVALID, "'%.200s' is no stem of file names of a backup", stem);
    if (attempt && !layout_is_attempt(attempt))
        return err_set(err, ERR_INVALID, "'%.200s' is no attempt: 1 to 32 lower-case hex digits", attempt);
    // Bounded: a stem has at most 106 bytes, an attempt 32.
    (void)snprintf(out, LAYOUT_NAME, "%s%s%s%s", stem, suffixes[kind], attempt ? PARTIAL : "", attempt ? attempt : "");
    return true;
}
