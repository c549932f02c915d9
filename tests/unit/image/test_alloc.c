// The n-th allocation fails, for every n, in what engine, repository, reader and codecs do: ERR_NO_MEMORY, nothing
// lost, and no point that is listed and not whole.
#include "alloc.h"
#include "point.h"

#include "codec/engine.h"
#include "codec/work.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define in_folder(test) cmocka_unit_test_setup_teardown(test, unit_folder_setup, unit_folder_teardown)
#define UUID "0b0c4a4e-7d5f-4a57-9d6e-0a3f5d5f2a10"

// ---- a repository with a full, and an increment on its way

typedef struct Stage {
    void **state;
    unsigned tries;
    Repo repo;
    char *context;
    Point full, incr;
    bool commit; // the increment is made a point at once
} Stage;

static void stage_open(void *ctx)
{
    Stage *s = ctx;
    Err err = ERR_INIT;
    char name[32];
    (void)snprintf(name, sizeof name, "repo-%u", s->tries++);
    assert_ok(repo_create(unit_path(s->state, name), 65536, HASH_XXH3_128, &s->repo, &err), &err);
    assert_ok(repo_context(&s->repo, NULL, "web", POINT_VM, INT64_C(1700000000000000), &s->context, &err), &err);
    s->full = point_make(&s->repo, s->context, 1700000000, NULL, 5, "f0");
    assert_ok(repo_commit(&s->repo, &s->full.rec, s->full.stem, s->full.attempt, &err), &err);
    s->incr = point_make(&s->repo, s->context, 1700000060, &s->full, 9, "a0");
    if (s->commit)
        assert_ok(repo_commit(&s->repo, &s->incr.rec, s->incr.stem, s->incr.attempt, &err), &err);
}

static void stage_close(Stage *s)
{
    Err err = ERR_INIT;
    assert_ok(file_remove_tree(s->repo.path, &err), &err);
    point_clear(&s->full);
    point_clear(&s->incr);
    free(s->context);
    repo_clear(&s->repo);
}

static bool on_record(const Stage *s)
{
    Err err = ERR_INIT;
    cleanup_free char *path = repo_path_record(&s->repo, s->context, s->incr.stem, &err);
    assert_non_null(path);
    return file_exists(path);
}

// After a recovery: the full as ever, the increment whole where its record stands, else without a trace.
static void settled(Stage *s)
{
    Err err = ERR_INIT;
    RepoScan scan;
    bool listed = on_record(s);
    assert_ok(repo_recover(&s->repo, NULL, NULL, &scan, &err), &err);
    point_check_settled(&s->repo, &scan, s->context, &s->full, &s->incr, listed);
    repo_scan_clear(&scan);
    stage_close(s);
}

static bool commit(void *ctx, Err *err)
{
    Stage *s = ctx;
    return repo_commit(&s->repo, &s->incr.rec, s->incr.stem, s->incr.attempt, err);
}

static void committed(void *ctx, bool ok)
{
    assert_true(!ok || on_record(ctx));
    settled(ctx);
}

static bool abort_attempt(void *ctx, Err *err)
{
    Stage *s = ctx;
    return repo_abort(&s->repo, s->context, s->incr.stem, s->incr.attempt, err);
}

static void aborted(void *ctx, bool ok)
{
    Stage *s = ctx;
    assert_true(!ok || point_count_files(&s->repo, s->context, s->incr.stem) == 0);
    settled(ctx);
}

static bool delete_point(void *ctx, Err *err)
{
    Stage *s = ctx;
    return repo_delete(&s->repo, &s->incr.rec, s->incr.stem, err);
}

static void deleted(void *ctx, bool ok)
{
    assert_true(!ok || !on_record(ctx));
    settled(ctx);
}

