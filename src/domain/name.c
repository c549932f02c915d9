#include "domain/name.h"

#include "base/num.h"
#include "base/str.h"

#include <inttypes.h>
#include <stdio.h>

#define SLUG_BYTES 64
#define UUID_DIGITS 8
#define SECONDS_MAX ((uint64_t)INT64_MAX)

static bool check_text(const char *what, const char *s, size_t max, Err *err)
{
    size_t n = strnlen(s, max + 1);
    if (n == 0)
        return err_set(err, ERR_INVALID, "%s is empty", what);
    if (n > max)
        return err_set(err, ERR_INVALID, "%s has more than %zu bytes", what, max);
    if (!str_is_utf8(s, n))
        return err_set(err, ERR_INVALID, "%s is not UTF-8", what);
    if (!str_has_no_controls(s))
        return err_set(err, ERR_INVALID, "%s holds a control character", what);
    return true;
}

bool name_check(const char *what, const char *name, Err *err)
{
    if (!check_text(what, name, NAME_MAX_BYTES, err))
        return false;
    if (name[strspn(name, " ")] == '\0')
        return err_set(err, ERR_INVALID, "%s is all blanks", what);
    return true;
}

static bool is_slug_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
        c == '_' || c == '-';
}

static bool is_slug(const char *s)
{
    size_t n = 0;
    for (; s[n]; n++)
        if (!is_slug_char(s[n]))
            return false;
    return n > 0 && n <= SLUG_BYTES && s[0] != '.' && s[0] != '-';
}

void name_slug(const char *name, const char *uuid, char out[NAME_SLUG])
{
    if (is_slug(name)) {
        memcpy(out, name, strlen(name) + 1);
        return;
    }
    size_t n = 0;
    bool replaced = false;
    for (const char *p = name; *p && n < SLUG_BYTES - UUID_DIGITS - 1; p++) {
        bool fine = is_slug_char(*p) && !(n == 0 && (*p == '.' || *p == '-'));
        if (fine)
            out[n++] = *p;
        else if (!replaced)
            out[n++] = '_'; // one for a run: a name in another script is not a row of them
        replaced = !fine;
    }
    out[n++] = '-';
    for (size_t i = 0; uuid[i] && i < UUID_DIGITS; i++)
        out[n++] = uuid[i] >= 'A' && uuid[i] <= 'F' ? (char)(uuid[i] - 'A' + 'a') : uuid[i];
    out[n] = '\0';
}

bool name_backup_id(const char *vm_name, int64_t unix_seconds, char out[NAME_BACKUP_ID], Err *err)
{
    if (!name_check("vm_name", vm_name, err))
        return false;
    if (unix_seconds < 0)
        return err_set(err, ERR_INVALID, "a backup cannot be older than 1970");
    (void)snprintf(out, NAME_BACKUP_ID, "backup-%s-%" PRId64, vm_name,
                   unix_seconds); // at most 283 bytes
    return true;
}

bool name_check_job_id(const char *id, Err *err)
{
    return check_text("the job ID", id, NAME_BACKUP_ID - 1, err);
}

bool name_stem(const char *backup_id, const char *slug, char out[NAME_STEM], Err *err)
{
    const char *dash = strrchr(backup_id, '-');
    uint64_t seconds = 0;
    Err bad = ERR_INIT;
    if (!str_starts(backup_id, "backup-") || dash < backup_id + strlen("backup-") ||
        (dash[1] == '0' && dash[2]) || !num_u64(dash + 1, 0, SECONDS_MAX, &seconds, &bad))
        return err_set(err, ERR_INVALID,
                       "the backup ID is not of the form backup-<vm name>-<unix seconds>");
    if (!is_slug(slug))
        return err_set(err, ERR_INTERNAL, "not a slug");
    (void)snprintf(out, NAME_STEM, "backup-%s-%" PRIu64, slug, seconds); // at most 91 bytes
    return true;
}
