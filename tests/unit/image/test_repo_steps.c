// Making and unmaking a point, with every step failing, or with another hub's work before it. What power loss can leave
// is test_power.c's. Safety rules 14, 16 and 17.
#include "../keep_list.h"
#include "point.h"

#include <unistd.h>

#define in_folder(test) cmocka_unit_test_setup_teardown(test, unit_folder_setup, unit_folder_teardown)
#define STEPS_MAX 200

// ---- every change of names goes through here (the linker's --wrap): counted, and stopped

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

static struct {
    bool on;
    int stop_at; // the step that fails, or that another hub's work comes before
    int step;
    bool for_good;              // those after it fail as well
    void (*between)(void *ctx); // another hub's work
    void *ctx;
} world;

static const char *unreadable; // what file_read() fails at

bool __real_file_read(const char *path, size_t max, char **ret_text, size_t *ret_len, Err *err);
bool __wrap_file_read(const char *path, size_t max, char **ret_text, size_t *ret_len, Err *err);
bool __wrap_file_read(const char *path, size_t max, char **ret_text, size_t *ret_len, Err *err)
{
    if (unreadable && str_eq(path, unreadable))
        return err_set(err, ERR_IO, "not now");
    return __real_file_read(path, max, ret_text, ret_len, err);
}

static bool step(Err *err)
{
    if (!world.on)
        return true;
    int at = world.step++;
    if (!world.between)
        return (world.for_good ? at < world.stop_at : at != world.stop_at) ||
            err_set(err, ERR_IO, "stopped by the test");
    if (at == world.stop_at) {
        world.on = false;
        world.between(world.ctx);
        world.on = true;
    }
    return true;
}

bool __wrap_file_create_durable(const char *path, const void *p, size_t n, mode_t mode, Err *err)
{
    return step(err) && __real_file_create_durable(path, p, n, mode, err);
}

bool __wrap_file_link(const char *from, const char *to, Err *err)
{
    return step(err) && __real_file_link(from, to, err);
}

bool __wrap_file_rename(const char *from, const char *to, Err *err)
{
    return step(err) && __real_file_rename(from, to, err);
}

bool __wrap_file_unlink(const char *path, Err *err)
{
    return step(err) && __real_file_unlink(path, err);
}

bool __wrap_file_fsync_dir(const char *path, Err *err)
{
    return step(err) && __real_file_fsync_dir(path, err);
}

// Nothing loses power here, and the disk has better things to do.
int __wrap_fsync(int fd)
{
    (void)fd;
    return 0;
}

int __wrap_fdatasync(int fd)
{
    (void)fd;
    return 0;
}

static void begin(int stop_at, bool for_good)
{
    world.on = true;
    world.step = 0;
    world.stop_at = stop_at;
    world.for_good = for_good;
    world.between = NULL;
}

// Was the step to stop at beyond the last one?
static bool end(void)
{
    world.on = false;
    return world.step <= world.stop_at;
}

// ---- a repository with a full and an increment on its way, made anew for every try

typedef struct Stage {
    Repo repo;
    char *context;
    Point full, incr;
    unsigned tries;
    void **state;
} Stage;

static Stage stage_new(void **state)
{
    return (Stage){.state = state};
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
    point_check_settled(&s->repo, &scan, s->context, &s->full, &s->incr, listed);
    repo_scan_clear(&scan);
}

static void recover(Stage *s)
{
    Err err = ERR_INIT;
    RepoScan scan;
    assert_ok(repo_recover(&s->repo, NULL, NULL, &scan, &err), &err);
    repo_scan_clear(&scan);
}

// Whatever fails: the caller hears of it, and the point is listed exactly when its record has the final name. Then
// the repository is recovered, the commit run again, or its attempt removed.
static void commit_fails_anywhere(void **state)
{
    Err err = ERR_INIT;
    Stage s = stage_new(state);
    bool finished = false;
    for (int stop = 0; !finished; stop++) {
        assert_true(stop < STEPS_MAX);
        for (int variant = 0; variant < 6; variant++) {
            stage_reset(&s);
            begin(stop, variant % 2);
            bool ok = repo_commit(&s.repo, &s.incr.rec, s.incr.stem, s.incr.attempt, &err);
            finished = end();
            bool listed = incr_on_record(&s);
            assert_true(ok ? listed : err.code != ERR_NONE);
            err_clear(&err);
            if (variant / 2 == 1)
                assert_ok(repo_commit(&s.repo, &s.incr.rec, s.incr.stem, s.incr.attempt, &err), &err);
            else if (variant / 2 == 2)
                assert_ok(repo_abort(&s.repo, s.context, s.incr.stem, s.incr.attempt, &err), &err);
            if (variant / 2 != 2)
                recover(&s);
            check_settled(&s, listed || variant / 2 == 1);
        }
    }
    stage_clear(&s);
}

static void delete_fails_anywhere(void **state)
{
    Err err = ERR_INIT;
    Stage s = stage_new(state);
    bool finished = false;
    for (int stop = 0; !finished; stop++) {
        assert_true(stop < STEPS_MAX);
        for (int variant = 0; variant < 4; variant++) {
            stage_reset(&s);
            assert_ok(repo_commit(&s.repo, &s.incr.rec, s.incr.stem, s.incr.attempt, &err), &err);
            begin(stop, variant % 2);
            bool ok = repo_delete(&s.repo, &s.incr.rec, s.incr.stem, &err);
            finished = end();
            assert_int_equal(ok, finished);
            err_clear(&err);
            bool listed = incr_on_record(&s);
            if (variant / 2 == 1) { // it is asked for again
                assert_ok(repo_delete(&s.repo, &s.incr.rec, s.incr.stem, &err), &err);
                listed = false;
            } else {
                recover(&s);
            }
            check_settled(&s, listed);
        }
    }
    stage_clear(&s);
}

