// Making and unmaking a point, stopped at every step: the process dies, the machine loses power (what was not synced
// is gone, in any order), or another hub does its work in between. Safety rules 14, 16 and 17.
#include "point.h"

#include <sys/stat.h>
#include <unistd.h>

#define in_folder(test) cmocka_unit_test_setup_teardown(test, unit_folder_setup, unit_folder_teardown)
#define STEPS_MAX 200

// ---- every change of names goes through here (the linker's --wrap): counted, stopped, written down

bool __real_file_create_durable(const char *path, const void *p, size_t n, mode_t mode, Err *err);
bool __real_file_link(const char *from, const char *to, Err *err);
bool __real_file_rename(const char *from, const char *to, Err *err);
bool __real_file_unlink(const char *path, Err *err);
bool __real_file_fsync_dir(const char *path, Err *err);
bool __wrap_file_create_durable(const char *path, const void *p, size_t n, mode_t mode, Err *err);
bool __wrap_file_link(const char *from, const char *to, Err *err);
bool __wrap_file_rename(const char *from, const char *to, Err *err);
bool __wrap_file_unlink(const char *path, Err *err);
bool __wrap_file_fsync_dir(const char *path, Err *err);
int __wrap_fsync(int fd);
int __wrap_fdatasync(int fd);

typedef struct Change {
    char dir[600];
    char undo_remove[1200]; // this name came, ...
    char undo_from[1200];   // ... or this one is where the old content is ...
    char undo_to[1200];     // ... of this one
    bool synced;
} Change;

static struct {
    bool on;
    int stop_at; // the step that fails, and all after it; -1: none
    int step;
    bool dead;
    void (*between)(void *ctx); // another hub's work, before step stop_at
    void *ctx;
    Change changes[STEPS_MAX];
    size_t len;
    ino_t synced[STEPS_MAX]; // files and folders, since begin()
    size_t synced_len;
    char trash[600];
    unsigned trash_len;
} world = {.stop_at = -1};

static bool step(Err *err)
{
    if (!world.on)
        return true;
    if (world.between) {
        if (world.step++ == world.stop_at) {
            world.on = false;
            world.between(world.ctx);
            world.on = true;
        }
        return true;
    }
    if (world.dead || world.step++ == world.stop_at) {
        world.dead = true;
        return err_set(err, ERR_IO, "stopped by the test");
    }
    return true;
}

static Change *note(const char *path)
{
    if (!world.on || world.between)
        return NULL;
    assert_true(world.len < STEPS_MAX);
    Change *c = &world.changes[world.len++];
    *c = (Change){0};
    (void)snprintf(c->dir, sizeof c->dir, "%s", path);
    *strrchr(c->dir, '/') = '\0';
    return c;
}

bool __wrap_file_create_durable(const char *path, const void *p, size_t n, mode_t mode, Err *err)
{
    if (!step(err) || !__real_file_create_durable(path, p, n, mode, err))
        return false;
    Change *c = note(path);
    if (c)
        (void)snprintf(c->undo_remove, sizeof c->undo_remove, "%s", path);
    return true;
}

static bool is_synced(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    for (size_t i = 0; i < world.synced_len; i++)
        if (world.synced[i] == st.st_ino)
            return true;
    return false;
}

bool __wrap_file_link(const char *from, const char *to, Err *err)
{
    if (!step(err) || !__real_file_link(from, to, err))
        return false;
    // A name is no use without what it names. What an earlier run synced, a commit cannot know of.
    if (world.on && !is_synced(from))
        fail_msg("%s gets its final name, and was not synced", from);
    Change *c = note(to);
    if (c)
        (void)snprintf(c->undo_remove, sizeof c->undo_remove, "%s", to);
    return true;
}

bool __wrap_file_rename(const char *from, const char *to, Err *err)
{
    if (!step(err) || !__real_file_rename(from, to, err))
        return false;
    Change *c = note(to);
    if (c) {
        (void)snprintf(c->undo_from, sizeof c->undo_from, "%s", to);
        (void)snprintf(c->undo_to, sizeof c->undo_to, "%s", from);
    }
    return true;
}

