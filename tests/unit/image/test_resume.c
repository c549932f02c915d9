// Interrupted images that are gone on from: what was cut, at whatever moment and with whatever lost, becomes the disk
// of the run that finished it. docs/internals/resume.md.
#include "model.h"

#include "image/journal.h"

#include <sys/stat.h>

static char journal[600], old_image[600], old_journal[600];

static uint64_t clusters(const Model *m)
{
    uint64_t size = m->points[m->len].size;
    return size / m->cluster_size + (size % m->cluster_size != 0);
}

static uint64_t length_of(const Model *m, uint64_t first, uint64_t n)
{
    return MIN((first + n) * m->cluster_size, m->points[m->len].size) - first * m->cluster_size;
}

// What the guest writes: some clusters get new data, or zeros. `dirty` has a byte for each cluster.
static void guest_writes(Model *m, uint8_t *bytes, uint8_t *dirty)
{
    for (unsigned n = (unsigned)unit_random_below(&m->random, 12); n > 0; n--) {
        uint64_t c = unit_random_below(&m->random, clusters(m)), length = length_of(m, c, 1);
        uint8_t *p = bytes + c * m->cluster_size;
        if (unit_random_below(&m->random, 3) == 0)
            memset(p, 0, length);
        else
            model_fill(m, p, length);
        dirty[c] = 1;
    }
}

static bool is_held(const ExtentVec *held, uint64_t offset)
{
    for (size_t i = 0; i < held->len; i++)
        if (offset >= held->items[i].offset && offset < held->items[i].offset + held->items[i].length)
            return true;
    return false;
}

typedef struct Run {
    DiskMode mode;
    const uint8_t *dirty; // tracked: what changed since the parent
    const uint8_t *since; // what changed since the interrupted run; NULL: it is none's heir
    uint64_t cut;         // clusters after which it is interrupted
    uint64_t confirmed;   // how many were not sent again
} Run;

// Has the image this cluster of the disk by its leaf? Zeros are always sent.
static bool shows(Model *m, Writer *w, uint64_t c)
{
    Err err = ERR_INIT;
    uint64_t n = length_of(m, c, 1), per_group = m->cluster_size / 8;
    const uint8_t *bytes = m->points[m->len].bytes + c * m->cluster_size;
    cleanup_free uint8_t *padded = calloc(1, m->cluster_size);
    cleanup_free Hash *leaves = calloc(per_group, sizeof(Hash));
    Hash leaf;
    assert_true(padded && leaves);
    if (hash_is_zero(bytes, n))
        return false;
    memcpy(padded, bytes, n);
    hash_bytes(&m->hash, padded, m->cluster_size, &leaf);
    assert_ok(writer_leaves(w, c / per_group, leaves, &err), &err);
    return hash_equal(&leaf, &leaves[c % per_group]);
}

// As the client does it: ascending, whole clusters. False: it was cut.
static bool run(Model *m, Writer *w, Run *r)
{
    Err err = ERR_INIT;
    cleanup(extent_vec_clear) ExtentVec held = {0};
    const uint8_t *bytes = m->points[m->len].bytes;
    if (r->since)
        assert_ok(writer_held(w, 0, m->points[m->len].size, &held, &err), &err);
    for (uint64_t c = 0; c < clusters(m); c++) {
        uint64_t at = c * m->cluster_size, n = length_of(m, c, 1);
        bool there = is_held(&held, at);
        if (r->cut-- == 0)
            return false;
        if (unit_random_below(&m->random, 100) == 0)
            assert_ok(writer_checkpoint(w, &err), &err);
        if (r->mode == DISK_TRACKED && !r->dirty[c] && !there)
            continue;
        if (r->mode == DISK_FULL && !there && n > 1 && unit_random_below(&m->random, 20) == 0)
            model_write(m, w, at, (uint32_t)(n / 2));              // which has a host cluster, and is not whole
        if (r->mode == DISK_COMPARE && !there && shows(m, w, c)) { // what the client finds the same is not sent
            assert_ok(writer_same(w, at, n, &err), &err);
            memset(m->arrived + at, 1, n);
        } else if (there && !r->since[c]) {
            assert_ok(writer_same(w, at, n, &err), &err);
            memset(m->arrived + at, 1, n);
            r->confirmed++;
        } else if (hash_is_zero(bytes + at, n)) {
            model_zero(m, w, at, n);
        } else {
            model_write(m, w, at, (uint32_t)n);
        }
    }
    return true;
}