// A scan that says it is done has seen everything.
static bool scan(void *ctx, Err *err)
{
    Stage *s = ctx;
    RepoScan found;
    if (!repo_scan(&s->repo, &found, err))
        return false;
    assert_int_equal(found.len, s->commit ? 2 : 1);
    assert_int_equal(found.problems_len, 0);
    assert_int_equal(found.orphans_len, s->commit ? 0 : 4);
    repo_scan_clear(&found);
    return true;
}

static bool recover(void *ctx, Err *err)
{
    Stage *s = ctx;
    RepoScan found;
    if (!repo_recover(&s->repo, NULL, NULL, &found, err))
        return false;
    assert_int_equal(found.len, 1);
    assert_int_equal(found.problems_len + found.orphans_len, 0);
    repo_scan_clear(&found);
    return true;
}

static bool open_repository(void *ctx, Err *err)
{
    Stage *s = ctx;
    Repo r;
    char *name = NULL, *folder = NULL;
    unsigned no = 0;
    bool inside = false;
    if (!repo_open(s->repo.path, s->repo.info.uuid, &r, err))
        return false;
    bool ok = repo_context(&r, s->context, "web", POINT_VM, 1, &name, err) &&
        repo_next_disk_no(&r, name, 0, &no, err) && repo_disk_folder(&r, name, no, &folder, err) &&
        repo_is_inside(folder, &inside, err);
    if (ok)
        assert_true(inside && no == POINT_DISKS && str_eq(name, s->context));
    free(name);
    free(folder);
    repo_clear(&r);
    return ok;
}

static void closed(void *ctx, bool ok)
{
    (void)ok;
    settled(ctx);
}

static void repository(void **state)
{
    Stage s = {.state = state};
    // what an attempt leaves once its point exists is a recovery's to remove
    alloc_every(&(AllocStory){"commit", stage_open, commit, committed, .optional = 30}, &s);
    alloc_every(&(AllocStory){"abort", stage_open, abort_attempt, aborted, 10}, &s);
    alloc_every(&(AllocStory){"scan with an attempt", stage_open, scan, closed, 10}, &s);
    alloc_every(&(AllocStory){"recover", stage_open, recover, closed, 20}, &s);
    alloc_every(&(AllocStory){"open", stage_open, open_repository, closed, 10}, &s);
    s.commit = true;
    alloc_every(&(AllocStory){"scan", stage_open, scan, closed, 10}, &s);
    alloc_every(&(AllocStory){"delete", stage_open, delete_point, deleted, 10}, &s);
}

static bool create(void *ctx, Err *err)
{
    Stage *s = ctx;
    Repo r;
    char *name = NULL;
    if (!repo_create(unit_path(s->state, "new"), 65536, HASH_XXH3_128, &r, err))
        return false;
    bool ok = repo_context(&r, NULL, "web", POINT_VM, INT64_C(1700000000000000), &name, err);
    free(name);
    repo_clear(&r);
    return ok;
}

// What is there is a repository, or nothing that keeps one from being made.
static void created(void *ctx, bool ok)
{
    Stage *s = ctx;
    Err err = ERR_INIT;
    Repo r;
    const char *path = unit_path(s->state, "new");
    char info[600];
    (void)snprintf(info, sizeof info, "%s/repository.json", path);
    assert_true(!ok || file_exists(info));
    if (file_exists(info))
        assert_ok(repo_open(path, NULL, &r, &err), &err);
    else
        assert_ok(repo_create(path, 65536, HASH_XXH3_128, &r, &err), &err);
    repo_clear(&r);
    assert_ok(file_remove_tree(path, &err), &err);
}

static void new_repository(void **state)
{
    Stage s = {.state = state};
    alloc_every(&(AllocStory){"create", NULL, create, created, 10}, &s);
}

// ---- the reader

typedef struct Reading {
    Stage stage;
    RepoScan scan;
    uint8_t *want, *got;
} Reading;

