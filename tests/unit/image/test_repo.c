// Repositories: what may become one, what is taken for one, and that scan, chain and checks see what is wrong.
#include "image/layout.h"
#include "point.h"

#include "base/uuid.h"
#include "../keep_list.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define in_folder(test) cmocka_unit_test_setup_teardown(test, unit_folder_setup, unit_folder_teardown)

static void put(const char *path, const char *text)
{
    Err err = ERR_INIT;
    assert_ok(file_create_durable(path, text, strlen(text), 0600, &err), &err);
}

static Repo create(void **state, const char *name)
{
    Err err = ERR_INIT;
    Repo r;
    assert_ok(repo_create(unit_path(state, name), 65536, HASH_XXH3_128, &r, &err), &err);
    return r;
}

static char *context_of(const Repo *r)
{
    Err err = ERR_INIT;
    char *context;
    assert_ok(repo_context(r, NULL, "web", POINT_VM, INT64_C(1700000000000000), &context, &err), &err);
    return context;
}

static Point committed(const Repo *r, const char *context, unsigned second, const Point *parent, uint8_t fill)
{
    Err err = ERR_INIT;
    Point p = point_make(r, context, second, parent, fill, "ab12");
    assert_ok(repo_commit(r, &p.rec, p.stem, p.attempt, &err), &err);
    return p;
}

static void create_and_open(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo"), again;
    assert_true(uuid_is_valid(r.info.uuid));
    assert_int_equal(r.geo.cluster_size, 65536);
    assert_ok(repo_open(r.path, r.info.uuid, &again, &err), &err);
    assert_true(again.info.hash.seed == r.info.hash.seed);
    repo_clear(&again);
    FileList list; // nothing left over
    assert_ok(file_list(r.path, 10, &list, &err), &err);
    assert_int_equal(list.len, 1);
    file_list_clear(&list);
    assert_fails(repo_create(r.path, 65536, HASH_XXH3_128, &again, &err), &err, ERR_EXISTS);
    repo_clear(&r);
    // An empty folder that is there, and one with what a fresh filesystem has.
    assert_int_equal(mkdir(unit_path(state, "empty"), 0700), 0);
    r = create(state, "empty");
    repo_clear(&r);
    assert_int_equal(mkdir(unit_path(state, "fresh"), 0700), 0);
    assert_int_equal(mkdir(unit_path(state, "fresh/lost+found"), 0700), 0);
    r = create(state, "fresh");
    repo_clear(&r);
}

static void create_refuses(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo"), other;
    // Inside another one, also through a link, and through folders that do not exist yet.
    assert_fails(repo_create(unit_path(state, "repo/inner"), 65536, HASH_XXH3_128, &other, &err), &err, ERR_CONFLICT);
    assert_fails(repo_create(unit_path(state, "repo/a/b"), 65536, HASH_XXH3_128, &other, &err), &err, ERR_CONFLICT);
    assert_int_equal(mkdir(unit_path(state, "repo/there"), 0700), 0);
    assert_int_equal(symlink("repo/there", unit_path(state, "link")), 0);
    assert_fails(repo_create(unit_path(state, "link"), 65536, HASH_XXH3_128, &other, &err), &err, ERR_CONFLICT);
    assert_int_equal(symlink("repo/nowhere", unit_path(state, "dangling")), 0);
    assert_fails(repo_create(unit_path(state, "dangling"), 65536, HASH_XXH3_128, &other, &err), &err, ERR_CONFLICT);
    // Not empty; no folder; a parent that is missing; a cluster size that does not exist.
    assert_int_equal(mkdir(unit_path(state, "full"), 0700), 0);
    put(unit_path(state, "full/.hidden"), "x");
    assert_fails(repo_create(unit_path(state, "full"), 65536, HASH_XXH3_128, &other, &err), &err, ERR_CONFLICT);
    put(unit_path(state, "file"), "x");
    assert_false(repo_create(unit_path(state, "file"), 65536, HASH_XXH3_128, &other, &err));
    err_clear(&err);
    assert_fails(repo_create(unit_path(state, "no/such/parent"), 65536, HASH_XXH3_128, &other, &err), &err,
                 ERR_NOT_FOUND);
    assert_fails(repo_create(unit_path(state, "odd"), 1000, HASH_XXH3_128, &other, &err), &err, ERR_INVALID);
    assert_false(file_exists(unit_path(state, "odd")));
    repo_clear(&r);
}