// The journal ends anywhere: then there is less to go on from. And behind what it says of the image there may be
// anything.
static void lose_some(Model *m)
{
    struct stat st;
    assert_int_equal(stat(old_journal, &st), 0);
    if (unit_random_below(&m->random, 2) == 0) {
        uint64_t keep = 64 + unit_random_below(&m->random, (uint64_t)st.st_size - 63);
        assert_int_equal(truncate(old_journal, (off_t)keep), 0);
    }
    int fd = open(old_image, O_WRONLY | O_APPEND);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "garbage", 7), 7);
    assert_int_equal(close(fd), 0);
}

// Cut: the process is gone, its files are what they were.
static bool interrupt(Model *m, Writer *w, bool ordered)
{
    Err err = ERR_INIT;
    ModelPoint *p = &m->points[m->len];
    if (ordered)
        assert_ok(writer_checkpoint(w, &err), &err);
    writer_free(w);
    chain_hashes_free(m->parent);
    free(m->arrived);
    (void)unlink(old_image);
    (void)unlink(old_journal);
    assert_int_equal(rename(p->image, old_image), 0);
    assert_int_equal(rename(journal, old_journal), 0);
    struct stat st;
    if (stat(old_journal, &st) != 0 || st.st_size <= 64)
        return false; // no checkpoint yet
    lose_some(m);
    return true;
}

// The next run's disk: the last one's, and what was written since.
static Writer *begin(Model *m, DiskMode mode, uint64_t size, const uint8_t *bytes, bool resume)
{
    m->journal = journal;
    m->resume_image = resume ? old_image : NULL;
    m->resume_journal = resume ? old_journal : NULL;
    Writer *w = model_begin(m, mode, size);
    memcpy(m->points[m->len].bytes, bytes, size);
    return w;
}

static bool count_records(void *ctx, const JournalItem *items, size_t n, uint64_t next, Err *err)
{
    (void)ctx, (void)items, (void)n, (void)next, (void)err;
    return true;
}

static bool can_go_on(const Model *m, DiskMode mode, uint64_t size)
{
    Err err = ERR_INIT;
    uint64_t records = 0;
    JournalSpec spec = {.hash = m->hash, .size = size, .cluster_size = m->cluster_size, .mode = mode};
    return journal_read(old_journal, &spec, count_records, NULL, &records, &err) && records > 0;
}

// One point of a chain, by as many runs as it takes. Returns clusters that did not have to be sent again.
static uint64_t make_point(Model *m, DiskMode mode, uint64_t size)
{
    ModelPoint *before = m->len > 0 ? &m->points[m->len - 1] : NULL;
    uint64_t n = size / m->cluster_size + 1, kept = 0;
    uint8_t *bytes = calloc(1, size), *dirty = calloc(1, n), *since = calloc(1, n);
    assert_true(bytes && dirty && since);
    m->points[m->len].size = size;
    if (before)
        memcpy(bytes, before->bytes, MIN(size, before->size));
    bool resume = false;
    for (unsigned tries = 0;; tries++) {
        guest_writes(m, bytes, since);
        for (uint64_t c = 0; c < n; c++)
            dirty[c] |= since[c];
        Writer *w = begin(m, mode, size, bytes, resume);
        Run r = {.mode = mode,
                 .dirty = dirty,
                 .since = resume ? since : NULL,
                 .cut = tries < 3 ? unit_random_below(&m->random, n + n / 2) : UINT64_MAX};
        bool whole = run(m, w, &r);
        kept += r.confirmed;
        if (whole) {
            model_end(m, w);
            assert_false(file_exists(journal)); // it went with the seal
            break;
        }
        resume = interrupt(m, w, unit_random_below(&m->random, 2) == 0) && can_go_on(m, mode, size);
        free(m->points[m->len].bytes);
        if (!resume)
            (void)unlink(old_image);
        memset(since, 0, n); // from the instant of the run that was cut
    }
    assert_false(file_exists(old_journal) && resume);
    free(bytes);
    free(dirty);
    free(since);
    return kept;
}