static bool read_all(void *ctx, Err *err)
{
    Reading *r = ctx;
    RepoChain chain = {0};
    Reader *reader = NULL;
    ExtentVec extents = {0};
    const Record *rec = &r->stage.incr.rec;
    const Repo *repo = &r->stage.repo;
    memset(r->got, 0xee, point_sizes[0]);
    bool ok = repo_check_layer(repo, rec, &rec->disks[0], REPO_CHECK_FILES, err) &&
        repo_chain(repo, rec, rec->disks[0].disk_key, point_find, &r->scan, &chain, err) &&
        reader_open(chain.layers, chain.len, &repo->geo, &reader, err) &&
        reader_extents(reader, 0, point_sizes[0], &extents, err) &&
        reader_read(reader, r->got, 0, (uint32_t)point_sizes[0], err);
    reader_free(reader);
    repo_chain_clear(&chain);
    extent_vec_clear(&extents);
    return ok;
}

static void was_read(void *ctx, bool ok)
{
    Reading *r = ctx;
    if (ok)
        assert_memory_equal(r->got, r->want, point_sizes[0]);
}

static void reader(void **state)
{
    Err err = ERR_INIT;
    Reading r = {.stage = {.state = state, .commit = true}, .got = malloc(point_sizes[0])};
    stage_open(&r.stage);
    assert_ok(repo_scan(&r.stage.repo, &r.scan, &err), &err);
    r.want = point_bytes(0, r.stage.incr.fill);
    assert_non_null(r.got);
    alloc_every(&(AllocStory){"read", NULL, read_all, was_read, 8}, &r);
    repo_scan_clear(&r.scan);
    stage_close(&r.stage);
    free(r.want);
    free(r.got);
}

// ---- the engine

#define DISK 300000u

typedef struct Engine {
    char image[600], hashes[600], parent_image[600], parent_hashes[600];
    HashGeometry geo;
    HashSpec hash;
    uint8_t *bytes;
    bool parent;
    unsigned compression;
} Engine;

static bool engine_write(const Engine *e, const char *image, const char *hashes, bool parent, Err *err)
{
    ChainHashes *chain = NULL;
    Writer *w = NULL;
    HashesSummary summary;
    Hash digest;
    ChainLayerPath layer = {e->parent_image, e->parent_hashes};
    if (parent && !chain_hashes_open(&layer, 1, &e->geo, &chain, err))
        return false;
    WriterSpec spec = {.image_path = image,
                       .hashes_path = hashes,
                       .backing_name = parent ? "parent" : NULL,
                       .size = DISK,
                       .cluster_bits = e->compression ? 14 : 12,
                       .hash = e->hash,
                       .mode = parent ? DISK_COMPARE : DISK_FULL,
                       .parent = chain,
                       .compression = e->compression,
                       .cache_groups = 1};
    bool ok = writer_open(&spec, &w, err) && writer_write(w, e->bytes, 0, 196608, err) && writer_flush(w, err) &&
        writer_write(w, e->bytes + 196608, 196608, 65536, err) && writer_zero(w, 262144, DISK - 262144, err) &&
        writer_seal(w, NULL, &summary, &digest, err);
    writer_free(w);
    chain_hashes_free(chain);
    return ok;
}

static bool engine_story(void *ctx, Err *err)
{
    const Engine *e = ctx;
    return engine_write(e, e->image, e->hashes, e->parent, err);
}

// Sealed or not an image.
static void engine_done(void *ctx, bool ok)
{
    const Engine *e = ctx;
    char head[4] = {0};
    int fd = open(e->image, O_RDONLY | O_CLOEXEC);
    bool sealed = fd >= 0 && pread(fd, head, 4, 0) == 4 && head[0] == 'Q';
    assert_int_equal(sealed, ok);
    if (fd >= 0)
        assert_int_equal(close(fd), 0);
    assert_true(unlink(e->image) == 0 || errno == ENOENT);
    assert_true(unlink(e->hashes) == 0 || errno == ENOENT);
}

