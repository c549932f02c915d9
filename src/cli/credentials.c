#include "cli/credentials.h"

#include "base/file.h"
#include "cli/ask.h"
#include "codec/json.h"
#include "wire/hub_api.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MAX (1u << 20)

static bool own_path(char **ret, Err *err)
{
    const char *said = getenv("SENDENSE_CREDENTIALS"), *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    if (said && *said)
        *ret = mem_strdup(said, err);
    else if (config && config[0] == '/')
        *ret = mem_printf(err, "%s/sendense/credentials.json", config);
    else if (home && home[0] == '/')
        *ret = mem_printf(err, "%s/.config/sendense/credentials.json", home);
    else
        return err_set(err, ERR_USAGE, "there is no HOME to keep a token in; set SENDENSE_CREDENTIALS to a file");
    return *ret != NULL;
}

// A token that others can read is theirs.
static bool check_mode(const char *path, Err *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return err_errno(err, errno, "%s", path);
    if (st.st_uid != geteuid() || (st.st_mode & 077) != 0)
        return err_set(err, ERR_USAGE, "%s holds tokens, and others may read or change it; HINT: chmod 600, and own it",
                       path);
    return true;
}

// {"<url>": "<token>" or {"token": "<token>", "thumbprint": "<sha256>"}, ...}; an empty one where there is no file.
static bool read_all(const char *path, json_t **ret, Err *err)
{
    char *text = NULL;
    size_t n = 0;
    if (!file_exists(path)) {
        *ret = json_object();
        return *ret != NULL || err_no_memory(err);
    }
    if (!check_mode(path, err) || !file_read(path, FILE_MAX, &text, &n, err))
        return false;
    bool ok = codec_json_parse(text, n, FILE_MAX, ret, err) && codec_json_object(*ret, "the file", err);
    explicit_bzero(text, n);
    free(text);
    if (!ok) {
        err->code = ERR_USAGE;
        return err_context(err, "%s", path);
    }
    return true;
}

// Whole or not at all: a command beside this one sees the old file or the new one.
static bool write_all(const char *path, const json_t *all, Err *err)
{
    cleanup_free char *text = NULL, *folder = mem_strdup(path, err), *beside = mem_printf(err, "%s.new", path);
    char *slash = folder ? strrchr(folder, '/') : NULL;
    if (!folder || !beside || !codec_json_dump(all, &text, err))
        return false;
    if (slash)
        *slash = '\0';
    bool ok = (!slash || slash == folder || file_mkdir_p(folder, 0700, err)) && file_unlink(beside, err) &&
        file_create_durable(beside, text, strlen(text), 0600, err) && file_rename(beside, path, err);
    explicit_bzero(text, strlen(text));
    return ok;
}

bool credentials_find(const char *hub_url, Secret *ret, Err *err)
{
    const char *said = getenv("SENDENSE_TOKEN"), *file = getenv("SENDENSE_TOKEN_FILE");
    cleanup_json json_t *all = NULL;
    cleanup_free char *path = NULL;
    Err homeless = ERR_INIT; // who has no home has kept no token
    if (said && *said)
        return secret_set(ret, said, err);
    if (file && *file)
        return ask_secret("token", file, NULL, ret, err);
    if (!own_path(&path, &homeless))
        return true;
    if (!read_all(path, &all, err))
        return false;
    const json_t *kept = json_object_get(all, hub_url);
    return secret_set(ret, json_string_value(json_is_object(kept) ? json_object_get(kept, "token") : kept), err);
}

bool credentials_trust(const char *hub_url, TlsTrust *ret, Err *err)
{
    cleanup_json json_t *all = NULL;
    cleanup_free char *path = NULL;
    Err homeless = ERR_INIT;
    cleanup(hub_trust_clear) TlsTrust said = {0};
    if (!hub_trust_environment(&said, err))
        return false;
    if (!said.thumbprint && own_path(&path, &homeless)) {
        if (!read_all(path, &all, err))
            return false;
        const char *pin = json_string_value(json_object_get(json_object_get(all, hub_url), "thumbprint"));
        if (pin)
            return hub_trust_copy(&(TlsTrust){.thumbprint = pin}, ret, err);
    }
    return hub_trust_copy(&said, ret, err);
}

static bool keep_one(json_t *all, const char *hub_url, const Secret *token, const char *thumbprint, Err *err)
{
    json_t *one = json_object();
    if (one && codec_json_set_text(one, "token", secret_reveal(token), err) &&
        (!thumbprint || codec_json_set_text(one, "thumbprint", thumbprint, err)))
        return codec_json_set(all, hub_url, one, err);
    json_decref(one);
    return err->code == ERR_NONE ? err_no_memory(err) : false;
}

bool credentials_keep(const char *hub_url, const Secret *token, const char *thumbprint, Err *err)
{
    cleanup_json json_t *all = NULL;
    cleanup_free char *path = NULL;
    return own_path(&path, err) && read_all(path, &all, err) && keep_one(all, hub_url, token, thumbprint, err) &&
        write_all(path, all, err);
}

bool credentials_forget(const char *hub_url, bool *ret_any, Err *err)
{
    cleanup_json json_t *all = NULL;
    cleanup_free char *path = NULL;
    if (!own_path(&path, err) || !read_all(path, &all, err))
        return false;
    *ret_any = json_object_del(all, hub_url) == 0;
    return !*ret_any || write_all(path, all, err);
}