static void count_deleted(void *ctx, const Record *deleted)
{
    (void)deleted;
    ++*(unsigned *)ctx;
}

// As a hub does beside its API: name by name.
static bool recover_names(const Repo *r, RepoForgets forgets, void *ctx, Err *err)
{
    char **names = NULL;
    size_t len = 0;
    if (!repo_names(r, &names, &len, err))
        return false;
    bool ok = true;
    for (size_t i = 0; i < len; i++) {
        RepoScan scan;
        ok = ok && repo_recover_one(r, names[i], NULL, forgets, ctx, &scan, err);
        if (ok)
            repo_scan_clear(&scan);
        free(names[i]);
    }
    free(names);
    return ok;
}

static bool recover_whole(const Repo *r, Err *err)
{
    RepoScan scan;
    if (!repo_recover(r, NULL, NULL, &scan, err))
        return false;
    repo_scan_clear(&scan);
    return true;
}

// Whose row is to go is said before the files are: also where that is cut off.
static void deleted_ones_are_told_of(void **state)
{
    Err err = ERR_INIT;
    Stage s = stage_new(state);
    unsigned told = 0;
    stage_reset(&s);
    assert_ok(repo_commit(&s.repo, &s.incr.rec, s.incr.stem, s.incr.attempt, &err), &err);
    cleanup_free char *record = repo_path_record(&s.repo, s.context, s.incr.stem, &err);
    cleanup_free char *deleted = mem_printf(&err, "%s.deleted", record);
    assert_ok(recover_names(&s.repo, count_deleted, &told, &err), &err);
    assert_int_equal(told, 0);
    assert_int_equal(rename(record, deleted), 0);
    assert_ok(recover_names(&s.repo, count_deleted, &told, &err), &err);
    assert_int_equal(told, 1);
    assert_false(file_exists(deleted));
    assert_ok(recover_names(&s.repo, count_deleted, &told, &err), &err);
    assert_int_equal(told, 1);
    stage_clear(&s);
}

static void recovery_fails_anywhere(void **state)
{
    Err err = ERR_INIT;
    Stage s = stage_new(state);
    bool finished = false;
    for (int stop = 0; !finished; stop++) {
        bool recovered = false;
        for (int again = 0; !recovered; again++) {
            stage_reset(&s);
            begin(stop, true);
            (void)!repo_commit(&s.repo, &s.incr.rec, s.incr.stem, s.incr.attempt, &err);
            finished = end();
            err_clear(&err);
            bool listed = incr_on_record(&s);
            begin(again, true);
            bool ok = stop % 2 ? recover_names(&s.repo, NULL, NULL, &err) : recover_whole(&s.repo, &err);
            recovered = end();
            assert_int_equal(ok, recovered);
            err_clear(&err);
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
        assert_ok(repo_recover(&s->repo, keep_listed, &(KeepList){keep, 1}, &scan, &err), &err);
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
            begin(stop, false);
            world.between = take_over;
            world.ctx = &o;
            bool ok = repo_commit(&s.repo, &mine.rec, mine.stem, mine.attempt, &err);
            finished = end();
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
    assert_ok(repo_recover(&s->repo, keep_listed, &(KeepList){keep, 1}, &scan, &err), &err);
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
        begin(stop, false);
        world.between = recover_beside;
        world.ctx = &s;
        assert_ok(repo_commit(&s.repo, &s.incr.rec, s.incr.stem, s.incr.attempt, &err), &err);
        finished = end();
        recover(&s);
        check_settled(&s, true);
    }
    stage_clear(&s);
}

// A disk that fails for an instant: a deletion went on, though the record that it could not read was a child's; and a
// scan called what stands on such a record damaged, which lasts until a verify.
static void record_cannot_be_read_now(void **state)
{
    Err err = ERR_INIT;
    Stage s = stage_new(state);
    stage_reset(&s);
    assert_ok(repo_commit(&s.repo, &s.incr.rec, s.incr.stem, s.incr.attempt, &err), &err);
    cleanup_free char *child = repo_path_record(&s.repo, s.context, s.incr.stem, &err);
    cleanup_free char *parent = repo_path_record(&s.repo, s.context, s.full.stem, &err);
    assert_true(child && parent);
    unreadable = child;
    assert_fails(repo_delete(&s.repo, &s.full.rec, s.full.stem, &err), &err, ERR_IO);
    unreadable = parent;
    RepoScan scan;
    assert_ok(repo_scan(&s.repo, &scan, &err), &err);
    assert_int_equal(scan.problems_len, 1 + POINT_DISKS);
    for (size_t i = 0; i < scan.problems_len; i++)
        assert_int_equal(scan.problems[i].error.code, ERR_IO);
    repo_scan_clear(&scan);
    unreadable = NULL;
    check_settled(&s, true);
    stage_clear(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_folder(commit_fails_anywhere),     in_folder(delete_fails_anywhere), in_folder(recovery_fails_anywhere),
        in_folder(deleted_ones_are_told_of),  in_folder(other_hub_takes_over),  in_folder(recovery_beside_a_commit),
        in_folder(record_cannot_be_read_now),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