static void engine(void **state)
{
    Err err = ERR_INIT;
    for (unsigned compression = 0; compression < 2; compression++) {
        Engine e = {.compression = compression, .hash = {.algorithm = HASH_SHA256, .seed = 7}, .bytes = malloc(DISK)};
        (void)snprintf(e.image, sizeof e.image, "%s", unit_path(state, "image"));
        (void)snprintf(e.hashes, sizeof e.hashes, "%s", unit_path(state, "hashes"));
        (void)snprintf(e.parent_image, sizeof e.parent_image, "%s", unit_path(state, "parent"));
        (void)snprintf(e.parent_hashes, sizeof e.parent_hashes, "%s", unit_path(state, "parent.hashes"));
        assert_ok(hash_geometry_init(&e.geo, &e.hash, compression ? 16384 : 4096, &err), &err);
        assert_non_null(e.bytes);
        for (uint32_t i = 0; i < DISK; i++)
            e.bytes[i] = (uint8_t)(i / 4096);
        alloc_every(&(AllocStory){"a full", NULL, engine_story, engine_done, compression} /* is stored plain */, &e);
        assert_ok(engine_write(&e, e.parent_image, e.parent_hashes, false, &err), &err);
        e.parent = true;
        memset(e.bytes + 8192, 0xaa, 20000);
        alloc_every(&(AllocStory){"an increment", NULL, engine_story, engine_done, compression}, &e);
        assert_int_equal(unlink(e.parent_image), 0);
        assert_int_equal(unlink(e.parent_hashes), 0);
        free(e.bytes);
    }
}

// ---- codecs: decoded and encoded again