static void is_inside(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo");
    static const struct {
        const char *path;
        bool inside;
    } cases[] = {{"repo", true},        {"repo/x/y/z", true}, {"repo/../repo/x", true},
                 {"repository", false}, {"repo.img", false},  {"repo/../x", false},
                 {".", false},          {"repo/x///", true},  {"new//", false}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        bool inside = !cases[i].inside;
        assert_ok(repo_is_inside(unit_path(state, cases[i].path), &inside, &err), &err);
        if (inside != cases[i].inside)
            fail_msg("%s", cases[i].path);
    }
    bool inside;
    assert_fails(repo_is_inside(unit_path(state, "new/../repo/x"), &inside, &err), &err, ERR_INVALID);
    assert_fails(repo_is_inside("", &inside, &err), &err, ERR_INVALID);
    int here = open(".", O_RDONLY | O_DIRECTORY);
    assert_int_equal(chdir(r.path), 0);
    assert_ok(repo_is_inside("restored.img", &inside, &err), &err);
    assert_true(inside);
    assert_int_equal(fchdir(here), 0);
    (void)close(here);
    repo_clear(&r);
}

// Safety rule 18: an unmounted share is an empty folder, or another repository.
static void unmounted_share(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo"), got;
    char *context = context_of(&r);
    Point p = point_make(&r, context, 1700000000, NULL, 5, "ab");
    RepoScan s;
    assert_int_equal(rename(unit_path(state, "repo"), unit_path(state, "away")), 0);
    for (int round = 0; round < 2; round++) {
        ErrCode want = round == 0 ? ERR_UNAVAILABLE : ERR_CONFLICT;
        if (round == 0) {
            assert_int_equal(mkdir(unit_path(state, "repo"), 0700), 0);
        } else {
            Repo other = create(state, "repo");
            repo_clear(&other);
        }
        char *name, *path;
        assert_fails(repo_open(r.path, r.info.uuid, &got, &err), &err, want);
        assert_fails(repo_context(&r, context, "web", POINT_VM, 1, &name, &err), &err, want);
        assert_fails(repo_context(&r, NULL, "web", POINT_VM, 1, &name, &err), &err, want);
        assert_fails(repo_commit(&r, &p.rec, p.stem, p.attempt, &err), &err, want);
        assert_fails(repo_abort(&r, context, p.stem, p.attempt, &err), &err, want);
        assert_fails(repo_delete(&r, &p.rec, p.stem, &err), &err, want);
        assert_fails(repo_scan(&r, &s, &err), &err, want);
        assert_fails(repo_recover(&r, NULL, NULL, &s, &err), &err, want);
        assert_false(repo_disk_folder(&r, context, 0, &path, &err));
        err_clear(&err);
    }
    assert_fails(repo_open(unit_path(state, "nothing"), NULL, &got, &err), &err, ERR_NOT_FOUND);
    point_clear(&p);
    free(context);
    repo_clear(&r);
}

static void contexts(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo");
    char *a, *b, *c;
    // Two VMs of one name, in the same second, never share a folder.
    a = context_of(&r);
    b = context_of(&r);
    assert_string_equal(a, "ctx-web-20231114221320");
    assert_string_equal(b, "ctx-web-20231114221321");
    assert_ok(repo_context(&r, a, "web", POINT_VM, 0, &c, &err), &err);
    assert_string_equal(c, a);
    free(c);
    assert_fails(repo_context(&r, "ctx-gone-20231114221320", "web", POINT_VM, 0, &c, &err), &err, ERR_NOT_FOUND);
    assert_fails(repo_context(&r, "../ctx-web-20231114221320", "web", POINT_VM, 0, &c, &err), &err, ERR_INVALID);
    assert_int_equal(symlink(a, unit_path(state, "repo/ctx-link-20231114221320")), 0);
    assert_fails(repo_context(&r, "ctx-link-20231114221320", "web", POINT_VM, 0, &c, &err), &err, ERR_NOT_FOUND);

    // The stamp has room for four digits; it only tells folders apart, until there is no other name.
    const int64_t late = INT64_C(253402300800) * 1000000;
    assert_ok(repo_context(&r, NULL, "web", POINT_VM, late, &c, &err), &err);
    assert_string_equal(c, "ctx-web-00000000000000");
    free(c);
    assert_fails(repo_context(&r, NULL, "web", POINT_VM, late, &c, &err), &err, ERR_CONFLICT);

    unsigned no = 99;
    char *path;
    assert_ok(repo_next_disk_no(&r, a, 0, &no, &err), &err);
    assert_int_equal(no, 0);
    assert_ok(repo_disk_folder(&r, a, 0, &path, &err), &err);
    free(path);
    assert_ok(repo_disk_folder(&r, a, 0, &path, &err), &err); // again is fine
    free(path);
    assert_ok(repo_disk_folder(&r, a, 1, &path, &err), &err);
    free(path);
    assert_ok(repo_next_disk_no(&r, a, 0, &no, &err), &err);
    assert_int_equal(no, 2);
    assert_ok(repo_next_disk_no(&r, a, 7, &no, &err), &err);
    assert_int_equal(no, 7);
    char link[4096];
    (void)snprintf(link, sizeof link, "%s/%s/disk-2", r.path, a);
    assert_int_equal(symlink("/tmp", link), 0);
    assert_fails(repo_disk_folder(&r, a, 2, &path, &err), &err, ERR_CONFLICT);
    assert_ok(repo_next_disk_no(&r, a, 0, &no, &err), &err);
    assert_int_equal(no, 3);

    assert_null(repo_path_disk_file(&r, a, 0, "../repository.json", &err));
    err_clear(&err);
    assert_null(repo_path_disk_file(&r, "..", 0, "backup-a-1-full.qcow2", &err));
    err_clear(&err);
    assert_null(repo_path_record(&r, a, "../x", &err));
    err_clear(&err);
    free(a);
    free(b);
    repo_clear(&r);
}

