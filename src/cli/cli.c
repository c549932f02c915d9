#include "cli/cli.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <unistd.h>

#define PATH_MAX_BYTES 8192
#define LABEL_COLUMNS 16

bool cli_send(Cli *c, const char *method, const char *path, const json_t *body, bool slow, json_t **ret, Err *err)
{
    hub_api_set_timeout(c->hub, slow ? CLI_SLOW_MS : 0);
    return hub_api_call(c->hub, method, path, body, ret, err);
}

bool cli_get(Cli *c, const char *path, json_t **ret, Err *err)
{
    return cli_send(c, "GET", path, NULL, false, ret, err);
}

char *cli_path(const char *kind, const char *id, const char *call, Err *err)
{
    StrBuf path = STR_BUF(PATH_MAX_BYTES);
    if (!str_addf(&path, err, "/api/v1/%s/", kind) || !hub_api_segment(&path, id, err) ||
        (call && !str_addf(&path, err, "/%s", call))) {
        str_clear(&path);
        return NULL;
    }
    return path.s;
}

bool cli_query(StrBuf *path, const char *key, const char *value, Err *err)
{
    if (!value)
        return true;
    return str_addf(path, err, "%c%s=", strchr(path->s, '?') ? '&' : '?', key) && hub_api_segment(path, value, err);
}

const char *cli_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

uint64_t cli_u64(const json_t *object, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(object, key));
    return value < 0 ? 0 : (uint64_t)value;
}

const char *cli_suspect(const json_t *backup)
{
    const char *because = cli_text(backup, "suspect_because");
    return str_eq(because, "audit")
        ? "a later audit found that change tracking had missed changes, so it may not be what the guest had"
        : str_eq(because, "unreadable") ? "its record could not be read; sendense repo scan tells more"
                                        : "damage was found in what it rests on; sendense verify tells more";
}

bool cli_flag(const json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

json_t *cli_list(const json_t *object, const char *key)
{
    json_t *list = json_object_get(object, key);
    return json_is_array(list) ? list : NULL;
}

bool cli_said_json(Cli *c, const json_t *value)
{
    if (!c->values.json)
        return false;
    Err err = ERR_INIT;
    cleanup_free char *text = NULL;
    if (codec_json_dump(value, &text, &err)) {
        (void)puts(text); // main looks at the stream's error before it ends
        c->said_json = true;
    } else {
        cli_print_error(&err);
        c->exit_status = CLI_EXIT_FAILED;
    }
    return true;
}

void cli_note(const char *fmt, ...)
{
    char line[4096];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(line, sizeof(line), fmt, ap); // cut at the ceiling on purpose
    va_end(ap);
    (void)fputs("sendense: ", stderr);
    text_print_clean(stderr, line);
    (void)fputc('\n', stderr);
}

void cli_print_error(const Err *err)
{
    cli_note("%s: %s", err_short(err), err->details);
}

void cli_show(const char *name, const char *value)
{
    if (!value || !*value)
        return;
    size_t n = strlen(name); // none: goes on under the line above
    (void)printf("%s%s%*s", name, n > 0 ? ":" : "", (int)(LABEL_COLUMNS - MIN(n + (n > 0), LABEL_COLUMNS - 1)), "");
    text_print_clean(stdout, value);
    (void)putchar('\n');
}

bool cli_need(const char *value, const char *option, Err *err)
{
    return (value && *value) || err_set(err, ERR_USAGE, "--%s is needed; --help shows how", option);
}

char *cli_absolute(const char *path, Err *err)
{
    if (path[0] == '/')
        return mem_strdup(path, err);
    if (path[0] == '\0') {
        (void)err_set(err, ERR_USAGE, "an empty path");
        return NULL;
    }
    cleanup_free char *here = getcwd(NULL, 0);
    if (!here) {
        (void)err_errno(err, errno, "the working folder");
        return NULL;
    }
    return mem_printf(err, "%s/%s", str_eq(here, "/") ? "" : here, path);
}