#define STORY(T, f)                                      \
    static bool f##_story(void *ctx, Err *err)           \
    {                                                    \
        const char *text_ = ctx;                         \
        T v_ = {0};                                      \
        char *again_ = NULL;                             \
        if (!f##_decode(text_, strlen(text_), &v_, err)) \
            return false;                                \
        bool ok_ = f##_encode(&v_, &again_, err);        \
        if (ok_)                                         \
            assert_string_equal(again_, text_);          \
        free(again_);                                    \
        f##_clear(&v_);                                  \
        return ok_;                                      \
    }

STORY(WorkOrder, work_order)
STORY(Announce, announce)
STORY(AnnounceAnswer, announce_answer)
STORY(WorkProgress, work_progress)
STORY(WorkFailure, work_failure)
STORY(Completion, completion)
STORY(ChangeIdReport, changeid_report)

static void codecs(void **state)
{
    (void)state;
    static char order[] =
        "{\"backup_type\":\"incremental\",\"cluster_size\":65536,\"excluded_disks\":[\"d2\"],"
        "\"interrupted_backup_id\":\"backup-a-9\",\"interrupted_disks\":[{\"disk_key\":\"d1\",\"size\":512,"
        "\"token\":\"t\"}],\"job_id\":\"backup-a-1\","
        "\"lease_seconds\":30,\"parent_backup_id\":\"backup-a-0\",\"parent_disks\":[{\"backing_identity\":\"\","
        "\"change_id\":\"u/1\",\"disk_id\":2000,\"disk_key\":\"d1\",\"size\":512,\"tracking\":true}],"
        "\"repository_uuid\":\"" UUID "\",\"source\":{\"type\":\"file\"},\"vm_id\":\"" UUID "\",\"vm_name\":\"a\"}";
    static char said[] =
        "{\"consistency\":\"crash\",\"consistency_detail\":null,\"disks\":[{\"allocated_bytes\":8,"
        "\"backing_identity\":\"b\",\"base_change_id\":null,\"change_id\":\"u/2\",\"disk_id\":2000,\"disk_key\":\"d1\","
        "\"estimated_bytes\":7,\"label\":\"\",\"lost\":\"bitmap is gone\","
        "\"resumes\":true,\"size\":512,\"token\":\"t\",\"tracking\":\"bitmap\"}],"
        "\"left_out\":[\"d2\"]}";
    static char answer[] = "{\"disks\":[{\"disk_id\":2000,\"disk_key\":\"d1\",\"disk_no\":0,\"mode\":\"compare\","
                           "\"reason\":\"tracking_lost\",\"resume\":true,\"uri\":\"nbd+unix:///x?socket=/s\"}]}";
    static char progress[] =
        "{\"disks\":[{\"changed_bytes\":1,\"disk_id\":2000,\"done_bytes\":2,\"kept_bytes\":5,\"size\":512,"
        "\"transferred_bytes\":3,\"zero_bytes\":4}],\"phase\":\"copying\"}";
    static char failure[] = "{\"cancelled\":true,\"details\":\"why\",\"error\":\"cancelled\"}";
    static char done[] = "{\"bytes_transferred\":9,\"change_id\":\"u/2\",\"disks\":[{\"bytes_transferred\":9,"
                         "\"change_id\":\"u/2\",\"covered_bytes\":512,\"digest\":\"00000000000000ff\",\"disk_id\":2000,"
                         "\"extents\":1,\"tracking\":\"none\"}]}";
    static char changeid[] = "{\"change_id\":\"u/2\",\"disk_id\":2000}";
    alloc_every(&(AllocStory){"work order", NULL, work_order_story, NULL, 0}, order);
    alloc_every(&(AllocStory){"announcement", NULL, announce_story, NULL, 0}, said);
    alloc_every(&(AllocStory){"announcement's answer", NULL, announce_answer_story, NULL, 0}, answer);
    alloc_every(&(AllocStory){"progress", NULL, work_progress_story, NULL, 0}, progress);
    alloc_every(&(AllocStory){"failure", NULL, work_failure_story, NULL, 2}, failure);
    alloc_every(&(AllocStory){"completion", NULL, completion_story, NULL, 0}, done);
    alloc_every(&(AllocStory){"change ID", NULL, changeid_report_story, NULL, 0}, changeid);
}

static bool engine_lines(void *ctx, Err *err)
{
    (void)ctx;
    EngineLayer layers[] = {{"/r/b", "/r/h", "a"}, {"/r/a", "/r/g", NULL}};
    EngineConfig config = {.role = ENGINE_INGEST,
                           .export_name = "d",
                           .control = "/s",
                           .cluster_size = 65536,
                           .hash_algorithm = "xxh3-128",
                           .hash_seed = 1,
                           .image = "/r/i",
                           .hashes = "/r/j",
                           .backing_name = "b",
                           .size = 512,
                           .mode = DISK_COMPARE,
                           .layers = layers,
                           .layers_len = 2};
    EngineConfig back = {0};
    EngineRequest request = {.op = ENGINE_SEAL, .have_expect = true, .extents = 1, .bytes = 2, .digest = 3};
    EngineAnswer answer = {.ok = true, .connections = 1}, answered;
    char *text = NULL, *line = NULL, *reply = NULL;
    bool ok = engine_config_encode(&config, &text, err) && engine_config_decode(text, strlen(text), &back, err) &&
        engine_request_encode(&request, &line, err) && engine_request_decode(line, strlen(line), &request, err) &&
        engine_answer_encode(&answer, &reply, err) && engine_answer_decode(reply, strlen(reply), &answered, err);
    engine_config_clear(&back);
    free(text);
    free(line);
    free(reply);
    return ok;
}

static void engine_codecs(void **state)
{
    (void)state;
    alloc_every(&(AllocStory){"engine's lines", NULL, engine_lines, NULL, 0}, NULL);
}

int main(void)
{
    // thousands of repositories: in memory, where there is a place
    assert_true(access("/dev/shm", W_OK) != 0 || setenv("TMPDIR", "/dev/shm", 1) == 0);
    const struct CMUnitTest tests[] = {
        in_folder(repository), in_folder(new_repository), in_folder(reader),
        in_folder(engine),     cmocka_unit_test(codecs),  cmocka_unit_test(engine_codecs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