static void commit_scan_delete(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo");
    char *context = context_of(&r);
    Point full = committed(&r, context, 1700000000, NULL, 5), incr = committed(&r, context, 1700000060, &full, 9);
    RepoScan s;
    assert_ok(repo_scan(&r, &s, &err), &err);
    assert_int_equal(s.len, 2);
    assert_int_equal(s.problems_len, 0);
    assert_int_equal(s.orphans_len, 0);
    point_check(&r, &s, &full);
    point_check(&r, &s, &incr);
    repo_scan_clear(&s);
    // The same again is fine, at a later time as well; another change ID is not, nor is another attempt,
    // and neither harms anything.
    assert_ok(repo_commit(&r, &incr.rec, incr.stem, incr.attempt, &err), &err);
    incr.rec.completed_us++;
    assert_ok(repo_commit(&r, &incr.rec, incr.stem, incr.attempt, &err), &err);
    incr.rec.disks[0].change_id[0]++;
    assert_fails(repo_commit(&r, &incr.rec, incr.stem, incr.attempt, &err), &err, ERR_EXISTS);
    incr.rec.disks[0].change_id[0]--;
    Point late = point_make(&r, context, 1700000060, &full, 77, "ee");
    assert_fails(repo_commit(&r, &late.rec, late.stem, late.attempt, &err), &err, ERR_EXISTS);
    assert_ok(repo_abort(&r, context, late.stem, late.attempt, &err), &err);
    point_clear(&late);
    assert_ok(repo_scan(&r, &s, &err), &err);
    assert_int_equal(s.orphans_len, 0);
    point_check(&r, &s, &incr);
    repo_scan_clear(&s);
    // Only the point that has the record's name goes.
    char *id = incr.rec.backup_id, other_id[] = "backup-web-7";
    incr.rec.backup_id = other_id;
    assert_fails(repo_delete(&r, &incr.rec, incr.stem, &err), &err, ERR_CONFLICT);
    incr.rec.backup_id = id;
    // A base stays while something stands on it.
    assert_fails(repo_delete(&r, &full.rec, full.stem, &err), &err, ERR_CONFLICT);
    assert_ok(repo_delete(&r, &incr.rec, incr.stem, &err), &err);
    assert_int_equal(point_count_files(&r, context, incr.stem), 0);
    assert_ok(repo_delete(&r, &incr.rec, incr.stem, &err), &err); // again
    assert_ok(repo_delete(&r, &full.rec, full.stem, &err), &err);
    assert_int_equal(point_count_files(&r, context, "backup-"), 0);
    point_clear(&full);
    point_clear(&incr);
    free(context);
    repo_clear(&r);
}

