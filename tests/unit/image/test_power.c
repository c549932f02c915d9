// The power goes at every moment of a repository's life: its creation, a full, an increment on it, the deletion of
// that. Every call that changes a file or a name is written down; after each, what a filesystem may have kept of them
// is built, and recovered: what was called done is there, and reads back byte for byte; what is not listed has left no
// trace. The same with the process killed first, so that somebody goes on with what was never synced, and with the
// power gone during the recovery. Safety rules 14, 16 and 17.
#include "point.h"
#include "power.h"
#include "../keep_list.h"

#define in_folder(test) cmocka_unit_test_setup_teardown(test, unit_folder_setup, unit_folder_teardown)
#define LIVED 2           // points of the life
#define POINTS 3          // and one that the next process makes
#define REPOSITORY POINTS // what is promised of the repository itself, behind the points
#define SEEN (1u << 18)

typedef enum Promise { PROMISE_NONE, PROMISE_COMING, PROMISE_THERE, PROMISE_GOING } Promise;

// ---- every call that changes something goes through here (the linker's --wrap)

int __real_open64(const char *path, int flags, ...);
ssize_t __real_write(int fd, const void *p, size_t n);
ssize_t __real_pwrite64(int fd, const void *p, size_t n, off_t offset);
int __real_ftruncate64(int fd, off_t size);
int __real_fallocate64(int fd, int mode, off_t offset, off_t n);
int __real_mkdir(const char *path, mode_t mode);
int __real_rmdir(const char *path);
int __real_link(const char *from, const char *to);
int __real_rename(const char *from, const char *to);
int __real_unlink(const char *path);
int __wrap_open64(const char *path, int flags, ...);
ssize_t __wrap_write(int fd, const void *p, size_t n);
ssize_t __wrap_pwrite64(int fd, const void *p, size_t n, off_t offset);
int __wrap_ftruncate64(int fd, off_t size);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t n);
int __wrap_mkdir(const char *path, mode_t mode);
int __wrap_rmdir(const char *path);
int __wrap_link(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_unlink(const char *path);
int __wrap_fsync(int fd);
int __wrap_fdatasync(int fd);

static struct {
    bool on;
    PowerLog log;
} recorder;

static ino_t inode_of(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? st.st_ino : 0;
}

// POWER_NONE: not below the top, or not recording.
static unsigned node_of_fd(int fd)
{
    struct stat st;
    if (!recorder.on)
        return POWER_NONE;
    assert_int_equal(fstat(fd, &st), 0);
    return power_node(&recorder.log, st.st_ino);
}

static unsigned folder_of(const char *path, const char **ret_name)
{
    char folder[1200];
    const char *slash = strrchr(path, '/');
    if (!recorder.on || !slash)
        return POWER_NONE;
    (void)snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
    *ret_name = slash + 1;
    return power_node(&recorder.log, inode_of(folder));
}

static void note_new(const char *path, bool is_folder)
{
    const char *name;
    unsigned folder = folder_of(path, &name);
    if (folder != POWER_NONE)
        power_name(&recorder.log, POWER_ADD, folder, name, power_node_new(&recorder.log, is_folder, inode_of(path)));
}

int __wrap_open64(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(args, mode_t) : 0;
    va_end(args);
    bool makes = recorder.on && (flags & O_CREAT) && inode_of(path) == 0;
    int fd = __real_open64(path, flags, mode);
    if (fd >= 0 && makes)
        note_new(path, false);
    return fd;
}

ssize_t __wrap_write(int fd, const void *p, size_t n)
{
    ssize_t done = __real_write(fd, p, n);
    unsigned node = node_of_fd(fd);
    if (done > 0 && node != POWER_NONE)
        power_write(&recorder.log, node, p, (size_t)done, (uint64_t)(lseek(fd, 0, SEEK_CUR) - done));
    return done;
}

ssize_t __wrap_pwrite64(int fd, const void *p, size_t n, off_t offset)
{
    ssize_t done = __real_pwrite64(fd, p, n, offset);
    unsigned node = node_of_fd(fd);
    if (done > 0 && node != POWER_NONE)
        power_write(&recorder.log, node, p, (size_t)done, (uint64_t)offset);
    return done;
}

int __wrap_ftruncate64(int fd, off_t size)
{
    int r = __real_ftruncate64(fd, size);
    unsigned node = node_of_fd(fd);
    if (r == 0 && node != POWER_NONE)
        power_size(&recorder.log, node, (uint64_t)size);
    return r;
}

int __wrap_fallocate64(int fd, int mode, off_t offset, off_t n)
{
    struct stat st;
    int r = __real_fallocate64(fd, mode, offset, n);
    unsigned node = node_of_fd(fd);
    if (r == 0 && node != POWER_NONE) {
        assert_int_equal(mode, 0);
        assert_int_equal(fstat(fd, &st), 0);
        power_size(&recorder.log, node, (uint64_t)st.st_size);
    }
    return r;
}

int __wrap_mkdir(const char *path, mode_t mode)
{
    int r = __real_mkdir(path, mode);
    if (r == 0)
        note_new(path, true);
    return r;
}

static int note_removed(int r, const char *path)
{
    const char *name;
    unsigned folder = folder_of(path, &name);
    if (r == 0 && folder != POWER_NONE)
        power_name(&recorder.log, POWER_REMOVE, folder, name, 0);
    return r;
}

int __wrap_rmdir(const char *path)
{
    return note_removed(__real_rmdir(path), path);
}

int __wrap_unlink(const char *path)
{
    return note_removed(__real_unlink(path), path);
}

int __wrap_link(const char *from, const char *to)
{
    const char *name;
    int r = __real_link(from, to);
    unsigned folder = folder_of(to, &name);
    if (r == 0 && folder != POWER_NONE)
        power_name(&recorder.log, POWER_ADD, folder, name, power_node(&recorder.log, inode_of(to)));
    return r;
}

int __wrap_rename(const char *from, const char *to)
{
    const char *name, *name_to;
    int r = __real_rename(from, to);
    unsigned folder = folder_of(from, &name);
    if (r == 0 && folder != POWER_NONE) {
        assert_int_equal(folder, folder_of(to, &name_to));
        power_move(&recorder.log, folder, name, name_to);
    }
    return r;
}

// Nothing really loses power here: that it was asked for is enough.
static int note_sync(int fd)
{
    unsigned node = node_of_fd(fd);
    if (node != POWER_NONE)
        (void)power_op(&recorder.log, POWER_SYNC, node);
    return 0;
}

int __wrap_fsync(int fd)
{
    return note_sync(fd);
}

int __wrap_fdatasync(int fd)
{
    return note_sync(fd);
}

// ---- a life, and what was promised when

// The files of a sealed disk, as they have to be for good.
typedef struct Sealed {
    unsigned image, hashes;
    size_t end; // of the log, when the engine had said that it is done
    PowerState *whole;
} Sealed;

typedef struct Life {
    void **state;
    Repo repo;
    char *context;
    char uuid[40]; // of the repository that is to be there
    Point points[POINTS];
    Sealed sealed[LIVED * POINT_DISKS];
    size_t sealed_len;
    PowerLog log;
    UnitRandom random;
    unsigned at_random; // choices for each moment
    uint64_t *seen;     // states that were found to be right
    size_t seen_len;
} Life;

static void promise(unsigned what, Promise p)
{
    PowerOp *op = power_op(&recorder.log, POWER_SAID, POWER_NONE);
    op->child = what;
    op->offset = p;
}

static Promise promised(const PowerLog *log, size_t end, unsigned what)
{
    while (end-- > 0)
        if (log->ops[end].kind == POWER_SAID && log->ops[end].child == what)
            return (Promise)log->ops[end].offset;
    return PROMISE_NONE;
}

static void record(PowerLog log)
{
    recorder.log = log;
    recorder.on = true;
}

static PowerLog record_end(void)
{
    recorder.on = false;
    power_compare(&recorder.log);
    return recorder.log;
}

static void note_sealed(Life *l, const Point *p)
{
    PowerState *s = power_state(&recorder.log, recorder.log.len, NULL, NULL);
    for (unsigned no = 0; no < POINT_DISKS; no++) {
        char path[400];
        Sealed *sealed = &l->sealed[l->sealed_len++];
        (void)snprintf(path, sizeof path, "repo/%s/disk-%u/%s.partial-%s", l->context, no, p->rec.disks[no].image,
                       p->attempt);
        sealed->image = power_at(s, path);
        (void)snprintf(path, sizeof path, "repo/%s/disk-%u/%s.partial-%s", l->context, no, p->rec.disks[no].hashes,
                       p->attempt);
        sealed->hashes = power_at(s, path);
        assert_true(sealed->image != POWER_NONE && sealed->hashes != POWER_NONE);
        sealed->end = recorder.log.len;
        sealed->whole = s; // shared by the disks of a point
    }
}

static void life_point(Life *l, unsigned i, unsigned second, uint8_t fill, const char *attempt, unsigned compression)
{
    Err err = ERR_INIT;
    Point *p = &l->points[i];
    *p = point_make_with(&l->repo, l->context, second, i > 0 ? p - 1 : NULL, fill, attempt, compression);
    recorder.on = false;
    note_sealed(l, p);
    recorder.on = true;
    promise(i, PROMISE_COMING);
    assert_ok(repo_commit(&l->repo, &p->rec, p->stem, p->attempt, &err), &err);
    promise(i, PROMISE_THERE);
}

static Life life_new(void **state, uint32_t cluster_size, unsigned compression)
{
    Err err = ERR_INIT;
    Life l = {.state = state, .random = unit_random(), .at_random = 6};
    const char *top = unit_path(state, "top"), *more = getenv("POWER_CHOICES");
    if (more)
        l.at_random *= (unsigned)strtoul(more, NULL, 10);
    l.seen = calloc(SEEN, sizeof *l.seen);
    assert_non_null(l.seen);
    assert_int_equal(mkdir(top, 0700), 0);
    record(power_begin(top, true));
    promise(REPOSITORY, PROMISE_COMING);
    assert_ok(repo_create(unit_path(state, "top/repo"), cluster_size, HASH_XXH3_128, &l.repo, &err), &err);
    promise(REPOSITORY, PROMISE_THERE);
    (void)snprintf(l.uuid, sizeof l.uuid, "%s", l.repo.info.uuid);
    assert_ok(repo_context(&l.repo, NULL, "web", POINT_VM, INT64_C(1700000000000000), &l.context, &err), &err);
    life_point(&l, 0, 1700000000, 5, "f0", compression);
    life_point(&l, 1, 1700000060, 9, "a0", compression);
    promise(1, PROMISE_GOING);
    assert_ok(repo_delete(&l.repo, &l.points[1].rec, l.points[1].stem, &err), &err);
    promise(1, PROMISE_NONE);
    l.log = record_end();
    return l;
}

static void life_forget_seals(Life *l)
{
    for (size_t i = 0; i < l->sealed_len; i += POINT_DISKS)
        power_state_clear(l->sealed[i].whole);
    l->sealed_len = 0;
}

static void life_clear(Life *l)
{
    life_forget_seals(l);
    for (unsigned i = 0; i < POINTS; i++)
        point_clear(&l->points[i]);
    power_clear(&l->log);
    repo_clear(&l->repo);
    free(l->context);
    free(l->seen);
}

// ---- is a state right?

static bool same_file(const PowerState *s, const PowerState *whole, unsigned node)
{
    const PowerNode *a = &s->nodes[node], *b = &whole->nodes[node];
    return !a->there || (a->size == b->size && memcmp(a->bytes, b->bytes, a->size) == 0);
}

// The engine's own promise: once it has said so, and wherever the header is, there is all the rest.
static bool seals_hold(const Life *l, const PowerState *s, size_t end, Err *err)
{
    for (size_t i = 0; i < l->sealed_len; i++) {
        const Sealed *sealed = &l->sealed[i];
        uint32_t cluster = l->repo.info.cluster_size;
        if (sealed->image >= s->len || sealed->hashes >= s->len)
            continue;
        const PowerNode *image = &s->nodes[sealed->image];
        bool header = image->there && image->size >= cluster &&
            memcmp(image->bytes, sealed->whole->nodes[sealed->image].bytes, cluster) == 0;
        if ((header || end >= sealed->end) &&
            (!same_file(s, sealed->whole, sealed->image) || !same_file(s, sealed->whole, sealed->hashes)))
            return err_set(err, ERR_DAMAGED, "an image has its header%s, but not all the rest",
                           end >= sealed->end ? " and was said to be sealed" : "");
    }
    return true;
}

static unsigned count_files(const char *path)
{
    Err err = ERR_INIT;
    FileList list;
    unsigned n = 0;
    assert_ok(file_list(path, 1000, &list, &err), &err);
    for (size_t i = 0; i < list.len; i++) {
        char at[1200];
        (void)snprintf(at, sizeof at, "%s/%s", path, list.names[i]);
        n += file_is_dir(at) ? count_files(at) : 1;
    }
    file_list_clear(&list);
    return n;
}

static bool scan_is_right(const Life *l, const Repo *r, RepoScan *scan, const Promise *promises, Err *err)
{
    if (scan->problems_len > 0)
        return err_set(err, ERR_DAMAGED, "%s: %s", scan->problems[0].path, scan->problems[0].error.details);
    if (scan->orphans_len > 0)
        return err_set(err, ERR_DAMAGED, "%s is left", scan->orphans[0]);
    for (unsigned i = 0; i < POINTS; i++) {
        bool listed = point_listed(scan, &l->points[i]);
        if (promises[i] == PROMISE_THERE && !listed)
            return err_set(err, ERR_DAMAGED, "%s was there, and is lost", l->points[i].stem);
        if (promises[i] == PROMISE_NONE && listed)
            return err_set(err, ERR_DAMAGED, "%s is there, and must not be", l->points[i].stem);
        if (listed && !point_whole(r, scan, &l->points[i], err))
            return false;
    }
    unsigned files = count_files(r->path);
    return files == 1 + 5 * scan->len || err_set(err, ERR_DAMAGED, "%u files for %zu points", files, scan->len);
}

static bool recovers(const Life *l, Repo *r, const Promise *promises, Err *err)
{
    RepoScan scan;
    if (!repo_recover(r, NULL, NULL, &scan, err))
        return false;
    bool ok = scan_is_right(l, r, &scan, promises, err);
    repo_scan_clear(&scan);
    if (!ok)
        return false;
    // Another recovery changes nothing.
    record(power_begin(r->path, false));
    ok = repo_recover(r, NULL, NULL, &scan, err);
    recorder.on = false;
    for (size_t i = recorder.log.begun; i < recorder.log.len && ok; i++)
        if (recorder.log.ops[i].kind != POWER_SYNC)
            ok = err_set(err, ERR_INTERNAL, "a second recovery changes something");
    power_clear(&recorder.log);
    repo_scan_clear(&scan);
    return ok;
}

static bool folder_is_right(const Life *l, const char *path, const Promise *promises, Err *err)
{
    Repo r;
    Err cause = ERR_INIT;
    if (!repo_open(path, l->uuid, &r, &cause)) {
        // Not there yet: never half of it, and it can be made after all.
        if (promises[REPOSITORY] != PROMISE_COMING || cause.code != ERR_UNAVAILABLE)
            return err_set(err, cause.code, "%s", cause.details);
        if (!repo_create(path, l->repo.info.cluster_size, HASH_XXH3_128, &r, err))
            return false;
    }
    bool ok = recovers(l, &r, promises, err);
    repo_clear(&r);
    return ok;
}

static bool state_is_right(Life *l, const PowerLog *log, const PowerState *s, size_t end, Err *err)
{
    Promise promises[POINTS + 1];
    uint64_t hash = s->hash;
    for (unsigned i = 0; i <= POINTS; i++)
        hash = hash * 31 + (promises[i] = promised(log, end, i));
    if (!seals_hold(l, s, end, err))
        return false;
    uint64_t *place = &l->seen[hash % SEEN];
    while (*place != 0 && *place != hash)
        place = place == &l->seen[SEEN - 1] ? l->seen : place + 1;
    if (*place == hash)
        return true;
    power_build(log, s, unit_path(l->state, "after"), NULL);
    if (!folder_is_right(l, unit_path(l->state, "after/repo"), promises, err))
        return false;
    assert_true(++l->seen_len < SEEN / 2);
    *place = hash;
    return true;
}

static const char *op_words(const PowerLog *log, size_t end, char out[300])
{
    static const char *const kinds[] = {"write", "size", "add", "remove", "rename", "sync", "said"};
    if (end == 0)
        return "nothing";
    const PowerOp *op = &log->ops[end - 1];
    const char *name = "";
    for (size_t i = 0; i < end && op->kind != POWER_SAID; i++)
        if (log->ops[i].kind == POWER_ADD && log->ops[i].child == op->node)
            name = log->ops[i].name;
    (void)snprintf(out, 300, "%s %s %s", kinds[op->kind], name, op->name);
    return out;
}

// After every call of the log, every choice of what was kept. False at the first state that is wrong.
static bool all_is_right(Life *l, const PowerLog *log, const char *story, Err *err)
{
    for (size_t end = log->begun; end <= log->len; end++) {
        for (unsigned v = 0; v < power_choices(log, l->at_random); v++) {
            char words[300];
            PowerChoice c = power_choice(log, v, &l->random);
            PowerState *s = power_state(log, end, &c, &l->random);
            bool ok = state_is_right(l, log, s, end, err);
            power_state_clear(s);
            if (!ok)
                return err_context(err, "%s: call %zu of %zu (%s), choice %u", story, end, log->len,
                                   op_words(log, end, words), v);
        }
    }
    return true;
}

// ---- stories

static void power_goes(void **state, uint32_t cluster_size, unsigned compression)
{
    Err err = ERR_INIT;
    Life l = life_new(state, cluster_size, compression);
    assert_ok(all_is_right(&l, &l.log, "life", &err), &err);
    print_message("%zu calls, %zu states\n", l.log.len, l.seen_len);
    life_clear(&l);
}

static void power_goes_at_any_moment(void **state)
{
    power_goes(state, 4096, 0);
}

static void power_goes_with_compression(void **state)
{
    power_goes(state, 16384, 3);
}

typedef enum Then { THEN_RECOVER, THEN_AGAIN, THEN_KEEP_AND_AGAIN, THEN_ABORT, THEN_BACKUP } Then;

static void settle(const Life *l, const Repo *r)
{
    Err err = ERR_INIT;
    RepoScan scan;
    assert_ok(repo_recover(r, NULL, NULL, &scan, &err), &err);
    for (unsigned i = 0; i < POINTS; i++)
        promise(i, point_listed(&scan, &l->points[i]) ? PROMISE_THERE : PROMISE_NONE);
    repo_scan_clear(&scan);
}

static bool on_record(const Life *l, const Repo *r, unsigned i)
{
    Err err = ERR_INIT;
    cleanup_free char *path = repo_path_record(r, l->context, l->points[i].stem, &err);
    assert_non_null(path);
    return file_exists(path);
}

static void create_again(Life *l, const Repo *r)
{
    Err err = ERR_INIT;
    Repo again;
    if (!repo_create(r->path, r->info.cluster_size, HASH_XXH3_128, &again, &err)) {
        assert_int_equal(err.code, ERR_EXISTS);
        return;
    }
    (void)snprintf(l->uuid, sizeof l->uuid, "%s", again.info.uuid);
    repo_clear(&again);
    promise(REPOSITORY, PROMISE_THERE);
}

static void commit_again(const Repo *r, const Point *p, unsigned i, bool lost)
{
    Err err = ERR_INIT;
    bool ok = repo_commit(r, &p->rec, p->stem, p->attempt, &err);
    if (ok)
        promise(i, PROMISE_THERE);
    else if (!lost || err.code != ERR_NOT_FOUND) // after a loss of power its files may be gone
        fail_msg("commit again: %s", err.details);
}

static void back_up(Life *l, const Repo *r)
{
    Err err = ERR_INIT;
    Point *p = &l->points[LIVED];
    char *context;
    settle(l, r);
    assert_ok(repo_context(r, l->context, "web", POINT_VM, 0, &context, &err), &err);
    point_clear(p);
    *p = point_make(r, context, 1700000120, NULL, 3, "c0");
    promise(LIVED, PROMISE_COMING);
    assert_ok(repo_commit(r, &p->rec, p->stem, p->attempt, &err), &err);
    promise(LIVED, PROMISE_THERE);
    free(context);
}

// The next process does one thing. What it has called done, or listed, is a promise too. lost: the power went before.
static void go_on(Life *l, const Repo *r, Then then, bool lost)
{
    Err err = ERR_INIT;
    size_t end = recorder.log.len;
    if (promised(&recorder.log, end, REPOSITORY) == PROMISE_COMING) {
        if (then == THEN_AGAIN)
            create_again(l, r);
        return;
    }
    if (then == THEN_RECOVER)
        settle(l, r);
    if (then == THEN_BACKUP)
        back_up(l, r);
    for (unsigned i = 0; i < LIVED && then != THEN_RECOVER && then != THEN_BACKUP; i++) {
        const Point *p = &l->points[i];
        Promise was = promised(&recorder.log, end, i);
        if (was != PROMISE_COMING && was != PROMISE_GOING)
            continue;
        if (then == THEN_KEEP_AND_AGAIN) {
            const char *const keep[] = {p->attempt};
            RepoScan scan;
            assert_ok(repo_recover(r, keep_listed, &(KeepList){keep, 1}, &scan, &err), &err);
            repo_scan_clear(&scan);
        }
        if (was == PROMISE_GOING) {
            assert_ok(repo_delete(r, &p->rec, p->stem, &err), &err);
            promise(i, PROMISE_NONE);
        } else if (then == THEN_ABORT) {
            assert_ok(repo_abort(r, l->context, p->stem, p->attempt, &err), &err);
            promise(i, on_record(l, r, i) ? PROMISE_THERE : PROMISE_NONE);
        } else {
            commit_again(r, p, i, lost);
        }
    }
}

// Between calls that only fill files a second process finds the same names.
static bool worth_a_stop(const PowerLog *log, size_t end)
{
    PowerKind kind = log->ops[end - 1].kind;
    return kind != POWER_WRITE && kind != POWER_SIZE && kind != POWER_SYNC;
}

// What the process had made so far, and then this.
static void killed_and_then(Life *l, size_t end, Then then)
{
    Err err = ERR_INIT;
    char path[1200], story[120], words[300];
    PowerState *s = power_state(&l->log, end, NULL, NULL);
    PowerLog log = power_fork(&l->log, end, unit_path(l->state, "killed"));
    power_build(&l->log, s, log.top, log.inode);
    power_state_clear(s);
    Repo r = l->repo;
    (void)snprintf(path, sizeof path, "%s/repo", log.top);
    (void)snprintf(story, sizeof story, "killed after call %zu (%.50s), then %d", end, op_words(&l->log, end, words),
                   (int)then);
    r.path = path;
    record(log);
    if (file_is_dir(path))
        go_on(l, &r, then, false);
    log = record_end();
    assert_ok(all_is_right(l, &log, story, &err), &err);
    power_clear(&log);
    (void)snprintf(l->uuid, sizeof l->uuid, "%s", l->repo.info.uuid);
}

// The process is killed: all that it did is to be seen, and as little of it durable as before. What this found: a
// creation took the folder of one that was cut short, and never synced its name; recovery removed the images of a begun
// deletion, whose record had not lost its name for good.
static void killed_first(void **state)
{
    Life l = life_new(state, 4096, 0);
    l.at_random /= 2;
    for (size_t end = l.log.begun + 1; end <= l.log.len; end++) {
        const PowerOp *op = &l.log.ops[end - 1];
        for (Then then = 0; then < THEN_BACKUP && worth_a_stop(&l.log, end); then++)
            killed_and_then(&l, end, then);
        if (op->kind == POWER_ADD && op->child != 1 && l.log.folder[op->child]) // in the repository: a new folder
            killed_and_then(&l, end, THEN_BACKUP);
    }
    print_message("%zu states\n", l.seen_len);
    life_clear(&l);
}

static void lost_and_then(Life *l, size_t end, unsigned v, Then then)
{
    Err err = ERR_INIT;
    Repo r;
    char top[600], path[1200], story[120];
    PowerChoice c = power_choice(&l->log, v, &l->random);
    PowerState *s = power_state(&l->log, end, &c, &l->random);
    (void)snprintf(top, sizeof top, "%s", unit_path(l->state, "lost"));
    (void)snprintf(path, sizeof path, "%s/repo", top);
    (void)snprintf(story, sizeof story, "lost after call %zu, choice %u, then %d", end, v, (int)then);
    power_build(&l->log, s, top, NULL);
    power_state_clear(s);
    if (!repo_open(path, l->uuid, &r, &err))
        return; // not made yet
    record(power_begin(top, true));
    promise(REPOSITORY, PROMISE_THERE);
    bool again = then == THEN_AGAIN || then == THEN_KEEP_AND_AGAIN;
    for (unsigned i = 0; i < LIVED; i++) {
        Promise kept = on_record(l, &r, i) ? PROMISE_THERE : PROMISE_NONE;
        promise(i, again ? promised(&l->log, end, i) : kept);
    }
    recorder.log.begun = recorder.log.len;
    go_on(l, &r, then, true);
    PowerLog log = record_end();
    assert_ok(all_is_right(l, &log, story, &err), &err);
    power_clear(&log);
    repo_clear(&r);
}

// The power goes, and goes again while that is being recovered: a record that had its name keeps it.
static void power_goes_twice(void **state)
{
    Life l = life_new(state, 4096, 0);
    life_forget_seals(&l); // the second log counts its nodes anew
    l.at_random /= 6;
    unsigned all = power_choices(&l.log, l.at_random);
    for (size_t end = l.log.begun + 1; end <= l.log.len; end++)
        for (unsigned v = 0; v < all && worth_a_stop(&l.log, end); v = v == 1 ? all - l.at_random : v + 1)
            for (Then then = 0; then < THEN_BACKUP; then++)
                lost_and_then(&l, end, v, then);
    print_message("%zu states\n", l.seen_len);
    life_clear(&l);
}

// Would it be seen? Without the syncs of any one file or folder there is a state that is wrong.
static void every_sync_is_needed(void **state)
{
    Err err = ERR_INIT;
    Life l = life_new(state, 4096, 0);
    unsigned muted = 0;
    l.at_random = 1;
    for (unsigned node = 0; node < l.log.nodes; node++) {
        PowerLog log = power_fork(&l.log, l.log.len, l.log.top);
        size_t first = 0;
        for (size_t i = l.log.begun; i < log.len; i++) {
            if (log.ops[i].kind == POWER_SYNC && log.ops[i].node == node) {
                log.ops[i].node = POWER_NONE;
                first = first ? first : i;
            }
        }
        log.begun = first;
        if (first > 0) {
            muted++;
            char words[300];
            if (all_is_right(&l, &log, "", &err))
                fail_msg("%s: not synced, and nobody sees it", op_words(&l.log, first + 1, words));
            err_clear(&err);
        }
        power_clear(&log);
    }
    assert_true(muted >= 5 + 4 * LIVED + LIVED); // folders, images and hashes, records
    life_clear(&l);
}

// The engine's syncs and the commit's stand each for itself: with what was synced before the seal's end forgotten,
// every point that is on record is whole all the same.
static void commit_relies_on_no_earlier_sync(void **state)
{
    Err err = ERR_INIT;
    Life l = life_new(state, 4096, 0);
    unsigned muted = 0;
    for (size_t i = 0; i < l.sealed_len; i++) {
        for (size_t k = l.log.begun; k < l.sealed[i].end; k++) {
            PowerOp *op = &l.log.ops[k];
            if (op->kind == POWER_SYNC && (op->node == l.sealed[i].image || op->node == l.sealed[i].hashes)) {
                op->node = POWER_NONE;
                muted++;
            }
        }
    }
    assert_true(muted >= 3 * LIVED * POINT_DISKS);
    life_forget_seals(&l);
    assert_ok(all_is_right(&l, &l.log, "no sync by the engine", &err), &err);
    life_clear(&l);
}

int main(void)
{
    // Thousands of small trees: in memory where there is such a place, whatever the other tests use.
    if (access("/dev/shm", W_OK) == 0)
        (void)setenv("TMPDIR", "/dev/shm", 1); // else it takes longer
    const struct CMUnitTest tests[] = {
        in_folder(power_goes_at_any_moment),
        in_folder(power_goes_with_compression),
        in_folder(killed_first),
        in_folder(power_goes_twice),
        in_folder(every_sync_is_needed),
        in_folder(commit_relies_on_no_earlier_sync),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
