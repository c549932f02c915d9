// The n-th call that writes fails, for every n: the writer says so at once or at the seal, stays broken, and leaves
// no file that could be taken for an image. And what is called durable was synced (pitfall 7): after a flush the image,
// before the header's write and after the seal image and hashes.
#include "model.h"

#include <errno.h>
#include <sys/stat.h>

int __real_fdatasync(int fd);
int __real_fsync(int fd);
int __real_ftruncate64(int fd, off_t length);
int __real_sync_file_range(int fd, off64_t offset, off64_t n, unsigned flags);
ssize_t __real_pwrite64(int fd, const void *p, size_t n, off_t offset);
ssize_t __real_write(int fd, const void *p, size_t n);
int __wrap_fdatasync(int fd);
int __wrap_fsync(int fd);
int __wrap_ftruncate64(int fd, off_t length);
int __wrap_sync_file_range(int fd, off64_t offset, off64_t n, unsigned flags);
ssize_t __wrap_pwrite64(int fd, const void *p, size_t n, off_t offset);
ssize_t __wrap_write(int fd, const void *p, size_t n);

static uint64_t calls, fail_at; // fail_at 0: never
static int fail_errno;
static bool fail_short; // a pwrite writes half before it fails
static const char *image_path, *hashes_path;

// ---- files that were written to, and not synced since

#define DIRTY_MAX 16

static ino_t dirty[DIRTY_MAX]; // 0: a free place
static unsigned headers;
static uint64_t waited_to; // what lies before that in the image is on the disk

static void set_dirty(int fd, bool is)
{
    struct stat st;
    size_t at = DIRTY_MAX, space = DIRTY_MAX;
    assert_int_equal(fstat(fd, &st), 0);
    for (size_t i = 0; i < DIRTY_MAX; i++) {
        if (dirty[i] == st.st_ino)
            at = i;
        else if (dirty[i] == 0)
            space = i;
    }
    if (is && at == DIRTY_MAX) {
        assert_true(space < DIRTY_MAX);
        dirty[space] = st.st_ino;
    } else if (!is && at < DIRTY_MAX) {
        dirty[at] = 0;
    }
}

static void check_synced(const char *path, const char *when)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_size > 0);
    for (size_t i = 0; i < DIRTY_MAX; i++)
        if (dirty[i] == st.st_ino)
            fail_msg("%s is not synced %s", path, when);
}

static bool now(void)
{
    if (++calls != fail_at)
        return false;
    errno = fail_errno;
    return true;
}

int __wrap_fdatasync(int fd)
{
    if (now() || __real_fdatasync(fd) != 0)
        return -1;
    set_dirty(fd, false);
    return 0;
}

int __wrap_fsync(int fd)
{
    if (now() || __real_fsync(fd) != 0)
        return -1;
    set_dirty(fd, false);
    return 0;
}

int __wrap_ftruncate64(int fd, off_t length)
{
    set_dirty(fd, true);
    return now() ? -1 : __real_ftruncate64(fd, length);
}

int __wrap_sync_file_range(int fd, off64_t offset, off64_t n, unsigned flags)
{
    if (now())
        return -1;
    if (flags & SYNC_FILE_RANGE_WAIT_AFTER) {
        assert_true((uint64_t)offset <= waited_to);
        waited_to = (uint64_t)(offset + n);
    }
    return __real_sync_file_range(fd, offset, n, flags);
}

// The hashes go through here, and what the test itself says.
ssize_t __wrap_write(int fd, const void *p, size_t n)
{
    if (fd <= STDERR_FILENO)
        return __real_write(fd, p, n);
    set_dirty(fd, true);
    return now() ? -1 : __real_write(fd, p, n);
}

ssize_t __wrap_pwrite64(int fd, const void *p, size_t n, off_t offset)
{
    if (offset == 0 && n >= 4 && memcmp(p, "QFI\xfb", 4) == 0) {
        headers++;
        check_synced(image_path, "when its header is written");
        check_synced(hashes_path, "when the image's header is written");
    }
    set_dirty(fd, true);
    if (!now())
        return __real_pwrite64(fd, p, n, offset);
    if (fail_short)
        (void)!__real_pwrite64(fd, p, n / 2 / 512 * 512, offset);
    errno = fail_errno;
    return -1;
}

// Some of everything. False: it failed, as it should; what it was is in *err.
static bool story(Model *m, Writer *w, HashesSummary *ret, Hash *ret_digest, Err *err)
{
    uint8_t *bytes = m->points[m->len].bytes;
    uint64_t size = m->points[m->len].size;
    if (!writer_write(w, bytes, 0, 300000, err) || !writer_zero(w, 8192, 4096, err) ||
        !writer_write(w, bytes + 100, 100, 50, err) || !writer_flush(w, err))
        return false;
    check_synced(image_path, "after a flush");
    if (!writer_write(w, bytes + 300000, 300000, (uint32_t)(size - 300000), err) ||
        !writer_seal(w, NULL, ret, ret_digest, err))
        return false;
    check_synced(image_path, "after the seal");
    check_synced(hashes_path, "after the seal");
    return true;
}