// A commit looks at what it lists.
static void commit_refuses(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo");
    char *context = context_of(&r);
    Point p = point_make(&r, context, 1700000000, NULL, 5, "ab");
    char uuid[UUID_TEXT];
    RepoScan s;
    assert_fails(repo_commit(&r, &p.rec, "backup-web-1700000001", p.attempt, &err), &err, ERR_INVALID);
    assert_fails(repo_commit(&r, &p.rec, p.stem, "not hex", &err), &err, ERR_INVALID);
    assert_fails(repo_commit(&r, &p.rec, p.stem, "cd", &err), &err,
                 ERR_NOT_FOUND); // nothing of that attempt
    p.rec.disks[0].image_bytes++;
    assert_fails(repo_commit(&r, &p.rec, p.stem, p.attempt, &err), &err, ERR_DAMAGED);
    p.rec.disks[0].image_bytes--;
    p.rec.disks[1].root.bytes[0] ^= 1;
    assert_fails(repo_commit(&r, &p.rec, p.stem, p.attempt, &err), &err, ERR_DAMAGED);
    p.rec.disks[1].root.bytes[0] ^= 1;
    p.rec.disks[1].hashes_digest.bytes[0] ^= 1;
    assert_fails(repo_commit(&r, &p.rec, p.stem, p.attempt, &err), &err, ERR_DAMAGED);
    p.rec.disks[1].hashes_digest.bytes[0] ^= 1;
    memcpy(uuid, p.rec.repository_uuid, strlen(p.rec.repository_uuid) + 1);
    p.rec.repository_uuid[0] = p.rec.repository_uuid[0] == '0' ? '1' : '0';
    assert_fails(repo_commit(&r, &p.rec, p.stem, p.attempt, &err), &err, ERR_INVALID);
    memcpy(p.rec.repository_uuid, uuid, strlen(uuid) + 1);
    assert_ok(repo_scan(&r, &s, &err), &err);
    assert_int_equal(s.len, 0);
    repo_scan_clear(&s);
    // A folder under the partial name.
    char partial[4096], *given = point_file(&r, context, 0, p.rec.disks[0].image);
    (void)snprintf(partial, sizeof partial, "%s.partial-%s", given, p.attempt);
    assert_int_equal(rename(partial, unit_path(state, "aside")), 0);
    assert_int_equal(mkdir(partial, 0700), 0);
    assert_fails(repo_commit(&r, &p.rec, p.stem, p.attempt, &err), &err, ERR_DAMAGED);
    assert_int_equal(rmdir(partial), 0);
    assert_int_equal(rename(unit_path(state, "aside"), partial), 0);
    free(given);
    // A final name that another attempt has given is never taken for one's own.
    char *final = point_file(&r, context, 0, p.rec.disks[0].image),
         *aside = point_file(&r, context, 0, "backup-x-1-full.qcow2");
    assert_int_equal(rename(final, aside), 0);
    put(final, "another's");
    assert_fails(repo_commit(&r, &p.rec, p.stem, p.attempt, &err), &err, ERR_EXISTS);
    assert_int_equal(rename(aside, final), 0);
    free(final);
    free(aside);
    // Aborting the one that had nothing leaves the final names that the other has given already.
    assert_ok(repo_abort(&r, context, p.stem, "cd", &err), &err);
    assert_int_equal(point_count_files(&r, context, p.stem), 9);
    assert_ok(repo_commit(&r, &p.rec, p.stem, p.attempt, &err), &err);
    assert_ok(repo_scan(&r, &s, &err), &err);
    point_check(&r, &s, &p);
    assert_int_equal(s.orphans_len, 0);
    repo_scan_clear(&s);
    point_clear(&p);
    free(context);
    repo_clear(&r);
}

// Only what matches our names and no record is removed, and attempts that still run are kept.
static void recover_keeps(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo");
    char *context = context_of(&r), path[4096];
    Point full = committed(&r, context, 1700000000, NULL, 5);
    Point running = point_make(&r, context, 1700000060, &full, 9, "aa");
    Point dead = point_make(&r, context, 1700000120, &full, 9, "bb");
    static const char *const foreign[] = {"notes.txt",           "backup-web-1700000000-full.qcow2.bak",
                                          "backup-web.json",     "disk-0/backup-x-1-full.raw",
                                          "disk-1/backup.qcow2", "disk-x"};
    for (size_t i = 0; i < ARRAY_LEN(foreign); i++) {
        (void)snprintf(path, sizeof path, "%s/%s/%s", r.path, context, foreign[i]);
        put(path, "mine");
    }
    put(unit_path(state, "repo/backup-web-1700000000-full.qcow2"), "mine"); // not where ours lie
    assert_int_equal(mkdir(unit_path(state, "repo/elsewhere"), 0700), 0);
    put(unit_path(state, "repo/elsewhere/backup-a-1-full.qcow2"), "mine");
    // A final name without a record, in a folder that is a link: not followed.
    assert_int_equal(mkdir(unit_path(state, "outside"), 0700), 0);
    put(unit_path(state, "outside/backup-a-1-full.qcow2"), "mine");
    (void)snprintf(path, sizeof path, "%s/%s/disk-5", r.path, context);
    assert_int_equal(symlink(unit_path(state, "outside"), path), 0);
    (void)snprintf(path, sizeof path, "%s/%s/disk-0/backup-lost-1-full.qcow2", r.path, context);
    put(path, "orphan");

    const char *const keep[] = {"aa"};
    RepoScan s;
    assert_ok(repo_scan(&r, &s, &err), &err);
    assert_int_equal(s.orphans_len, 9); // four files an attempt, and the lost one
    repo_scan_clear(&s);
    assert_ok(repo_recover(&r, keep_listed, &(KeepList){keep, 1}, &s, &err), &err);
    assert_int_equal(s.orphans_len, 4);
    assert_int_equal(s.problems_len, 0);
    assert_false(file_exists(path));
    point_check(&r, &s, &full);
    repo_scan_clear(&s);
    for (size_t i = 0; i < ARRAY_LEN(foreign); i++) {
        (void)snprintf(path, sizeof path, "%s/%s/%s", r.path, context, foreign[i]);
        assert_true(file_exists(path));
    }
    assert_true(file_exists(unit_path(state, "repo/backup-web-1700000000-full.qcow2")));
    assert_true(file_exists(unit_path(state, "repo/elsewhere/backup-a-1-full.qcow2")));
    assert_true(file_exists(unit_path(state, "outside/backup-a-1-full.qcow2")));
    assert_int_equal(point_count_files(&r, context, dead.stem), 0);
    assert_ok(repo_commit(&r, &running.rec, running.stem, running.attempt, &err), &err);
    point_clear(&full);
    point_clear(&running);
    point_clear(&dead);
    free(context);
    repo_clear(&r);
}