static void set_paths(const Model *m)
{
    (void)snprintf(journal, sizeof journal, "%s/journal", m->folder);
    (void)snprintf(old_image, sizeof old_image, "%s/old.qcow2", m->folder);
    (void)snprintf(old_journal, sizeof old_journal, "%s/old.journal", m->folder);
}

static void random_cuts(void **state)
{
    static const struct {
        uint32_t bits;
        uint64_t size;
        unsigned cache, compression;
        HashAlgorithm algorithm;
    } cases[] = {{12, 400000, 0, 0, HASH_XXH3_128},
                 {12, (2u << 20) + 1, 1, 0, HASH_SHA256},
                 {16, (4u << 20) + 777, 0, 0, HASH_XXH3_128},
                 {14, (2u << 20) + 512, 1, 3, HASH_XXH3_128}};
    uint64_t kept = 0;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        Model m = model_new(state, cases[i].bits, cases[i].algorithm);
        m.cache_groups = cases[i].cache;
        m.compression = cases[i].compression;
        m.checkpoint_bytes = 100000 + unit_random_below(&m.random, 300000);
        set_paths(&m);
        kept += make_point(&m, DISK_FULL, cases[i].size);
        kept += make_point(&m, DISK_TRACKED, cases[i].size);
        kept += make_point(&m, DISK_COMPARE, cases[i].size);
        kept += make_point(&m, DISK_COMPARE, cases[i].size + 5000); // a larger disk
        model_clear(&m);
    }
    assert_in_range(kept, 1, UINT64_MAX); // or nothing was gone on from
}

// ---- what must be refused

static Writer *interrupted_full(Model *m, uint64_t size)
{
    uint8_t *bytes = calloc(1, size);
    model_fill(m, bytes, size);
    m->points[m->len].size = size;
    Writer *w = begin(m, DISK_FULL, size, bytes, false);
    model_write(m, w, 0, (uint32_t)(size / 2 / m->cluster_size * m->cluster_size));
    Err err = ERR_INIT;
    assert_ok(writer_checkpoint(w, &err), &err);
    writer_free(w);
    free(m->arrived);
    free(m->points[m->len].bytes); // the second run has its own
    assert_int_equal(rename(m->points[0].image, old_image), 0);
    assert_int_equal(rename(journal, old_journal), 0);
    free(bytes);
    m->resume_image = old_image;
    m->resume_journal = old_journal;
    w = model_begin(m, DISK_FULL, size);
    return w;
}

// The process is gone, after a checkpoint, and another one begins with what it left.
static Writer *begin_again(Model *m, Writer *w, const uint8_t *bytes)
{
    Err err = ERR_INIT;
    ModelPoint *p = &m->points[m->len];
    uint64_t size = p->size;
    assert_ok(writer_checkpoint(w, &err), &err);
    writer_free(w);
    chain_hashes_free(m->parent);
    free(m->arrived);
    assert_int_equal(rename(p->image, old_image), 0);
    assert_int_equal(rename(journal, old_journal), 0);
    free(p->bytes);
    return begin(m, DISK_COMPARE, size, bytes, true);
}

// A comparison that was cut, and then cut again before anything of it was confirmed: what the first run left is read by
// the third, which finds it the same, and was refused for ever.
static void left_by_the_run_before(void **state)
{
    Err err = ERR_INIT;
    uint64_t size = 20 * 65536;
    Model m = model_new(state, 16, HASH_XXH3_128);
    set_paths(&m);
    m.journal = journal;
    (void)make_point(&m, DISK_FULL, size);
    uint8_t *bytes = calloc(1, size);
    assert_non_null(bytes);
    memset(bytes, 0x5a, size);
    m.points[m.len].size = size;
    Writer *w = begin(&m, DISK_COMPARE, size, bytes, false);
    model_write(&m, w, 0, 10 * 65536);
    w = begin_again(&m, w, bytes);
    w = begin_again(&m, w, bytes);
    assert_ok(writer_same(w, 0, 10 * 65536, &err), &err);
    assert_fails(writer_same(w, 0, 65536, &err), &err, ERR_INVALID); // it is this run's by now
    memset(m.arrived, 1, 10 * 65536);
    model_write(&m, w, 10 * 65536, 10 * 65536);
    model_end(&m, w);
    free(bytes);
    model_clear(&m);
}