// The n-th call from here on fails.
static WriterSpec begin(Model *m, uint64_t n)
{
    ModelPoint *p = &m->points[0];
    (void)snprintf(p->image, sizeof p->image, "%s/i", m->folder);
    (void)snprintf(p->hashes, sizeof p->hashes, "%s/h", m->folder);
    calls = waited_to = 0;
    headers = 0;
    fail_at = n;
    memset(dirty, 0, sizeof dirty);
    image_path = p->image;
    hashes_path = p->hashes;
    return (WriterSpec){.image_path = p->image,
                        .hashes_path = p->hashes,
                        .size = p->size,
                        .cluster_bits = m->cluster_bits,
                        .hash = m->hash,
                        .mode = DISK_FULL};
}

static void one_fault(Model *m, uint64_t n, uint64_t *ret_calls)
{
    Err err = ERR_INIT;
    HashesSummary summary;
    Hash digest;
    Writer *w = NULL;
    WriterSpec spec = begin(m, n);
    spec.direct_io = n % 2 == 0;
    spec.cache_groups = 1;
    bool ok = writer_open(&spec, &w, &err) && story(m, w, &summary, &digest, &err);
    *ret_calls = calls;
    fail_at = 0;
    bool was_probe = ok && n == 1; // the trial of direct I/O may fail
    if (n > 0 && n <= *ret_calls && !was_probe) {
        assert_false(ok);
        if (err.code != ERR_NO_SPACE && err.code != ERR_IO)
            fail_msg("call %llu: %s: %s", (unsigned long long)n, err_name(err.code), err.details);
        err_clear(&err);
        if (w) { // for good, although nothing fails any more
            assert_false(writer_write(w, "x", 0, 1, &err));
            err_clear(&err);
            assert_false(writer_seal(w, NULL, &summary, &digest, &err));
            err_clear(&err);
        }
        // Without the header it is no QCOW2. Only the very last sync may fail behind it.
        uint8_t head[4] = {0};
        int fd = open(spec.image_path, O_RDONLY | O_CLOEXEC);
        bool has_header = fd >= 0 && pread(fd, head, 4, 0) == 4 && head[0] == 'Q';
        if (fd >= 0)
            assert_int_equal(close(fd), 0);
        assert_true(!has_header || n >= *ret_calls - 1);
    } else {
        assert_true(ok);
        assert_int_equal(headers, 1);
    }
    writer_free(w);
    assert_int_equal(unlink(spec.image_path), 0);
    (void)unlink(spec.hashes_path);
}

static void test_every_call(void **state)
{
    Model m = model_new(state, 12, HASH_XXH3_128);
    m.points[0].size = 5000000; // three groups, of which one is kept
    m.points[0].bytes = malloc(5000000);
    model_fill(&m, m.points[0].bytes, 5000000);
    uint64_t total = 0, seen;
    int fds = unit_open_fds();
    one_fault(&m, 0, &total);
    print_message("%llu calls that write\n", (unsigned long long)total);
    assert_true(total > 15);
    for (int kind = 0; kind < 2; kind++) {
        fail_errno = kind ? ENOSPC : EIO;
        fail_short = kind == 1;
        for (uint64_t n = 1; n <= total; n++)
            one_fault(&m, n, &seen);
    }
    assert_int_equal(unit_open_fds(), fds);
    free(m.points[0].bytes);
}

// Of 64 MiB that go through the page cache, no more than 48 wait there for the disk.
static bool write_cached(Model *m, uint64_t n, Err *err)
{
    WriterSpec spec = begin(m, n);
    HashesSummary summary;
    Hash digest;
    Writer *w = NULL;
    bool ok = writer_open(&spec, &w, err);
    for (uint64_t at = 0; ok && at < spec.size; at += 1 << 20) {
        ok = writer_write(w, m->points[0].bytes + at, at, 1 << 20, err);
        assert_true(!ok || at < waited_to + (UINT64_C(48) << 20));
    }
    ok = ok && writer_seal(w, NULL, &summary, &digest, err);
    fail_at = 0;
    writer_free(w);
    assert_int_equal(unlink(spec.image_path), 0);
    (void)unlink(spec.hashes_path);
    return ok;
}

// The kernel tells an error of the disk once: who swallowed it here would not hear of it from fsync().
static void test_written_behind(void **state)
{
    Err err = ERR_INIT;
    Model m = model_new(state, 16, HASH_XXH3_128);
    m.points[0].size = UINT64_C(64) << 20;
    m.points[0].bytes = malloc(m.points[0].size);
    model_fill(&m, m.points[0].bytes, m.points[0].size);
    assert_ok(write_cached(&m, 0, &err), &err);
    assert_true(waited_to >= UINT64_C(32) << 20);
    fail_errno = EIO;
    fail_short = false;
    for (uint64_t n = 1, total = calls; n <= total; n++) {
        assert_false(write_cached(&m, n, &err));
        assert_int_equal(err.code, ERR_IO);
        err_clear(&err);
    }
    free(m.points[0].bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_folder(test_every_call),
        in_folder(test_written_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