static bool has_problem(const RepoScan *s, const char *part)
{
    for (size_t i = 0; i < s->problems_len; i++)
        if (strstr(s->problems[i].path, part) || strstr(s->problems[i].error.details, part))
            return true;
    return false;
}

// Damage is told, and never a reason to remove anything.
static void scan_tells(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo");
    char *context = context_of(&r), *record, *image;
    Point full = committed(&r, context, 1700000000, NULL, 5), incr = committed(&r, context, 1700000060, &full, 9);
    RepoScan s;
    // A record with a flipped byte: its files stay.
    assert_non_null(record = repo_path_record(&r, context, full.stem, &err));
    int fd = open(record, O_RDWR);
    char c = 'X';
    assert_int_equal(pwrite(fd, &c, 1, 40), 1);
    (void)close(fd);
    unsigned before = point_count_files(&r, context, full.stem);
    assert_ok(repo_recover(&r, NULL, NULL, &s, &err), &err);
    assert_int_equal(s.len, 1);
    assert_int_equal(s.problems_len, 1 + POINT_DISKS);
    assert_int_equal(s.problems[0].error.code, ERR_DAMAGED);
    assert_null(s.problems[0].backup_id);
    assert_true(has_problem(&s, full.stem));
    // What stands on it is listed, and not whole.
    assert_string_equal(s.problems[1].backup_id, incr.rec.backup_id);
    assert_string_equal(s.problems[1].disk_key, incr.rec.disks[0].disk_key);
    assert_true(has_problem(&s, "stands on"));
    assert_int_equal(point_count_files(&r, context, full.stem), before);
    repo_scan_clear(&s);
    // Its record gone altogether: another point stands on its images, so they stay, and it is told.
    assert_int_equal(unlink(record), 0);
    assert_ok(repo_recover(&r, NULL, NULL, &s, &err), &err);
    assert_int_equal(point_count_files(&r, context, full.stem), before - 1);
    assert_true(has_problem(&s, "record is missing"));
    RepoChain chain;
    assert_fails(repo_chain(&r, &s.records[0], "key-0", point_find, &s, &chain, &err), &err, ERR_DAMAGED);
    repo_scan_clear(&s);
    assert_ok(repo_delete(&r, &incr.rec, incr.stem, &err), &err);
    assert_ok(repo_recover(&r, NULL, NULL, &s, &err), &err); // now it is nobody's
    assert_int_equal(point_count_files(&r, context, "backup-"), 0);
    repo_scan_clear(&s);
    free(record);
    // Files that are missing or of another length; a record in another point's place; a foreign one.
    Point p = committed(&r, context, 1700000120, NULL, 5);
    image = point_file(&r, context, 0, p.rec.disks[0].image);
    assert_int_equal(truncate(image, 100), 0);
    free(image);
    image = point_file(&r, context, 1, p.rec.disks[1].hashes);
    assert_int_equal(unlink(image), 0);
    free(image);
    char *own = repo_path_record(&r, context, p.stem, &err),
         *other = repo_path_record(&r, context, "backup-web-7", &err);
    char *text;
    assert_ok(file_read(own, RECORD_MAX_BYTES, &text, NULL, &err), &err);
    put(other, text);
    assert_int_equal(symlink(own, unit_path(state, "link")), 0);
    char *third = repo_path_record(&r, context, "backup-web-8", &err);
    assert_int_equal(symlink(own, third), 0);
    assert_ok(repo_scan(&r, &s, &err), &err);
    assert_int_equal(s.len, 1);
    assert_int_equal(s.problems_len, 4);
    assert_true(has_problem(&s, "bytes long"));
    assert_true(has_problem(&s, "is missing"));
    assert_true(has_problem(&s, "belongs to the image"));
    assert_true(has_problem(&s, "not a regular file"));
    repo_scan_clear(&s);
    free(text);
    free(own);
    free(other);
    free(third);
    point_clear(&full);
    point_clear(&incr);
    point_clear(&p);
    free(context);
    repo_clear(&r);
}