// Zeros over what the parent has: marks without a host cluster, which the second run confirms like all the rest.
static void zero_marks(void **state)
{
    Err err = ERR_INIT;
    uint64_t size = 20 * 65536;
    Model m = model_new(state, 16, HASH_XXH3_128);
    uint8_t *bytes = calloc(1, size);
    assert_non_null(bytes);
    set_paths(&m);
    Writer *w = model_begin(&m, DISK_FULL, size);
    model_fill(&m, m.points[m.len].bytes, size);
    model_cover(&m, w);
    model_end(&m, w);
    memset(bytes, 0x5a, size);
    memset(bytes + 4 * 65536, 0, 6 * 65536);
    m.points[m.len].size = size;
    w = begin(&m, DISK_COMPARE, size, bytes, false);
    model_write(&m, w, 0, 4 * 65536);
    model_zero(&m, w, 4 * 65536, 2 * 65536); // two requests, one run of marks
    model_zero(&m, w, 6 * 65536, 4 * 65536);
    w = begin_again(&m, w, bytes);
    assert_ok(writer_same(w, 0, 10 * 65536, &err), &err);
    assert_fails(writer_same(w, 4 * 65536, 65536, &err), &err, ERR_INVALID); // it is this run's by now
    memset(m.arrived, 1, 10 * 65536);
    model_write(&m, w, 10 * 65536, 10 * 65536);
    model_end(&m, w);
    assert_int_equal(m.points[1].summary.zeroed_clusters, 6);
    free(bytes);
    model_clear(&m);
}

// Bytes that were changed behind our back are met when they are confirmed, and nobody goes on from them again.
static void damaged_data(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_XXH3_128);
    set_paths(&m);
    Writer *w = interrupted_full(&m, 20 * 65536);
    uint8_t byte;
    int fd = open(m.points[0].image, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, 5 * 65536 + 17), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, 5 * 65536 + 17), 1);
    assert_int_equal(close(fd), 0);
    assert_ok(writer_same(w, 0, 4 * 65536, &err), &err); // host clusters 1 to 4
    assert_fails(writer_same(w, 4 * 65536, 2 * 65536, &err), &err, ERR_DAMAGED);
    assert_fails(writer_write(w, &byte, 0, 1, &err), &err, ERR_DAMAGED); // broken, as a whole
    assert_false(file_exists(journal));
    assert_false(file_exists(old_journal));
    model_abandon(&m, w);
}

// What nobody said anything of is not there, and is no part of the point.
static void nothing_counts_unsaid(void **state)
{
    Err err = ERR_INIT;
    HashesSummary summary;
    Hash digest;
    Model m = model_new(state, 16, HASH_XXH3_128);
    set_paths(&m);
    Writer *w = interrupted_full(&m, 20 * 65536);
    assert_true(writer_is_resumed(w));
    assert_fails(writer_seal(w, NULL, &summary, &digest, &err), &err, ERR_CONFLICT);
    assert_fails(writer_same(w, 10 * 65536, 65536, &err), &err, ERR_INVALID); // never arrived
    assert_fails(writer_same(w, 0, 100, &err), &err, ERR_INVALID);            // not a whole cluster
    assert_ok(writer_same(w, 0, 10 * 65536, &err), &err);
    assert_fails(writer_same(w, 0, 65536, &err), &err, ERR_INVALID); // it is this run's by now
    assert_fails(writer_seal(w, NULL, &summary, &digest, &err), &err, ERR_CONFLICT);
    model_abandon(&m, w);
    (void)unlink(journal);
}

