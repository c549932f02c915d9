#include "unit.h"

#include "source/file/raw.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MIB (1u << 20)

static bool on_zfs;

// libc's, which says ZFS where the test wants it to
int fstatfs(int fd, struct statfs *ret)
{
    int rc = (int)syscall(SYS_fstatfs, fd, ret);
    if (rc == 0 && on_zfs)
        ret->f_type = 0x2fc12fc1;
    return rc;
}

typedef struct Answer {
    BlocksReq req;
    unsigned calls;
    ErrCode code;
} Answer;

static void on_done(BlocksReq *req, const Err *err)
{
    Answer *a = req->ctx;
    a->calls++;
    a->code = err ? err->code : ERR_NONE;
}

static Answer *start(Blocks *b, void *p, uint64_t offset, uint32_t length, Answer *a, Err *err)
{
    *a = (Answer){.req = {.done = on_done, .ctx = a}};
    assert_ok(b->ops->read(b, p, offset, length, &a->req, err), err);
    return a;
}

// A disk of 4 MiB and 5 bytes; data: the second MiB and the end.
static Blocks *open_disk(void **state, FileLayers *ret, Err *err)
{
    static char data[MIB];
    memset(data, 'x', sizeof(data));
    const char *path = unit_path(state, "disk");
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_int_equal(pwrite(fd, data, MIB, MIB), MIB);
    assert_int_equal(pwrite(fd, "end12", 5, 4 * MIB), 5);
    close(fd);
    Blocks *b;
    assert_ok(file_layers_open(path, FILE_RAW, false, ret, err), err);
    assert_ok(file_raw_open(&ret->items[0], &b, err), err);
    assert_int_equal(b->size, 4 * MIB + 5);
    return b;
}

// Whose holes may have been data a moment ago.
static void test_no_map_on_zfs(void **state)
{
    Err err = ERR_INIT;
    FileLayers layers;
    ExtentVec changed = {0}, zeros = {0};
    on_zfs = true;
    cleanup_blocks Blocks *b = open_disk(state, &layers, &err);
    on_zfs = false;
    assert_ok(b->ops->extents(b, 0, b->size, &changed, &zeros, &err), &err);
    assert_int_equal(changed.len + zeros.len, 0);
    file_layers_clear(&layers);
}

static void test_map_and_reads(void **state)
{
    Err err = ERR_INIT;
    FileLayers layers;
    cleanup_blocks Blocks *b = open_disk(state, &layers, &err);
    ExtentVec changed = {0}, zeros = {0};
    assert_ok(b->ops->extents(b, 0, b->size, &changed, &zeros, &err), &err);
    assert_int_equal(zeros.len, 2);
    assert_int_equal(zeros.items[0].offset, 0);
    assert_int_equal(zeros.items[0].length, MIB);
    assert_int_equal(zeros.items[1].offset, 2 * MIB);
    assert_int_equal(zeros.items[1].length, 2 * MIB);
    assert_true(zeros.items[0].zero && zeros.items[1].zero); // unmarked, all holes of an image were read
    assert_int_equal(changed.len, 0);
    extent_vec_clear(&zeros);
    assert_fails(b->ops->extents(b, MIB, b->size, &changed, &zeros, &err), &err, ERR_INVALID);

    // Two in flight; each dispatch does one, and there is something to poll for until none is left.
    char p[8] = "", q[8] = "";
    Answer first, second;
    (void)start(b, p, MIB - 1, 2, &first, &err);
    (void)start(b, q, 4 * MIB, 5, &second, &err);
    for (unsigned done = 0; done < 2; done++) {
        struct pollfd fds[BLOCKS_FDS_MAX];
        size_t n = b->ops->fds(b, fds);
        assert_int_equal(poll(fds, n, 0), 1);
        assert_ok(b->ops->dispatch(b, fds, n, &err), &err);
        assert_int_equal(first.calls + second.calls, done + 1);
    }
    struct pollfd fds[BLOCKS_FDS_MAX];
    assert_int_equal(poll(fds, b->ops->fds(b, fds), 0), 0);
    assert_int_equal(first.code, ERR_NONE);
    assert_memory_equal(p, "\0x", 2);
    assert_string_equal(q, "end12");
    assert_fails(b->ops->read(b, q, 4 * MIB, 6, &first.req, &err), &err, ERR_INVALID);
    file_layers_clear(&layers);
}

// A file that ends where a read was planned was changed by somebody: no damage, and no zeros.
static void test_shrunk_during_the_backup(void **state)
{
    Err err = ERR_INIT;
    FileLayers layers;
    cleanup_blocks Blocks *b = open_disk(state, &layers, &err);
    assert_int_equal(truncate(layers.items[0].path, MIB + 1), 0);
    char p[8];
    Answer a;
    (void)start(b, p, MIB, 2, &a, &err);
    assert_ok(b->ops->dispatch(b, NULL, 0, &err), &err);
    assert_int_equal(a.calls, 1);
    assert_int_equal(a.code, ERR_CONFLICT);
    file_layers_clear(&layers);
}

static void test_abort_answers_each_read_once(void **state)
{
    Err err = ERR_INIT;
    FileLayers layers;
    Blocks *b = open_disk(state, &layers, &err);
    char p[8];
    Answer answers[20];
    for (unsigned i = 0; i < b->max_in_flight; i++)
        (void)start(b, p, i, 1, &answers[i], &err);
    Answer late = {.req = {.done = on_done, .ctx = &late}};
    assert_fails(b->ops->read(b, p, 0, 1, &late.req, &err), &err, ERR_INTERNAL);
    b->ops->abort(b);
    for (unsigned i = 0; i < b->max_in_flight; i++) {
        assert_int_equal(answers[i].calls, 1);
        assert_int_equal(answers[i].code, ERR_CANCELLED);
    }
    assert_int_equal(late.calls, 0);
    b->ops->free(b);
    file_layers_clear(&layers);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_map_and_reads),
        cmocka_unit_test(test_no_map_on_zfs),
        cmocka_unit_test(test_shrunk_during_the_backup),
        cmocka_unit_test(test_abort_answers_each_read_once),
    };
    return cmocka_run_group_tests(tests, unit_folder_setup, unit_folder_teardown);
}