// What stands between a chain and a reader that trusts it.
// Sound records that do not belong where they lie.
static void records_out_of_place(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo"), other = create(state, "other");
    char *context = context_of(&r), *second = NULL, *text, *path;
    assert_ok(repo_context(&r, NULL, "web", POINT_VM, INT64_C(1700000500000000), &second, &err), &err);
    Point p = committed(&r, context, 1700000000, NULL, 5);
    char *own = repo_path_record(&r, context, p.stem, &err);
    assert_ok(file_read(own, RECORD_MAX_BYTES, &text, NULL, &err), &err);
    assert_non_null(path = repo_path_record(&r, second, p.stem, &err));
    put(path, text);
    RepoScan s;
    assert_ok(repo_scan(&r, &s, &err), &err);
    assert_int_equal(s.len, 1);
    assert_true(has_problem(&s, "belongs into the folder"));
    repo_scan_clear(&s);
    free(path);
    // Another repository's: even its seed is another, so that the digest does not fit.
    char folder[600];
    (void)snprintf(folder, sizeof folder, "%s/%s", other.path, context);
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_non_null(path = repo_path_record(&other, context, p.stem, &err));
    put(path, text);
    assert_ok(repo_scan(&other, &s, &err), &err);
    assert_int_equal(s.len, 0);
    assert_int_equal(s.problems_len, 1);
    assert_int_equal(s.problems[0].error.code, ERR_DAMAGED);
    repo_scan_clear(&s);
    // Another repository's by its UUID alone: one that was copied with its seed.
    Record foreign;
    char *sealed;
    assert_ok(record_decode(text, strlen(text), &r.info.hash, &foreign, &err), &err);
    memcpy(foreign.repository_uuid, other.info.uuid, strlen(other.info.uuid));
    assert_ok(record_encode(&foreign, &r.info.hash, &sealed, &err), &err);
    record_clear(&foreign);
    assert_int_equal(unlink(own), 0);
    put(own, sealed);
    free(sealed);
    assert_ok(repo_scan(&r, &s, &err), &err);
    assert_int_equal(s.len, 0);
    assert_true(has_problem(&s, "belongs to repository"));
    repo_scan_clear(&s);
    // Names that lead elsewhere are no paths of a repository.
    assert_null(repo_path_record(&r, "../other", p.stem, &err));
    assert_int_equal(err.code, ERR_INVALID);
    err_clear(&err);
    char *none;
    assert_fails(repo_disk_folder(&r, "../other", 0, &none, &err), &err, ERR_INVALID);
    assert_fails(repo_disk_folder(&r, context, LAYOUT_DISK_MAX + 1, &none, &err), &err, ERR_INVALID);
    free(path);
    free(own);
    free(text);
    free(context);
    free(second);
    point_clear(&p);
    repo_clear(&r);
    repo_clear(&other);
}