// The journal of a tracked disk holds a cluster that the new run's source says nothing of.
static void a_stray_cluster(void **state)
{
    Err err = ERR_INIT;
    HashesSummary summary;
    Hash digest;
    Model m = model_new(state, 16, HASH_XXH3_128);
    uint64_t size = 8 * 65536;
    set_paths(&m);
    uint8_t *bytes = calloc(1, size);
    model_fill(&m, bytes, size);
    Writer *w = model_begin(&m, DISK_FULL, size);
    memcpy(m.points[0].bytes, bytes, size);
    model_cover(&m, w);
    model_end(&m, w);
    m.journal = journal;
    w = model_begin(&m, DISK_TRACKED, size);
    m.points[1].bytes[2 * 65536] ^= 1;
    model_write(&m, w, 2 * 65536, 65536);
    assert_ok(writer_checkpoint(w, &err), &err);
    assert_int_equal(rename(m.points[1].image, old_image), 0);
    assert_int_equal(rename(journal, old_journal), 0);
    model_abandon(&m, w);
    m.resume_image = old_image;
    m.resume_journal = old_journal;
    w = model_begin(&m, DISK_TRACKED, size);
    WriterExpect nothing = {0};
    assert_fails(writer_seal(w, &nothing, &summary, &digest, &err), &err, ERR_CONFLICT);
    assert_fails(writer_write(w, bytes, 2 * 65536 + 7, 5, &err), &err, ERR_INVALID); // into what is not this run's
    m.points[1].bytes[2 * 65536 + 5] ^= 1;
    model_write(&m, w, 2 * 65536, 65536); // in place
    model_end(&m, w);
    assert_int_equal(m.points[1].summary.stored_clusters, 1);
    free(bytes);
    model_clear(&m);
}

// A journal of another disk, mode or geometry, one that is no journal, one whose image is shorter than it says.
static void foreign_journals(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_XXH3_128);
    set_paths(&m);
    Writer *w = interrupted_full(&m, 20 * 65536);
    assert_int_equal(rename(m.points[0].image, old_image), 0);
    assert_int_equal(rename(journal, old_journal), 0);
    model_abandon(&m, w);
    WriterSpec good = {.image_path = m.points[0].image,
                       .hashes_path = m.points[0].hashes,
                       .size = 20 * 65536,
                       .cluster_bits = 16,
                       .hash = m.hash,
                       .mode = DISK_FULL,
                       .journal_path = journal,
                       .resume_image = old_image,
                       .resume_journal = old_journal},
               bad = good;
    bad.size += 512;
    assert_fails(writer_open(&bad, &w, &err), &err, ERR_CONFLICT);
    bad = good;
    bad.cluster_bits = 15;
    assert_fails(writer_open(&bad, &w, &err), &err, ERR_CONFLICT);
    bad = good;
    bad.hash.seed ^= 1;
    assert_fails(writer_open(&bad, &w, &err), &err, ERR_CONFLICT);
    bad = good;
    bad.journal_path = NULL;
    assert_fails(writer_open(&bad, &w, &err), &err, ERR_INVALID);
    bad = good;
    bad.resume_journal = old_image;
    assert_fails(writer_open(&bad, &w, &err), &err, ERR_DAMAGED);
    // a checkpoint of several records that was cut between them: host clusters that it does not name would be nobody's
    char cut[700];
    Journal *j;
    JournalSpec js = {.hash = m.hash, .size = good.size, .cluster_size = 65536, .mode = DISK_FULL};
    JournalItem far = {.first = 0, .count = 1, .kind = JOURNAL_CLUSTER, .entry = qcow2_l2_normal(5 * 65536)};
    (void)snprintf(cut, sizeof cut, "%s.cut", old_journal);
    assert_ok(journal_create(cut, &js, &j, &err), &err);
    assert_ok(journal_append(j, &far, 1, 2 * 65536, &err), &err);
    journal_free(j);
    bad = good;
    bad.resume_journal = cut;
    assert_fails(writer_open(&bad, &w, &err), &err, ERR_DAMAGED);
    assert_int_equal(unlink(cut), 0);
    struct stat st;
    assert_int_equal(stat(old_image, &st), 0);
    assert_int_equal(truncate(old_image, 65536), 0);
    assert_fails(writer_open(&good, &w, &err), &err, ERR_DAMAGED);
    assert_true(file_exists(old_image) && file_exists(old_journal)); // nothing was changed
    assert_false(file_exists(good.image_path));
    assert_int_equal(unlink(old_image), 0);
    assert_int_equal(unlink(old_journal), 0);
}

