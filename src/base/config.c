#include "base/config.h"

#include "base/file.h"
#include "base/str.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

#define FILE_BYTES_MAX (1u << 20)
#define FOLDER_MAX 1000
#define VARIABLE_MAX 96

static bool is_excepted(const char *const *except, const char *name)
{
    for (; *except; except++)
        if (str_eq(*except, name))
            return true;
    return false;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

// Cuts blanks off both ends, in place.
static char *trim(char *s)
{
    while (is_blank(*s))
        s++;
    size_t n = strlen(s);
    while (n > 0 && is_blank(s[n - 1]))
        s[--n] = '\0';
    return s;
}

static bool take_line(char *line, const Opt *table, const char *const *except, Err *err)
{
    line = trim(line);
    if (*line == '\0' || *line == '#')
        return true;
    for (const char *c = line; *c; c++)
        if ((unsigned char)*c < 0x20 && *c != '\t')
            return err_set(err, ERR_USAGE, "a control character");
    char *equals = strchr(line, '=');
    if (!equals)
        return err_set(err, ERR_USAGE, "is not NAME = VALUE");
    *equals = '\0';
    const char *name = trim(line), *value = trim(equals + 1);
    const Opt *o = opt_find(table, name);
    if (!o || is_excepted(except, name))
        return err_set(err, ERR_USAGE, "there is no setting \"%.60s\"", name);
    return opt_set(o, value, err);
}

static bool take_text(const char *path, char *text, const Opt *table, const char *const *except, Err *err)
{
    unsigned number = 1;
    for (char *line = text, *next; line; line = next, number++) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        if (strlen(line) > CONFIG_LINE_MAX)
            return err_set(err, ERR_USAGE, "%s:%u: longer than %d bytes", path, number, CONFIG_LINE_MAX);
        if (!take_line(line, table, except, err))
            return err_context(err, "%s:%u", path, number);
    }
    return true;
}

bool config_file(const char *path, const Opt *table, const char *const *except, Err *err)
{
    char *text = NULL;
    size_t n = 0;
    if (!file_read(path, FILE_BYTES_MAX, &text, &n, err)) {
        err->code = ERR_USAGE;
        return false;
    }
    bool ok = (strlen(text) == n || err_set(err, ERR_USAGE, "%s: holds a NUL", path)) &&
        (str_is_utf8(text, n) || err_set(err, ERR_USAGE, "%s: is not UTF-8", path)) &&
        take_text(path, text, table, except, err);
    explicit_bzero(text, n);
    free(text);
    return ok;
}

bool config_is_there(const char *path, bool *ret, Err *err)
{
    struct stat st;
    if (stat(path, &st) == 0) {
        *ret = true;
        return true;
    }
    if (errno != ENOENT && errno != ENOTDIR)
        return err_set(err, ERR_USAGE, "%s: %s", path, strerrordesc_np(errno));
    *ret = false;
    return true;
}

bool config_folder(const char *path, const Opt *table, const char *const *except, Err *err)
{
    FileList list = {0};
    bool there;
    if (!config_is_there(path, &there, err) || !there)
        return err->code == ERR_NONE;
    if (!file_list(path, FOLDER_MAX, &list, err)) {
        err->code = ERR_USAGE;
        return false;
    }
    bool ok = true;
    for (size_t i = 0; ok && i < list.len; i++) {
        cleanup_free char *file = NULL;
        if (list.names[i][0] == '.' || !str_ends(list.names[i], ".conf")) // an editor's, a package manager's
            continue;
        ok = (file = file_join(path, list.names[i], err)) && config_file(file, table, except, err);
    }
    file_list_clear(&list);
    return ok;
}

bool config_environment(const char *prefix, const Opt *table, const char *const *except, Err *err)
{
    for (const Opt *o = table; o->name; o++) {
        char name[VARIABLE_MAX];
        (void)snprintf(name, sizeof(name), "%s_%s", prefix, o->name);
        for (char *c = name; *c; c++)
            *c = *c == '-' ? '_' : (char)(*c >= 'a' && *c <= 'z' ? *c - 'a' + 'A' : *c);
        const char *value = is_excepted(except, o->name) ? NULL : getenv(name);
        if (value && *value && !opt_set(o, value, err))
            return err_context(err, "%s", name);
    }
    return true;
}