static void chain_refuses(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo");
    char *context = context_of(&r);
    Point full = committed(&r, context, 1700000000, NULL, 5), incr = committed(&r, context, 1700000060, &full, 9);
    RepoScan s;
    RepoChain chain;
    assert_ok(repo_scan(&r, &s, &err), &err);
    const Record *tip = point_find(&s, incr.rec.backup_id);
    Record *base = (Record *)point_find(&s, full.rec.backup_id);
    assert_ok(repo_chain(&r, tip, "key-1", point_find, &s, &chain, &err), &err);
    assert_int_equal(chain.len, 2);
    assert_string_equal(chain.layers[0].backing_name, full.rec.disks[1].image);
    assert_null(chain.layers[1].backing_name);
    assert_ptr_equal(chain.records[1], base);
    repo_chain_clear(&chain);
    assert_fails(repo_chain(&r, tip, "key-7", point_find, &s, &chain, &err), &err, ERR_NOT_FOUND);
    base->sequence = tip->sequence;
    assert_fails(repo_chain(&r, tip, "key-1", point_find, &s, &chain, &err), &err, ERR_DAMAGED);
    base->sequence = 1;
    base->vm_id[0] ^= 1;
    assert_fails(repo_chain(&r, tip, "key-1", point_find, &s, &chain, &err), &err, ERR_DAMAGED);
    base->vm_id[0] ^= 1;
    base->context[5] ^= 1;
    assert_fails(repo_chain(&r, tip, "key-1", point_find, &s, &chain, &err), &err, ERR_DAMAGED);
    base->context[5] ^= 1;
    base->disks[1].image[9] ^= 1;
    assert_fails(repo_chain(&r, tip, "key-1", point_find, &s, &chain, &err), &err, ERR_DAMAGED);
    base->disks[1].image[9] ^= 1;
    base->disks[1].disk_no = 4;
    assert_fails(repo_chain(&r, tip, "key-1", point_find, &s, &chain, &err), &err, ERR_DAMAGED);
    base->disks[1].disk_no = 1;
    base->disks[1].chain_length = 2;
    assert_fails(repo_chain(&r, tip, "key-1", point_find, &s, &chain, &err), &err, ERR_DAMAGED);
    // As long as its parent says, and yet there are fewer; longer than any may be; none.
    ((Record *)tip)->disks[1].chain_length = 3;
    assert_fails(repo_chain(&r, tip, "key-1", point_find, &s, &chain, &err), &err, ERR_DAMAGED);
    base->disks[1].chain_length = 1;
    ((Record *)tip)->disks[1].chain_length = CHAIN_LAYERS_MAX + 1;
    assert_fails(repo_chain(&r, tip, "key-1", point_find, &s, &chain, &err), &err, ERR_DAMAGED);
    ((Record *)tip)->disks[1].chain_length = 0;
    assert_fails(repo_chain(&r, tip, "key-1", point_find, &s, &chain, &err), &err, ERR_DAMAGED);
    ((Record *)tip)->disks[1].chain_length = 2;
    base->disks[1].disk_key[0] ^= 1;
    assert_fails(repo_chain(&r, tip, "key-1", point_find, &s, &chain, &err), &err, ERR_DAMAGED);
    base->disks[1].disk_key[0] ^= 1;
    assert_ok(repo_chain(&r, tip, "key-1", point_find, &s, &chain, &err), &err);
    repo_chain_clear(&chain);
    repo_scan_clear(&s);
    point_clear(&full);
    point_clear(&incr);
    free(context);
    repo_clear(&r);
}

// A record under the name of a deletion, though another point stands on it: told, and nothing goes.
static void a_deletion_of_what_is_needed(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo");
    char *context = context_of(&r), name[LAYOUT_NAME], begun[4096];
    Point full = committed(&r, context, 1700000000, NULL, 5), incr = committed(&r, context, 1700000060, &full, 9);
    RepoScan s;
    char *record = repo_path_record(&r, context, full.stem, &err);
    assert_ok(layout_name(LAYOUT_DELETED, full.stem, NULL, name, &err), &err);
    (void)snprintf(begun, sizeof begun, "%s/%s/%s", r.path, context, name);
    assert_int_equal(rename(record, begun), 0);
    unsigned before = point_count_files(&r, context, full.stem);
    assert_ok(repo_scan(&r, &s, &err), &err);
    assert_true(has_problem(&s, "its deletion was begun"));
    assert_int_equal(s.orphans_len, 0);
    repo_scan_clear(&s);
    assert_ok(repo_recover(&r, NULL, NULL, &s, &err), &err);
    assert_int_equal(point_count_files(&r, context, full.stem), before);
    assert_true(has_problem(&s, "its deletion was begun"));
    repo_scan_clear(&s);
    assert_int_equal(rename(begun, record), 0);
    assert_ok(repo_scan(&r, &s, &err), &err);
    assert_int_equal(s.problems_len, 0);
    point_check(&r, &s, &incr);
    repo_scan_clear(&s);
    free(record);
    point_clear(&full);
    point_clear(&incr);
    free(context);
    repo_clear(&r);
}

