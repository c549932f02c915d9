// A repository's folder: creating, opening, and the way to what lies in it.

#include "image/repo.h"

#include "base/clock.h"
#include "base/str.h"
#include "base/uuid.h"
#include "domain/name.h"
#include "image/repo_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define INFO_MAX 65536u
#define NAMES_MAX 1000000u // in one folder
#define FOLDER_MODE 0750
#define FILE_MODE 0640

void repo_clear(Repo *r)
{
    free(r->path);
    *r = (Repo){0};
}

// ---- looks

bool repo_there(const char *path, bool *ret_there, Err *err)
{
    struct stat st;
    if (lstat(path, &st) == 0) {
        *ret_there = true;
        return true;
    }
    if (errno != ENOENT && errno != ENOTDIR)
        return err_errno(err, errno, "cannot look at %s", path);
    *ret_there = false;
    return true;
}

bool repo_real_folder(const char *path, bool *ret_is, Err *err)
{
    struct stat st;
    if (lstat(path, &st) == 0) {
        *ret_is = S_ISDIR(st.st_mode);
        return true;
    }
    if (errno != ENOENT && errno != ENOTDIR)
        return err_errno(err, errno, "cannot look at %s", path);
    *ret_is = false;
    return true;
}

bool repo_same_file(const char *a, const char *b, bool *ret_same, Err *err)
{
    // Opened, because a network filesystem answers a mere stat from its cache.
    cleanup_close int fa = open(a, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fa < 0)
        return err_errno(err, errno, "cannot open %s", a);
    cleanup_close int fb = open(b, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fb < 0)
        return err_errno(err, errno, "cannot open %s", b);
    struct stat sa, sb;
    if (fstat(fa, &sa) != 0 || fstat(fb, &sb) != 0)
        return err_errno(err, errno, "cannot look at %s", a);
    *ret_same = sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
    return true;
}