bool __wrap_file_unlink(const char *path, Err *err)
{
    char kept[700];
    if (!step(err))
        return false;
    (void)snprintf(kept, sizeof kept, "%s/%u", world.trash, world.trash_len++);
    bool there = world.on && !world.between && link(path, kept) == 0;
    if (!__real_file_unlink(path, err))
        return false;
    Change *c = there ? note(path) : NULL;
    if (c) {
        (void)snprintf(c->undo_from, sizeof c->undo_from, "%s", kept);
        (void)snprintf(c->undo_to, sizeof c->undo_to, "%s", path);
    }
    return true;
}

bool __wrap_file_fsync_dir(const char *path, Err *err)
{
    if (!step(err))
        return false;
    size_t before = world.synced_len;
    if (!__real_file_fsync_dir(path, err))
        return false;
    assert_true(!world.on || (world.synced_len > before && is_synced(path)));
    for (size_t i = 0; world.on && i < world.len; i++)
        if (str_eq(world.changes[i].dir, path))
            world.changes[i].synced = true;
    return true;
}

// Nothing really loses power here: that it was asked for is enough.
static int note_sync(int fd)
{
    struct stat st;
    if (!world.on)
        return 0;
    assert_int_equal(fstat(fd, &st), 0);
    assert_true(world.synced_len < STEPS_MAX);
    world.synced[world.synced_len++] = st.st_ino;
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

// The power goes: of each folder's changes since its last sync some beginning has reached the disk.
static void lose_power(UnitRandom *random, int variant)
{
    for (size_t end = world.len; end-- > 0;) {
        Change *c = &world.changes[end];
        if (c->synced)
            continue;
        // Once a change of a folder is kept, those before it are.
        bool keep = variant == 0 || (variant > 1 && unit_random_below(random, 3) == 0);
        if (keep) {
            for (size_t i = 0; i <= end; i++)
                if (str_eq(world.changes[i].dir, c->dir))
                    world.changes[i].synced = true;
            continue;
        }
        if (c->undo_remove[0])
            assert_int_equal(unlink(c->undo_remove), 0);
        else
            assert_int_equal(rename(c->undo_from, c->undo_to), 0);
    }
    world.len = 0;
}

static void begin(int stop_at)
{
    world.on = true;
    world.dead = false;
    world.step = 0;
    world.stop_at = stop_at;
    world.len = 0;
    world.synced_len = 0;
    world.between = NULL;
}

static void end(void)
{
    world.on = false;
    world.between = NULL;
}

// ---- a repository with a full and an increment on its way, made anew for every try

typedef struct Stage {
    Repo repo;
    char *context;
    Point full, incr;
    UnitRandom random;
    unsigned tries;
    void **state;
} Stage;

static Stage stage_new(void **state)
{
    Stage s = {.random = unit_random(), .state = state};
    (void)snprintf(world.trash, sizeof world.trash, "%s", unit_path(state, "trash"));
    assert_int_equal(mkdir(world.trash, 0700), 0);
    return s;
}

static void stage_clear(Stage *s)
{
    if (!s->context)
        return;
    point_clear(&s->full);
    point_clear(&s->incr);
    free(s->context);
    repo_clear(&s->repo);
    s->context = NULL;
}

static void stage_reset(Stage *s)
{
    Err err = ERR_INIT;
    char name[32];
    if (s->context)
        assert_ok(file_remove_tree(s->repo.path, &err), &err);
    stage_clear(s);
    (void)snprintf(name, sizeof name, "repo-%u", s->tries++);
    assert_ok(repo_create(unit_path(s->state, name), 65536, HASH_XXH3_128, &s->repo, &err), &err);
    assert_ok(repo_context(&s->repo, NULL, "web", POINT_VM, INT64_C(1700000000000000), &s->context, &err), &err);
    s->full = point_make(&s->repo, s->context, 1700000000, NULL, 5, "f0");
    assert_ok(repo_commit(&s->repo, &s->full.rec, s->full.stem, s->full.attempt, &err), &err);
    s->incr = point_make(&s->repo, s->context, 1700000060, &s->full, 9, "a0");
}

static bool incr_on_record(const Stage *s)
{
    Err err = ERR_INIT;
    cleanup_free char *path = repo_path_record(&s->repo, s->context, s->incr.stem, &err);
    assert_non_null(path);
    return file_exists(path);
}

// After a recovery that keeps nothing: the full as ever; the increment whole, or without a trace.
static void check_settled(Stage *s, bool listed)
{
    Err err = ERR_INIT;
    RepoScan scan;
    assert_ok(repo_scan(&s->repo, &scan, &err), &err);
    assert_int_equal(scan.problems_len, 0);
    assert_int_equal(scan.orphans_len, 0);
    point_check(&s->repo, &scan, &s->full);
    assert_int_equal(point_listed(&scan, &s->incr), listed);
    if (listed)
        point_check(&s->repo, &scan, &s->incr);
    assert_int_equal(point_count_files(&s->repo, s->context, s->incr.stem), listed ? 5 : 0);
    repo_scan_clear(&scan);
}

static void recover(Stage *s)
{
    Err err = ERR_INIT;
    RepoScan scan;
    assert_ok(repo_recover(&s->repo, NULL, 0, &scan, &err), &err);
    repo_scan_clear(&scan);
}

static bool try_commit(Stage *s, int stop_at)
{
    Err err = ERR_INIT;
    begin(stop_at);
    bool ok = repo_commit(&s->repo, &s->incr.rec, s->incr.stem, s->incr.attempt, &err);
    end();
    return ok;
}

#define VARIANTS 4

// The promise: listed exactly when its record has the final name, and then complete; what was called done stays.
static void commit_stopped_anywhere(void **state)
{
    Stage s = stage_new(state);
    bool finished = false;
    for (int stop = 0; !finished; stop++) {
        assert_true(stop < STEPS_MAX);
        for (int variant = 0; variant < VARIANTS; variant++) {
            stage_reset(&s);
            bool ok = try_commit(&s, stop);
            finished = ok && !world.dead;
            lose_power(&s.random, variant);
            bool listed = incr_on_record(&s);
            if (ok)
                assert_true(listed);
            recover(&s);
            check_settled(&s, listed);
        }
    }
    stage_clear(&s);
}

// A hub that comes back and runs the same commit again ends where it wanted to.
static void commit_goes_on(void **state)
{
    Err err = ERR_INIT;
    Stage s = stage_new(state);
    bool finished = false;
    const char *const keep[] = {"a0"};
    for (int stop = 0; !finished; stop++) {
        for (int variant = 0; variant < VARIANTS; variant++) {
            stage_reset(&s);
            finished = try_commit(&s, stop) && !world.dead;
            lose_power(&s.random, variant);
            if (variant % 2 == 0) {
                RepoScan scan;
                assert_ok(repo_recover(&s.repo, keep, 1, &scan, &err), &err);
                repo_scan_clear(&scan);
            }
            assert_ok(repo_commit(&s.repo, &s.incr.rec, s.incr.stem, s.incr.attempt, &err), &err);
            recover(&s);
            check_settled(&s, true);
        }
    }
    stage_clear(&s);
}

static void commit_then_abort(void **state)
{
    Err err = ERR_INIT;
    Stage s = stage_new(state);
    bool finished = false;
    for (int stop = 0; !finished; stop++) {
        for (int variant = 0; variant < VARIANTS; variant++) {
            stage_reset(&s);
            finished = try_commit(&s, stop) && !world.dead;
            lose_power(&s.random, variant);
            bool listed = incr_on_record(&s);
            assert_ok(repo_abort(&s.repo, s.context, s.incr.stem, s.incr.attempt, &err), &err);
            check_settled(&s, listed);
        }
    }
    stage_clear(&s);
}

static void delete_stopped_anywhere(void **state)
{
    Err err = ERR_INIT;
    Stage s = stage_new(state);
    bool finished = false;
    for (int stop = 0; !finished; stop++) {
        assert_true(stop < STEPS_MAX);
        for (int variant = 0; variant < VARIANTS; variant++) {
            stage_reset(&s);
            assert_true(try_commit(&s, -1));
            begin(stop);
            bool ok = repo_delete(&s.repo, &s.incr.rec, s.incr.stem, &err);
            end();
            finished = ok && !world.dead;
            err_clear(&err);
            lose_power(&s.random, variant);
            bool listed = incr_on_record(&s);
            if (ok)
                assert_false(listed);
            if (variant % 2 == 0) {
                recover(&s);
            } else if (!listed) { // or the delete is asked for again
                assert_ok(repo_delete(&s.repo, &s.incr.rec, s.incr.stem, &err), &err);
                recover(&s);
            }
            check_settled(&s, listed);
        }
    }
    stage_clear(&s);
}

// Recovery is itself interrupted, at each of its steps, after each of the commit's.
static void recovery_stopped_anywhere(void **state)
{
    Err err = ERR_INIT;
    Stage s = stage_new(state);
    bool finished = false;
    for (int stop = 0; !finished; stop++) {
        bool recovered = false;
        for (int again = 0; !recovered; again++) {
            stage_reset(&s);
            finished = try_commit(&s, stop) && !world.dead;
            lose_power(&s.random, 0);
            bool listed = incr_on_record(&s);
            RepoScan scan;
            begin(again);
            bool ok = repo_recover(&s.repo, NULL, 0, &scan, &err);
            end();
            recovered = ok;
            if (ok)
                repo_scan_clear(&scan);
            err_clear(&err);
            lose_power(&s.random, again % VARIANTS);
            assert_int_equal(incr_on_record(&s), listed);
            recover(&s);
            check_settled(&s, listed);
        }
    }
    stage_clear(&s);
}

// ---- another hub, in between

typedef struct Other {
    Stage *stage;
    Point *point; // commits this one as well
    bool committed;
    bool whole; // recovers the whole repository instead of aborting one attempt
} Other;

static void take_over(void *ctx)
{
    Other *o = ctx;
    Stage *s = o->stage;
    Err err = ERR_INIT;
    if (o->whole) {
        const char *const keep[] = {"b0"};
        RepoScan scan;
        assert_ok(repo_recover(&s->repo, keep, 1, &scan, &err), &err);
        repo_scan_clear(&scan);
    } else {
        assert_ok(repo_abort(&s->repo, s->context, s->incr.stem, s->incr.attempt, &err), &err);
    }
    if (o->point) {
        o->committed = repo_commit(&s->repo, &o->point->rec, o->point->stem, o->point->attempt, &err);
        err_clear(&err);
    }
}

// A stopped hub's commit goes on after another one has removed its attempt: never listed, or a correct point.
static void other_hub_takes_over(void **state)
{
    Err err = ERR_INIT;
    Stage s = stage_new(state);
    for (int mode = 0; mode < 4; mode++) {
        bool finished = false;
        for (int stop = 0; !finished; stop++) {
            assert_true(stop < STEPS_MAX);
            stage_reset(&s);
            Point mine = s.incr, other = {0};
            Other o = {.stage = &s, .whole = mode & 1};
            if (mode & 2) {
                other = point_make(&s.repo, s.context, 1700000060, &s.full, 77, "b0");
                o.point = &other;
            }
            begin(stop);
            world.between = take_over;
            world.ctx = &o;
            bool ok = repo_commit(&s.repo, &mine.rec, mine.stem, mine.attempt, &err);
            finished = world.step <= stop;
            end();
            err_clear(&err);
            bool listed = incr_on_record(&s);
            assert_int_equal(listed, ok || o.committed);
            assert_false(ok && o.committed);
            if (o.committed)
                s.incr = other; // this is what must be read
            if (!ok)
                assert_ok(repo_abort(&s.repo, s.context, mine.stem, mine.attempt, &err), &err);
            recover(&s);
            check_settled(&s, listed);
            s.incr = mine;
            if (o.point)
                point_clear(&other);
        }
    }
    stage_clear(&s);
}

static void recover_beside(void *ctx)
{
    Stage *s = ctx;
    Err err = ERR_INIT;
    const char *const keep[] = {"a0"};
    RepoScan scan;
    assert_ok(repo_recover(&s->repo, keep, 1, &scan, &err), &err);
    repo_scan_clear(&scan);
}

// A recovery that knows of the attempt does not disturb its commit, whenever it comes.
static void recovery_beside_a_commit(void **state)
{
    Err err = ERR_INIT;
    Stage s = stage_new(state);
    bool finished = false;
    for (int stop = 0; !finished; stop++) {
        stage_reset(&s);
        begin(stop);
        world.between = recover_beside;
        world.ctx = &s;
        assert_ok(repo_commit(&s.repo, &s.incr.rec, s.incr.stem, s.incr.attempt, &err), &err);
        finished = world.step <= stop;
        end();
        recover(&s);
        check_settled(&s, true);
    }
    stage_clear(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_folder(commit_stopped_anywhere),   in_folder(commit_goes_on),
        in_folder(commit_then_abort),         in_folder(delete_stopped_anywhere),
        in_folder(recovery_stopped_anywhere), in_folder(other_hub_takes_over),
        in_folder(recovery_beside_a_commit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