// What is no file, or none of that length, where a listed point's file was.
static void check_sees_other_files(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo");
    char *context = context_of(&r), aside[4096];
    Point p = committed(&r, context, 1700000000, NULL, 5);
    RepoScan s;
    const RecordDisk *d = &p.rec.disks[1];
    char *image = point_file(&r, context, 1, d->image);
    (void)snprintf(aside, sizeof aside, "%s/aside", (const char *)*state);
    assert_int_equal(truncate(image, (off_t)d->image_bytes + 512), 0);
    assert_fails(repo_check_layer(&r, &p.rec, d, REPO_CHECK_FILES, &err), &err, ERR_DAMAGED);
    assert_int_equal(truncate(image, (off_t)d->image_bytes), 0);
    assert_ok(repo_check_layer(&r, &p.rec, d, REPO_CHECK_FILES, &err), &err);
    // A link is not followed: what it leads to is not what was synced.
    assert_int_equal(rename(image, aside), 0);
    assert_int_equal(symlink(aside, image), 0);
    assert_fails(repo_check_layer(&r, &p.rec, d, REPO_CHECK_FILES, &err), &err, ERR_DAMAGED);
    assert_ok(repo_scan(&r, &s, &err), &err);
    assert_int_equal(s.problems_len, 1);
    assert_true(has_problem(&s, "not a regular file"));
    repo_scan_clear(&s);
    // A context that is a link: told, and nothing behind it is touched.
    assert_int_equal(mkdir(unit_path(state, "outside"), 0700), 0);
    put(unit_path(state, "outside/backup-a-1.json.partial-ab"), "mine");
    assert_int_equal(symlink(unit_path(state, "outside"), unit_path(state, "repo/ctx-link-20231114221320")), 0);
    assert_ok(repo_recover(&r, NULL, NULL, &s, &err), &err);
    assert_int_equal(s.len, 1);
    assert_true(has_problem(&s, "ctx-link-20231114221320"));
    assert_true(file_exists(unit_path(state, "outside/backup-a-1.json.partial-ab")));
    repo_scan_clear(&s);
    free(image);
    point_clear(&p);
    free(context);
    repo_clear(&r);
}

// Any flipped byte of .hashes, and any of the image outside its data, is seen by the check of the layer.
static void check_sees_flips(void **state)
{
    Err err = ERR_INIT;
    Repo r = create(state, "repo");
    char *context = context_of(&r);
    Point p = committed(&r, context, 1700000000, NULL, 5);
    UnitRandom random = unit_random();
    const RecordDisk *d = &p.rec.disks[1];
    char *files[] = {point_file(&r, context, 1, d->image), point_file(&r, context, 1, d->hashes)};
    for (int f = 0; f < 2; f++) {
        int fd = open(files[f], O_RDWR);
        assert_true(fd >= 0);
        struct stat st;
        assert_int_equal(fstat(fd, &st), 0);
        for (int i = 0; i < 300; i++) {
            uint64_t at = i < 100 ? (uint64_t)i : unit_random_below(&random, (uint64_t)st.st_size);
            uint8_t was, now;
            assert_int_equal(pread(fd, &was, 1, (off_t)at), 1);
            now = was ^ (uint8_t)(1u << unit_random_below(&random, 8));
            assert_int_equal(pwrite(fd, &now, 1, (off_t)at), 1);
            bool ok = repo_check_layer(&r, &p.rec, d, REPO_CHECK_FILES, &err);
            // The one data cluster of this disk; the reader's leaves watch over that.
            bool in_data = false;
            if (f == 0 && ok) {
                Reader *reader;
                ReaderLayer layer = {.image = files[0], .hashes = files[1]};
                uint8_t *buf = malloc(d->size);
                assert_ok(reader_open(&layer, 1, &r.geo, &reader, &err), &err);
                assert_fails(reader_read(reader, buf, 0, (uint32_t)d->size, &err), &err, ERR_DAMAGED);
                in_data = true;
                reader_free(reader);
                free(buf);
            }
            if (ok && !in_data)
                fail_msg("file %d: a flip at %llu went unseen", f, (unsigned long long)at);
            if (!ok)
                assert_int_equal(err.code, ERR_DAMAGED);
            err_clear(&err);
            assert_int_equal(pwrite(fd, &was, 1, (off_t)at), 1);
        }
        (void)close(fd);
        free(files[f]);
    }
    assert_ok(repo_check_layer(&r, &p.rec, d, REPO_CHECK_FILES, &err), &err);
    point_clear(&p);
    free(context);
    repo_clear(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_folder(create_and_open),
        in_folder(create_refuses),
        in_folder(is_inside),
        in_folder(unmounted_share),
        in_folder(contexts),
        in_folder(commit_scan_delete),
        in_folder(records_out_of_place),
        in_folder(commit_refuses),
        in_folder(recover_keeps),
        in_folder(scan_tells),
        in_folder(chain_refuses),
        in_folder(check_sees_flips),
        in_folder(check_sees_other_files),
        in_folder(a_deletion_of_what_is_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