bool repo_list_has(const FileList *list, const char *name)
{
    size_t low = 0, high = list->len;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int c = strcmp(list->names[mid], name);
        if (c == 0)
            return true;
        if (c < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return false;
}

bool repo_claimed(const RepoViewDisk *d, const char *name, bool *ret_claimed, Err *err)
{
    struct stat final, partial;
    size_t len = strlen(name);
    cleanup_free char *path = file_join(d->path, name, err);
    if (!path)
        return false;
    *ret_claimed = false;
    if (lstat(path, &final) != 0)
        return errno == ENOENT || err_errno(err, errno, "cannot look at %s", path);
    for (size_t i = 0; i < d->files.len; i++) {
        LayoutName n;
        const char *other = d->files.names[i];
        if (strncmp(other, name, len) != 0 || !layout_parse(other, &n) || !n.attempt[0])
            continue;
        cleanup_free char *at = file_join(d->path, other, err);
        if (!at)
            return false;
        if (lstat(at, &partial) != 0) {
            if (errno != ENOENT)
                return err_errno(err, errno, "cannot look at %s", at);
        } else if (partial.st_dev == final.st_dev && partial.st_ino == final.st_ino) {
            *ret_claimed = true;
        }
    }
    return true;
}

void repo_view_clear(RepoView *v)
{
    for (size_t i = 0; i < v->disks_len; i++) {
        free(v->disks[i].path);
        file_list_clear(&v->disks[i].files);
    }
    free(v->disks);
    free(v->name);
    free(v->path);
    file_list_clear(&v->files);
    *v = (RepoView){0};
}

static bool view_fill(const Repo *r, const char *context, RepoView *v, Err *err)
{
    bool is;
    if (!layout_is_context(context))
        return err_set(err, ERR_INVALID, "'%.200s' is not the name of a context folder", context);
    if (!(v->name = mem_strdup(context, err)) || !(v->path = file_join(r->path, context, err)) ||
        !repo_real_folder(v->path, &is, err))
        return false;
    if (!is)
        return err_set(err, ERR_NOT_FOUND, "%s is not there", v->path);
    if (!file_list(v->path, NAMES_MAX, &v->files, err) || !(v->disks = mem_calloc(v->files.len, sizeof *v->disks, err)))
        return false;
    for (size_t i = 0; i < v->files.len; i++) {
        RepoViewDisk *d = &v->disks[v->disks_len];
        if (!layout_disk_no(v->files.names[i], &d->no))
            continue;
        cleanup_free char *path = file_join(v->path, v->files.names[i], err);
        if (!path || !repo_real_folder(path, &is, err))
            return false;
        if (!is)
            continue;
        if (!file_list(path, NAMES_MAX, &d->files, err))
            return false;
        d->path = mem_take(path);
        v->disks_len++;
    }
    return true;
}

bool repo_view_open(const Repo *r, const char *context, RepoView *ret, Err *err)
{
    RepoView v = {0};
    if (!view_fill(r, context, &v, err)) {
        repo_view_clear(&v);
        return false;
    }
    *ret = v;
    return true;
}

// ---- opening

static bool read_info(const char *path, RepositoryInfo *ret, Err *err)
{
    cleanup_free char *file = file_join(path, LAYOUT_INFO, err), *text = NULL;
    size_t n;
    return file && file_read(file, INFO_MAX, &text, &n, err) && repository_info_decode(text, n, ret, err);
}

bool repo_open(const char *path, const char *expect_uuid, Repo *ret, Err *err)
{
    cleanup_free char *real = NULL;
    Repo r = {0};
    Err cause = ERR_INIT;
    if (!file_realpath(path, &real, &cause) || !read_info(real, &r.info, &cause)) {
        if (cause.code == ERR_NOT_FOUND && expect_uuid)
            return err_set(err, ERR_UNAVAILABLE, "%s holds no repository now; is its filesystem mounted?", path);
        if (cause.code == ERR_NOT_FOUND)
            return err_set(err, ERR_NOT_FOUND, "%s holds no repository", path);
        return err_set(err, cause.code, "repository %s: %s", path, cause.details);
    }
    if (expect_uuid && !str_eq(expect_uuid, r.info.uuid))
        return err_set(err, ERR_CONFLICT, "%s holds the repository %s, not %s; is the right filesystem mounted?", path,
                       r.info.uuid, expect_uuid);
    if (!hash_geometry_init(&r.geo, &r.info.hash, r.info.cluster_size, err))
        return false;
    r.path = mem_take(real);
    *ret = r;
    return true;
}

bool repo_recheck(const Repo *r, Err *err)
{
    Repo now = {0};
    if (!repo_open(r->path, r->info.uuid, &now, err))
        return false;
    bool same = now.info.cluster_size == r->info.cluster_size && now.info.hash.seed == r->info.hash.seed &&
        now.info.hash.algorithm == r->info.hash.algorithm && now.info.extended_l2 == r->info.extended_l2;
    repo_clear(&now);
    return same || err_set(err, ERR_CONFLICT, "%s has another layout than before; open it again", r->path);
}

// ---- inside another one?

// The longest beginning of path that exists, resolved. What does not exist yet must not climb out again.
static bool resolve_existing(const char *path, char **ret, Err *err)
{
    cleanup_free char *part = mem_printf(err, "%s%s", path[0] == '/' ? "" : "./", path);
    if (!part)
        return false;
    for (;;) {
        char *real = realpath(part, NULL);
        if (real) {
            *ret = real;
            return true;
        }
        if (errno != ENOENT)
            return err_errno(err, errno, "cannot find %s", part);
        // A link that leads nowhere: creating "it" would create what it names.
        struct stat st;
        if (lstat(part, &st) == 0)
            return err_set(err, ERR_CONFLICT, "%s is a link that leads nowhere", part);
        size_t n = strlen(part);
        while (n > 1 && part[n - 1] == '/')
            part[--n] = '\0';
        char *slash = strrchr(part, '/'); // there is one: part starts with '/' or "./"
        if (str_eq(slash + 1, "..") || str_eq(slash + 1, "."))
            return err_set(err, ERR_INVALID, "%s: '..' behind a folder that does not exist", path);
        slash[slash == part ? 1 : 0] = '\0';
    }
}

bool repo_is_inside(const char *path, bool *ret_inside, Err *err)
{
    cleanup_free char *at = NULL;
    if (path[0] == '\0')
        return err_set(err, ERR_INVALID, "an empty path");
    if (!resolve_existing(path, &at, err))
        return false;
    for (;;) {
        bool there;
        cleanup_free char *file = file_join(at, LAYOUT_INFO, err);
        if (!file || !repo_there(file, &there, err))
            return false;
        if (there || str_eq(at, "/")) {
            *ret_inside = there;
            return true;
        }
        char *slash = strrchr(at, '/');
        slash[slash == at ? 1 : 0] = '\0';
    }
}

// ---- creating

// Nothing but what a fresh filesystem has, and a creation that was cut short.
static bool check_empty(const char *path, Err *err)
{
    FileList list;
    if (!file_list(path, NAMES_MAX, &list, err))
        return false;
    bool ok = true;
    for (size_t i = 0; i < list.len && ok; i++)
        if (!str_eq(list.names[i], "lost+found") && !str_starts(list.names[i], LAYOUT_INFO_PARTIAL))
            ok = err_set(err, ERR_CONFLICT, "%s is not empty: it holds %s", path, list.names[i]);
    file_list_clear(&list);
    return ok;
}

static bool write_info(const char *path, const RepositoryInfo *info, Err *err)
{
    // Complete or not there: written beside, then linked, which fails if another one was faster.
    cleanup_free char *text = NULL, *file = file_join(path, LAYOUT_INFO, err);
    if (!file || !repository_info_encode(info, &text, err))
        return false;
    cleanup_free char *partial = mem_printf(err, "%s/" LAYOUT_INFO_PARTIAL "%.8s", path, info->uuid);
    if (!partial || !file_create_durable(partial, text, strlen(text), FILE_MODE, err))
        return false;
    bool ok = file_link(partial, file, err);
    Err ignored = ERR_INIT; // what stays is an orphan, and no reason to fail
    (void)!file_unlink(partial, &ignored);
    return ok && file_fsync_dir(path, err);
}

static bool new_info(uint32_t cluster_size, HashAlgorithm algorithm, RepositoryInfo *ret, Err *err)
{
    *ret = (RepositoryInfo){.format = RECORD_FORMAT,
                            .cluster_size = cluster_size,
                            .hash.algorithm = algorithm,
                            .created_us = clock_utc_us()};
    return uuid_new(ret->uuid, err) && uuid_random_bytes(&ret->hash.seed, sizeof ret->hash.seed, err);
}

// The folder's own name must last too, also when a run that was cut short made it, or somebody a moment ago. A parent
// that is not ours may be closed to us: no reason to fail, unless we have just changed it.
static bool sync_parent(const char *path, bool made, Err *err)
{
    Err cause = ERR_INIT;
    cleanup_free char *parent = file_join(path, "..", err);
    if (!parent)
        return false;
    return file_fsync_dir(parent, &cause) || !made || err_set(err, cause.code, "%s", cause.details);
}

bool repo_create(const char *path, uint32_t cluster_size, HashAlgorithm algorithm, Repo *ret, Err *err)
{
    cleanup_free char *own = file_join(path, LAYOUT_INFO, err), *real = NULL, *text = NULL;
    RepositoryInfo info;
    bool there, inside;
    if (!own || !repo_there(own, &there, err))
        return false;
    if (there)
        return err_set(err, ERR_EXISTS, "%s is a repository already", path);
    if (!repo_is_inside(path, &inside, err))
        return false;
    if (inside)
        return err_set(err, ERR_CONFLICT, "%s lies inside another repository", path);
    // Encoded once before anything is made: refuses a wrong cluster size.
    if (!new_info(cluster_size, algorithm, &info, err) || !repository_info_encode(&info, &text, err))
        return false;

    bool made = mkdir(path, FOLDER_MODE) == 0;
    if (!made && errno != EEXIST)
        return err_errno(err, errno, "cannot make the folder %s", path);
    bool ok = file_realpath(path, &real, err) && check_empty(real, err) && write_info(real, &info, err) &&
        sync_parent(real, made, err) && repo_open(real, info.uuid, ret, err);
    if (!ok && made)
        (void)rmdir(path); // only if nothing is in it
    return ok;
}

// ---- folders and paths

static void stamp(int64_t utc_us, char out[16])
{
    struct tm tm;
    time_t t = (time_t)(utc_us / 1000000);
    if (!gmtime_r(&t, &tm) || strftime(out, 16, "%Y%m%d%H%M%S", &tm) != 14)
        memcpy(out, "00000000000000", 15); // a year of five digits; the stamp only tells folders apart
}

bool repo_context(const Repo *r, const char *existing, const char *vm_name, const char *vm_id, int64_t now_us,
                  char **ret_name, Err *err)
{
    if (!repo_recheck(r, err))
        return false;
    if (existing) {
        bool is;
        cleanup_free char *path = NULL;
        if (!layout_is_context(existing))
            return err_set(err, ERR_INVALID, "'%.200s' is not the name of a context folder", existing);
        if (!(path = file_join(r->path, existing, err)) || !repo_real_folder(path, &is, err))
            return false;
        if (!is)
            return err_set(err, ERR_NOT_FOUND, "%s is not there", path);
        char *copy = mem_strdup(existing, err);
        if (copy)
            *ret_name = copy;
        return copy != NULL;
    }
    char slug[NAME_SLUG];
    name_slug(vm_name, vm_id, slug);
    // Two VMs may have one name: never share a folder, take the next second.
    for (int64_t second = 0; second < 3600; second++) {
        char when[16];
        stamp(now_us + second * 1000000, when);
        cleanup_free char *name = mem_printf(err, "ctx-%s-%s", slug, when), *path = NULL;
        if (!name || !(path = file_join(r->path, name, err)))
            return false;
        if (mkdir(path, FOLDER_MODE) == 0) {
            if (!file_fsync_dir(r->path, err))
                return false;
            *ret_name = mem_take(name);
            return true;
        }
        if (errno != EEXIST)
            return err_errno(err, errno, "cannot make the folder %s", path);
    }
    return err_set(err, ERR_CONFLICT, "no free name for a folder of %s in %s", slug, r->path);
}

bool repo_next_disk_no(const Repo *r, const char *context, unsigned at_least, unsigned *ret_no, Err *err)
{
    RepoView v;
    if (!repo_view_open(r, context, &v, err))
        return false;
    bool found = false;
    for (unsigned no = at_least; no <= LAYOUT_DISK_MAX && !found; no++) {
        char name[32];
        (void)snprintf(name, sizeof name, "disk-%u", no); // bounded
        found = !repo_list_has(&v.files, name);           // whatever has the name counts, folder or not
        if (found)
            *ret_no = no;
    }
    repo_view_clear(&v);
    return found || err_set(err, ERR_TOO_LARGE, "no disk number is left in %s", context);
}

static bool disk_folder_path(const Repo *r, const char *context, unsigned disk_no, char **ret, Err *err)
{
    if (!layout_is_context(context))
        return err_set(err, ERR_INVALID, "'%.200s' is not the name of a context folder", context);
    if (disk_no > LAYOUT_DISK_MAX)
        return err_set(err, ERR_INVALID, "disk number %u is above %u", disk_no, LAYOUT_DISK_MAX);
    char *path = mem_printf(err, "%s/%s/disk-%u", r->path, context, disk_no);
    if (path)
        *ret = path;
    return path != NULL;
}

bool repo_disk_folder(const Repo *r, const char *context, unsigned disk_no, char **ret_path, Err *err)
{
    cleanup_free char *path = NULL, *parent = NULL;
    bool is;
    if (!disk_folder_path(r, context, disk_no, &path, err) || !(parent = file_join(r->path, context, err)))
        return false;
    bool made = mkdir(path, FOLDER_MODE) == 0;
    if (!made && errno != EEXIST)
        return err_errno(err, errno, "cannot make the folder %s", path);
    if (!repo_real_folder(path, &is, err))
        return false;
    if (!is)
        return err_set(err, ERR_CONFLICT, "%s is not a folder", path);
    if (made && !file_fsync_dir(parent, err))
        return false;
    *ret_path = mem_take(path);
    return true;
}

char *repo_path_record(const Repo *r, const char *context, const char *stem, Err *err)
{
    char name[LAYOUT_NAME];
    if (!layout_is_context(context)) {
        err_set(err, ERR_INVALID, "'%.200s' is not the name of a context folder", context);
        return NULL;
    }
    if (!layout_name(LAYOUT_RECORD, stem, NULL, name, err))
        return NULL;
    return mem_printf(err, "%s/%s/%s", r->path, context, name);
}

char *repo_path_disk_file(const Repo *r, const char *context, unsigned disk_no, const char *file, Err *err)
{
    LayoutName n;
    cleanup_free char *folder = NULL;
    if (!disk_folder_path(r, context, disk_no, &folder, err))
        return NULL;
    if (!layout_parse(file, &n) || n.kind == LAYOUT_RECORD || n.kind == LAYOUT_DELETED) {
        err_set(err, ERR_INVALID, "'%.200s' is not the name of an image or of its hashes", file);
        return NULL;
    }
    return file_join(folder, file, err);
}