// A filesystem that allocates nothing ahead (NFS 3, tmpfs) ended the image with the last compressed data, within a host
// cluster that the journal counts: it was refused as too short, and what the run had sent was sent again.
static void compressed_without_allocation(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_XXH3_128);
    uint64_t size = 8 * 65536;
    WriterProgress progress;
    m.compression = 1;
    set_paths(&m);
    uint8_t *bytes = calloc(1, size);
    assert_non_null(bytes);
    memset(bytes, 7, size);
    m.points[0].size = size;
    Writer *w = begin(&m, DISK_FULL, size, bytes, false);
    model_write(&m, w, 0, 3 * 65536);
    assert_ok(writer_checkpoint(w, &err), &err);
    writer_progress(w, &progress);
    writer_free(w);
    free(m.arrived);
    free(m.points[0].bytes);
    assert_in_range(progress.stored_bytes, 1, 65535);
    assert_int_equal(rename(m.points[0].image, old_image), 0);
    assert_int_equal(rename(journal, old_journal), 0);
    // behind the header's cluster
    assert_int_equal(truncate(old_image, (off_t)(65536 + progress.stored_bytes)), 0);
    w = begin(&m, DISK_FULL, size, bytes, true);
    assert_ok(writer_same(w, 0, 3 * 65536, &err), &err);
    memset(m.arrived, 1, 3 * 65536);
    model_write(&m, w, 3 * 65536, 5 * 65536);
    model_end(&m, w);
    free(bytes);
    model_clear(&m);
}

// Any changed byte of a journal, or a cut anywhere, makes it shorter; never other.
static void any_damage_to_a_journal(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_SHA256);
    set_paths(&m);
    JournalSpec spec = {.hash = m.hash, .size = 100 * 65536, .cluster_size = 65536, .mode = DISK_FULL};
    JournalItem items[] = {
        {.first = 3, .count = 1, .kind = JOURNAL_CLUSTER, .entry = qcow2_l2_normal(65536), .leaf = {{1, 2, 3}}},
        {.first = 10, .count = 20, .kind = JOURNAL_NOTHING},
        {.first = 40, .count = 60, .kind = JOURNAL_ZERO}};
    Journal *j;
    assert_ok(journal_create(journal, &spec, &j, &err), &err);
    for (uint64_t i = 0; i < 3; i++)
        assert_ok(journal_append(j, items, i + 1, (i + 2) * 65536, &err), &err);
    journal_free(j);
    uint64_t records;
    assert_ok(journal_read(journal, &spec, count_records, NULL, &records, &err), &err);
    assert_int_equal(records, 3);
    struct stat st;
    assert_int_equal(stat(journal, &st), 0);
    for (uint64_t at = 0; at < (uint64_t)st.st_size; at++) {
        uint8_t byte;
        int fd = open(journal, O_RDWR);
        assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
        Err why = ERR_INIT;
        records = 0;
        bool read = journal_read(journal, &spec, count_records, NULL, &records, &why);
        assert_true(!read || records < 3);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
        assert_int_equal(close(fd), 0);
    }
    for (uint64_t keep = (uint64_t)st.st_size; keep-- > 0;) {
        Err why = ERR_INIT;
        records = 0;
        assert_int_equal(truncate(journal, (off_t)keep), 0);
        bool read = journal_read(journal, &spec, count_records, NULL, &records, &why);
        assert_int_equal(read, keep >= 64);
        assert_in_range(records, 0, 2);
    }
    assert_int_equal(unlink(journal), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_folder(random_cuts),
        in_folder(left_by_the_run_before),
        in_folder(zero_marks),
        in_folder(damaged_data),
        in_folder(nothing_counts_unsaid),
        in_folder(a_stray_cluster),
        in_folder(foreign_journals),
        in_folder(compressed_without_allocation),
        in_folder(any_damage_to_a_journal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
