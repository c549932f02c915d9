// The folder of a repository that has backups of hubs' databases: names, and which of them go.
#include "base/clock.h"
#include "base/file.h"
#include "base/num.h"
#include "base/str.h"
#include "domain/daily.h"
#include "service/hub/internal.h"

#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#define FILES_MAX 100000u
#define HUB_DIGITS 8
#define NUMBER_DIGITS 8
#define STAMP_DIGITS 16 // "20260102T030405Z"
#define END ".db.zst"

bool hub_dump_name(const char *hub_id, uint64_t number, int64_t created_us, char ret[HUB_DUMP_NAME], Err *err)
{
    time_t seconds = (time_t)(created_us / 1000000);
    struct tm t;
    if (number > HUB_DUMP_NUMBER_MAX)
        return err_set(err, ERR_UNSUPPORTED, "there are no more numbers for backups of the database");
    if (!gmtime_r(&seconds, &t) || t.tm_year < -1900 || t.tm_year > 8099)
        return err_set(err, ERR_INTERNAL, "the clock is out of range");
    int n =
        snprintf(ret, HUB_DUMP_NAME, "hub-%.8s-%08llu-%04d%02d%02dT%02d%02d%02dZ" END, hub_id,
                 (unsigned long long)number, t.tm_year + 1900, t.tm_mon + 1, t.tm_mday, t.tm_hour, t.tm_min, t.tm_sec);
    return (n > 0 && n < HUB_DUMP_NAME) || err_set(err, ERR_INTERNAL, "the name of a backup of the database");
}

static bool digits(const char *s, size_t n, const char *of)
{
    return strspn(s, of) >= n;
}

static bool parse_stamp(const char *s, int64_t *ret_us)
{
    char text[CLOCK_TEXT];
    Err odd = ERR_INIT;
    if (!digits(s, 8, "0123456789") || s[8] != 'T' || !digits(s + 9, 6, "0123456789") || s[15] != 'Z')
        return false;
    (void)snprintf(text, sizeof(text), "%.4s-%.2s-%.2sT%.2s:%.2s:%.2sZ", s, s + 4, s + 6, s + 9, s + 11, s + 13);
    return clock_parse(text, ret_us, &odd);
}

// Exactly our own names; whatever else lies there is somebody else's.
static bool parse_name(const char *file, HubDump *ret)
{
    const char *hub = file + 4, *number = hub + HUB_DIGITS + 1, *stamp = number + NUMBER_DIGITS + 1;
    char text[NUMBER_DIGITS + 1] = {0};
    Err odd = ERR_INIT;
    if (strlen(file) != 4 + HUB_DIGITS + 1 + NUMBER_DIGITS + 1 + STAMP_DIGITS + strlen(END) ||
        !str_starts(file, "hub-") || !digits(hub, HUB_DIGITS, "0123456789abcdef") || hub[HUB_DIGITS] != '-' ||
        !digits(number, NUMBER_DIGITS, "0123456789") || number[NUMBER_DIGITS] != '-' || !str_ends(file, END) ||
        !parse_stamp(stamp, &ret->created_us))
        return false;
    memcpy(text, number, NUMBER_DIGITS);
    memcpy(ret->hub, hub, HUB_DIGITS);
    ret->hub[HUB_DIGITS] = '\0';
    (void)snprintf(ret->file, sizeof(ret->file), "%s", file);
    return num_u64(text, 0, HUB_DUMP_NUMBER_MAX, &ret->number, &odd);
}

static int newest_first(const void *a, const void *b)
{
    const HubDump *x = a, *y = b;
    if (x->number != y->number)
        return x->number < y->number ? 1 : -1;
    return strcmp(y->file, x->file);
}

bool hub_dump_list(const char *folder, const char *hub_id, HubDump **ret, size_t *ret_len, Err *err)
{
    FileList names;
    Err why = ERR_INIT;
    *ret = NULL;
    *ret_len = 0;
    if (!file_list(folder, FILES_MAX, &names, &why)) {
        if (why.code == ERR_NOT_FOUND) // none was made yet
            return true;
        *err = why;
        return false;
    }
    HubDump *found = mem_calloc(names.len + 1, sizeof(*found), err);
    size_t n = 0;
    for (size_t i = 0; found && i < names.len; i++)
        if (parse_name(names.names[i], &found[n]) && (!hub_id || strncmp(found[n].hub, hub_id, HUB_DIGITS) == 0))
            n++;
    file_list_clear(&names);
    if (!found)
        return false;
    qsort(found, n, sizeof(*found), newest_first);
    *ret = found;
    *ret_len = n;
    return true;
}

char *hub_dump_folder(const char *repository, Err *err)
{
    return file_join(repository, HUB_DUMP_FOLDER, err);
}

bool hub_dump_folder_make(const char *repository, char **ret, Err *err)
{
    struct stat st;
    cleanup_free char *folder = hub_dump_folder(repository, err);
    if (!folder || !file_mkdir(folder, 0700, err))
        return false;
    if (lstat(folder, &st) != 0 || !S_ISDIR(st.st_mode)) // not through a link to elsewhere
        return err_set(err, ERR_CONFLICT, "%s is not a folder", folder);
    if (!file_fsync_dir(repository, err))
        return false;
    *ret = mem_take(folder);
    return true;
}

// Was it written to within that time before the folder last changed? By the filesystem's clock alone.
static bool is_young(const char *folder, const char *path, unsigned seconds)
{
    struct stat now, st;
    return lstat(folder, &now) == 0 && lstat(path, &st) == 0 && now.st_mtime - st.st_mtime < (time_t)seconds;
}

// What an earlier run did not come to the end of.
static bool remove_partial(const char *folder, const char *hub_id, unsigned spare_s, Err *err)
{
    FileList names;
    char start[HUB_DUMP_NAME];
    if (!file_list(folder, FILES_MAX, &names, err))
        return false;
    (void)snprintf(start, sizeof(start), "hub-%.8s-", hub_id);
    bool ok = true;
    for (size_t i = 0; ok && i < names.len; i++) {
        if (!str_starts(names.names[i], start) || !str_ends(names.names[i], END HUB_DUMP_PARTIAL))
            continue;
        cleanup_free char *path = file_join(folder, names.names[i], err);
        ok = path && ((spare_s > 0 && is_young(folder, path, spare_s)) || file_unlink(path, err));
    }
    file_list_clear(&names);
    return ok;
}

bool hub_dump_prune(const char *folder, const char *hub_id, unsigned keep_days, unsigned spare_s, Err *err)
{
    HubDump *files = NULL;
    size_t len = 0;
    if (!remove_partial(folder, hub_id, spare_s, err) || !hub_dump_list(folder, hub_id, &files, &len, err))
        return false;
    int64_t *made = mem_calloc(len + 1, sizeof(*made), err);
    bool *keep = mem_calloc(len + 1, sizeof(*keep), err);
    bool ok = made && keep;
    for (size_t i = 0; ok && i < len; i++)
        made[i] = files[i].created_us;
    if (ok)
        daily_keep(made, len, keep_days, keep);
    for (size_t i = len; ok && i-- > 0;) { // the oldest first
        cleanup_free char *path = keep[i] ? NULL : file_join(folder, files[i].file, err);
        ok = keep[i] || (path && file_unlink(path, err));
    }
    free(made);
    free(keep);
    free(files);
    return ok;
}
