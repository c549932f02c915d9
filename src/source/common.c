#include "source/common.h"

#include "base/str.h"
#include "base/uuid.h"
#include "domain/changeid.h"

bool source_check_key(const char *key, Err *err)
{
    size_t n = strlen(key);
    if (n < 1 || n > SOURCE_KEY_MAX || !str_is_utf8(key, n) || !str_has_no_controls(key))
        return err_set(err, ERR_INVALID, "a disk's key is 1 to %d bytes of UTF-8 without control characters",
                       SOURCE_KEY_MAX);
    return true;
}

bool source_check_path(const char *what, const char *path, size_t max, Err *err)
{
    if (path[0] != '/')
        return err_set(err, ERR_INVALID, "%s: %s is not an absolute path", what, path);
    if (strlen(path) > max)
        return err_set(err, ERR_INVALID, "%s: the path is longer than %zu bytes", what, max);
    if (!str_has_no_controls(path))
        return err_set(err, ERR_INVALID, "%s: the path holds control characters", what);
    return true;
}

bool source_is_excluded(const SourceRequest *req, const char *key)
{
    for (size_t i = 0; req->excluded && req->excluded[i]; i++)
        if (str_eq(req->excluded[i], key))
            return true;
    return false;
}

bool source_leave_out(Source *s, const char *key, Err *err)
{
    char **grown = realloc(s->left_out, (s->left_out_len + 1) * sizeof(*grown));
    if (!grown)
        return err_no_memory(err);
    s->left_out = grown;
    grown[s->left_out_len] = mem_strdup(key, err);
    if (!grown[s->left_out_len])
        return false;
    s->left_out_len++;
    return true;
}

const SourceParent *source_parent(const SourceRequest *req, const char *key)
{
    for (size_t i = 0; i < req->parents_len; i++)
        if (str_eq(req->parents[i].disk_key, key))
            return &req->parents[i];
    return NULL;
}

const SourceInterrupted *source_interrupted(const SourceRequest *req, const char *key)
{
    for (size_t i = 0; i < req->interrupted_len; i++)
        if (str_eq(req->interrupted[i].disk_key, key))
            return &req->interrupted[i];
    return NULL;
}

bool source_cancelled(const SourceRequest *req)
{
    return req->cancel && atomic_load(req->cancel);
}

bool source_mint(char **ret, Err *err)
{
    char uuid[UUID_TEXT], id[CHANGEID_MINTED];
    return uuid_new(uuid, err) && changeid_mint(uuid, 1, id, err) && mem_replace(ret, id, err);
}

void source_clear(Source *s)
{
    for (size_t i = 0; i < s->disks_len; i++)
        source_disk_clear(&s->disks[i]);
    free(s->disks);
    for (size_t i = 0; i < s->left_out_len; i++)
        free(s->left_out[i]);
    free(s->left_out);
    free(s->consistency_detail);
}
