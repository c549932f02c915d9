#include "unit.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/proc.h"
#include "wire/child.h"
#include "wire/nbd.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

typedef struct Done {
    BlocksReq req;
    int count;
    Err err;
} Done;

static void on_done(BlocksReq *req, const Err *err)
{
    Done *d = req->ctx;
    d->count++;
    if (err)
        d->err = *err;
}

static void done_init(Done *d)
{
    *d = (Done){.req = {.done = on_done, .ctx = d}, .err = ERR_INIT};
}

// False: the end is over.
static bool turn(Blocks *b, Err *err)
{
    struct pollfd fds[BLOCKS_FDS_MAX];
    size_t n = b->ops->fds(b, fds);
    assert_true(n <= BLOCKS_FDS_MAX);
    assert_true(poll(fds, n, 20000) > 0);
    return b->ops->dispatch(b, fds, n, err);
}

static void wait_done(Blocks *b, Done *d)
{
    Err err = ERR_INIT;
    while (d->count == 0)
        assert_ok(turn(b, &err), &err);
    assert_int_equal(d->count, 1);
}

static void put(Blocks *b, const void *p, uint64_t offset, uint32_t n)
{
    Err err = ERR_INIT;
    Done d;
    done_init(&d);
    assert_ok(b->ops->write(b, p, offset, n, &d.req, &err), &err);
    wait_done(b, &d);
    assert_int_equal(d.err.code, ERR_NONE);
}

static void get(Blocks *b, void *p, uint64_t offset, uint32_t n)
{
    Err err = ERR_INIT;
    Done d;
    done_init(&d);
    assert_ok(b->ops->read(b, p, offset, n, &d.req, &err), &err);
    wait_done(b, &d);
    assert_int_equal(d.err.code, ERR_NONE);
}

static Child *serve(const char *const *argv)
{
    Err err = ERR_INIT;
    Child *c = NULL;
    assert_ok(child_start(argv, NULL, &c, &err), &err);
    return c;
}

#define SERVE(...) serve((const char *const[]){"nbdkit", "-f", __VA_ARGS__, NULL})

static Blocks *open_end(const Child *c, unsigned connections)
{
    Err err = ERR_INIT;
    Blocks *b = NULL;
    NbdSpec spec = {.socket = child_socket(c), .export_name = "", .connections = connections, .want_zeros = true};
    assert_ok(nbd_blocks_open(&spec, &b, &err), &err);
    return b;
}

static void end(Blocks *b, Child *c)
{
    b->ops->free(b);
    child_stop(c);
}

static void test_reads_what_was_written(void **state)
{
    (void)state;
    Child *c = SERVE("memory", "64M");
    Blocks *b = open_end(c, 4);
    assert_int_equal(b->size, 64 * MIB);
    assert_int_equal(b->max_request, 32 * MIB);
    assert_int_equal(b->max_in_flight, 64);
    UnitRandom r = unit_random();
    static uint8_t model[64 << 20], seen[3 << 20];
    static uint8_t data[64][65536];
    for (int round = 0; round < 20; round++) {
        Done done[64];
        Err err = ERR_INIT;
        for (size_t i = 0; i < 64; i++) { // ranges of their own: their order is nobody's business
            uint32_t n = (uint32_t)(1 + unit_random_below(&r, 65536));
            uint64_t at = i * MIB + unit_random_below(&r, MIB - n);
            memset(data[i], (int)unit_random_next(&r), n);
            memcpy(model + at, data[i], n);
            done_init(&done[i]);
            assert_ok(b->ops->write(b, data[i], at, n, &done[i].req, &err), &err);
        }
        for (size_t i = 0; i < 64; i++) {
            wait_done(b, &done[i]);
            assert_int_equal(done[i].err.code, ERR_NONE);
        }
        uint64_t at = unit_random_below(&r, 61 * MIB);
        get(b, seen, at, sizeof(seen));
        assert_memory_equal(seen, model + at, sizeof(seen));
    }
    Err err = ERR_INIT;
    Done d;
    done_init(&d);
    assert_ok(b->ops->flush(b, &d.req, &err), &err);
    wait_done(b, &d);
    assert_int_equal(d.err.code, ERR_NONE);
    end(b, c);
}

static void test_zero_of_any_length_completes_once(void **state)
{
    (void)state;
    Child *c = SERVE("memory", "8G");
    Blocks *b = open_end(c, 2);
    Err err = ERR_INIT;
    const uint64_t marks[] = {0, GIB - 1, GIB, 3 * GIB + 7, 5 * GIB + 2, 5 * GIB + 3};
    for (size_t i = 0; i < ARRAY_LEN(marks); i++)
        put(b, "x", marks[i], 1);
    Done d;
    done_init(&d);
    assert_ok(b->ops->zero(b, 1, 5 * GIB + 2, &d.req, &err), &err);
    wait_done(b, &d);
    assert_int_equal(d.err.code, ERR_NONE);
    for (size_t i = 0; i < ARRAY_LEN(marks); i++) {
        char got = '?';
        get(b, &got, marks[i], 1);
        assert_int_equal(got, i == 0 || i == ARRAY_LEN(marks) - 1 ? 'x' : 0);
    }
    end(b, c);
}

static void test_requests_out_of_bounds_do_not_start(void **state)
{
    (void)state;
    Child *c = SERVE("--filter=blocksize-policy", "memory", "1M", "blocksize-maximum=128K", "blocksize-preferred=4096");
    Blocks *b = open_end(c, 1);
    Err err = ERR_INIT;
    Done d;
    done_init(&d);
    static char p[1 << 20];
    assert_int_equal(b->max_request, 128 << 10);
    assert_fails(b->ops->read(b, p, 0, (128 << 10) + 1, &d.req, &err), &err, ERR_TOO_LARGE);
    assert_fails(b->ops->read(b, p, MIB - 1, 2, &d.req, &err), &err, ERR_INVALID);
    assert_fails(b->ops->write(b, p, MIB, 1, &d.req, &err), &err, ERR_INVALID);
    assert_fails(b->ops->zero(b, UINT64_MAX, 2, &d.req, &err), &err, ERR_INVALID);
    assert_fails(b->ops->read(b, p, 0, 0, &d.req, &err), &err, ERR_INVALID);
    ExtentVec v = {0};
    assert_fails(b->ops->extents(b, 1, MIB, &v, &v, &err), &err, ERR_INVALID);
    assert_int_equal(d.count, 0);
    get(b, p, MIB - 1, 1);
    end(b, c);
}

// CVE-2022-0485: nbdcopy did not look at the error in its callback.
static void test_errors_of_the_server_arrive(void **state)
{
    (void)state;
    Child *c = SERVE("--filter=error", "memory", "1M", "error-pread=EIO", "error-pread-rate=100%",
                     "error-pwrite=ENOSPC", "error-pwrite-rate=100%", "error-zero=EIO", "error-zero-rate=100%");
    Blocks *b = open_end(c, 2);
    Err err = ERR_INIT;
    char p[512] = {0};
    Done d[3];
    for (size_t i = 0; i < 3; i++)
        done_init(&d[i]);
    assert_ok(b->ops->read(b, p, 0, sizeof(p), &d[0].req, &err), &err);
    assert_ok(b->ops->write(b, p, 0, sizeof(p), &d[1].req, &err), &err);
    assert_ok(b->ops->zero(b, 0, MIB, &d[2].req, &err), &err);
    const ErrCode codes[] = {ERR_IO, ERR_NO_SPACE, ERR_IO};
    for (size_t i = 0; i < 3; i++) {
        wait_done(b, &d[i]);
        assert_int_equal(d[i].err.code, codes[i]);
    }
    end(b, c);
}

static void test_abort_completes_everything(void **state)
{
    (void)state;
    int fds = unit_open_fds();
    Child *c = SERVE("--filter=delay", "memory", "1M", "rdelay=60");
    Blocks *b = open_end(c, 3);
    Err err = ERR_INIT;
    static char p[10][512];
    Done d[10];
    for (size_t i = 0; i < 10; i++) {
        done_init(&d[i]);
        assert_ok(b->ops->read(b, p[i], i * 512, 512, &d[i].req, &err), &err);
    }
    b->ops->abort(b);
    for (size_t i = 0; i < 10; i++) {
        assert_int_equal(d[i].count, 1);
        assert_int_equal(d[i].err.code, ERR_CANCELLED);
    }
    assert_fails(b->ops->read(b, p[0], 0, 512, &d[0].req, &err), &err, ERR_CANCELLED);
    b->ops->free(b);
    child_stop(c);
    assert_int_equal(unit_open_fds(), fds);
}

static void test_handshake_has_a_deadline(void **state)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    (void)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", unit_path(state, "deaf"));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
    Err err = ERR_INIT;
    Blocks *b = NULL;
    NbdSpec spec = {.socket = sa.sun_path, .export_name = "", .timeout_ms = 200};
    assert_fails(nbd_blocks_open(&spec, &b, &err), &err, ERR_UNAVAILABLE); // nobody listens
    assert_int_equal(listen(fd, 5), 0);
    int64_t before = clock_mono_ms();
    assert_fails(nbd_blocks_open(&spec, &b, &err), &err, ERR_TIMEOUT);
    assert_in_range(clock_mono_ms() - before, 200, unit_patience(5000));
    (void)close(fd);
    spec.socket = unit_path(state, "nothing");
    assert_fails(nbd_blocks_open(&spec, &b, &err), &err, ERR_NOT_FOUND);
}

static Proc serve_at(const char *path, const char *file, const char *delay, const char *description)
{
    Err err = ERR_INIT;
    Proc p = PROC_NONE;
    const char *argv[] = {"nbdkit", "-f",  "-U",        path, "--filter=delay", "--filter=exportname", "file",
                          file,     delay, description, NULL};
    ProcSpec spec = {.argv = argv, .stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1, .listen_fd = -1};
    (void)unlink(path);
    assert_ok(proc_spawn(&spec, &p, &err), &err);
    int64_t deadline = clock_mono_ms() + unit_patience(20000);
    for (;;) { // the name is there a little before the socket listens
        struct sockaddr_un sa = {.sun_family = AF_UNIX};
        (void)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        int r = connect(fd, (struct sockaddr *)&sa, sizeof(sa));
        (void)close(fd);
        if (r == 0)
            return p;
        assert_true(clock_mono_ms() < deadline);
        (void)poll(NULL, 0, 10);
    }
}

static void kill_hard(Proc *p)
{
    proc_signal(p, SIGKILL);
    proc_stop(p, 0);
}

static void make_disk(const char *file, off_t size)
{
    Err err = ERR_INIT;
    assert_ok(file_create_durable(file, "", 0, 0600, &err), &err);
    assert_int_equal(truncate(file, size), 0);
}

static void test_server_that_dies(void **state)
{
    char path[100];
    (void)snprintf(path, sizeof(path), "%s", unit_path(state, "s"));
    make_disk(unit_path(state, "disk"), 1 << 20);
    Proc server = serve_at(path, unit_path(state, "disk"), "delay-read=60", "exportdesc=none");
    Err err = ERR_INIT;
    Blocks *b = NULL;
    NbdSpec spec = {.socket = path, .export_name = "", .connections = 2};
    assert_ok(nbd_blocks_open(&spec, &b, &err), &err);
    char p[512];
    Done d;
    done_init(&d);
    assert_ok(b->ops->read(b, p, 0, sizeof(p), &d.req, &err), &err);
    kill_hard(&server);
    while (d.count == 0 && turn(b, &err))
        ;
    assert_int_equal(d.count, 1);
    assert_int_equal(d.err.code, ERR_UNAVAILABLE);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    b->ops->abort(b);
    assert_int_equal(d.count, 1);
    b->ops->free(b);
}

// What was in flight on a lost connection is sent again, writes of several steps among it.
static void test_lost_connections_are_opened_again(void **state)
{
    char path[100];
    (void)snprintf(path, sizeof(path), "%s", unit_path(state, "s"));
    const char *file = unit_path(state, "disk");
    Err err = ERR_INIT;
    make_disk(file, 1 << 20);
    Proc first = serve_at(path, file, "delay-read=60", "exportdesc=none");
    NbdSpec spec = {.socket = path, .export_name = "a", .connections = 3, .want_zeros = true, .reconnects = 6};
    Blocks *b = NULL;
    assert_ok(nbd_blocks_open(&spec, &b, &err), &err);
    put(b, "hello", 1000, 5);
    static char p[6][5];
    Done d[6];
    for (size_t i = 0; i < 6; i++) {
        done_init(&d[i]);
        assert_ok(b->ops->read(b, p[i], 1000, 5, &d[i].req, &err), &err);
    }
    kill_hard(&first);
    Proc second = serve_at(path, file, "delay-read=0", "exportdesc=none");
    for (size_t i = 0; i < 6; i++) {
        wait_done(b, &d[i]);
        assert_int_equal(d[i].err.code, ERR_NONE);
        assert_memory_equal(p[i], "hello", 5);
    }
    // Another export than before: not the same disk.
    kill_hard(&second);
    assert_int_equal(truncate(file, 2 << 20), 0);
    Proc third = serve_at(path, file, "delay-read=0", "exportdesc=none");
    ExtentVec v = {0};
    assert_fails(b->ops->extents(b, 0, MIB, &v, &v, &err), &err, ERR_CONFLICT);
    b->ops->abort(b);
    b->ops->free(b);
    proc_stop(&third, 2000);
}

// It was opened again to whatever was served there by then, if only its size was the same.
static void test_lost_connections_are_opened_to_the_same_export(void **state)
{
    static const struct {
        const char *before, *after;
        ErrCode code;
        const char *words;
    } cases[] = {
        {"exportdesc=fixed:monday", "exportdesc=fixed:monday", ERR_NONE, ""},
        {"exportdesc=fixed:monday", "exportdesc=fixed:tuesday", ERR_CONFLICT, "not what it was"},
        {"exportdesc=fixed:monday", "exportdesc=none", ERR_CONFLICT, "not what it was"},
        {"exportdesc=none", "exportdesc=none", ERR_UNAVAILABLE, "neither name nor description"},
    };
    char path[100];
    (void)snprintf(path, sizeof(path), "%s", unit_path(state, "s"));
    const char *file = unit_path(state, "disk");
    make_disk(file, MIB);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        Err err = ERR_INIT;
        Proc first = serve_at(path, file, "delay-read=0", cases[i].before);
        NbdSpec spec = {.socket = path, .export_name = "", .want_zeros = true, .reconnects = 3};
        Blocks *b = NULL, *again = NULL;
        assert_ok(nbd_blocks_open(&spec, &b, &err), &err);
        kill_hard(&first);
        Proc second = serve_at(path, file, "delay-read=0", cases[i].after);
        Err later = ERR_INIT;
        assert_ok(nbd_blocks_open(&spec, &again, &later), &later);
        assert_int_equal(nbd_blocks_same(b, again), cases[i].code != ERR_CONFLICT);
        again->ops->free(again);
        ExtentVec v = {0};
        bool ok = b->ops->extents(b, 0, MIB, &v, &v, &err);
        extent_vec_clear(&v);
        assert_int_equal(ok, cases[i].code == ERR_NONE);
        assert_int_equal(err.code, cases[i].code);
        assert_non_null(strstr(err.details, cases[i].words));
        b->ops->abort(b);
        b->ops->free(b);
        proc_stop(&second, 2000);
    }
}

static void test_map_is_complete_and_clipped(void **state)
{
    (void)state;
    Child *c = SERVE("memory", "6G");
    Blocks *b = open_end(c, 2);
    Err err = ERR_INIT;
    put(b, "x", 5 * MIB, 1);
    put(b, "x", 4 * GIB + 100000, 1);
    ExtentVec changed = {0}, zeros = {0};
    assert_ok(b->ops->extents(b, 12345, 5 * GIB, &changed, &zeros, &err), &err);
    assert_int_equal(changed.len, 0);
    assert_int_equal(zeros.len, 3);
    assert_int_equal(zeros.items[0].offset, 12345);
    assert_true(zeros.items[0].zero);
    assert_in_range(zeros.items[0].offset + zeros.items[0].length, 4 * MIB, 5 * MIB);
    assert_in_range(zeros.items[1].offset, 5 * MIB + 1, 6 * MIB);
    assert_in_range(zeros.items[1].offset + zeros.items[1].length, 4 * GIB, 4 * GIB + 100000);
    assert_int_equal(zeros.items[2].offset + zeros.items[2].length, 5 * GIB + 12345);
    extent_vec_clear(&zeros);
    end(b, c);
}

// Safety rule 5: a HOLE that is not said to be ZERO may cover data.
static void test_a_hole_is_no_zero(void **state)
{
    (void)state;
    Child *c = SERVE("eval", "get_size=echo 4M", "can_extents=exit 0", "pread=head -c $3 /dev/zero",
                     "extents=echo 0 1M hole; echo 1M 1M zero; echo 2M 1M hole,zero; echo 3M 1M");
    Err err = ERR_INIT;
    Blocks *b = NULL;
    NbdSpec spec = {.socket = child_socket(c), .export_name = "", .read_only = true, .require_zeros = true};
    assert_ok(nbd_blocks_open(&spec, &b, &err), &err);
    ExtentVec changed = {0}, zeros = {0};
    assert_ok(b->ops->extents(b, 0, 4 * MIB, &changed, &zeros, &err), &err);
    assert_int_equal(zeros.len, 1);
    assert_int_equal(zeros.items[0].offset, MIB);
    assert_int_equal(zeros.items[0].length, 2 * MIB);
    extent_vec_clear(&zeros);
    end(b, c);
}

// Safety rule 5: QEMU passes over a bitmap that it does not know, which would read as "nothing changed".
static void test_contexts_must_be_granted(void **state)
{
    (void)state;
    Child *c = SERVE("--no-sr", "memory", "1M");
    Err err = ERR_INIT;
    Blocks *b = NULL;
    NbdSpec spec = {.socket = child_socket(c), .export_name = "", .require_zeros = true};
    assert_fails(nbd_blocks_open(&spec, &b, &err), &err, ERR_PROTOCOL);
    spec = (NbdSpec){.socket = child_socket(c), .export_name = "", .dirty_context = "qemu:dirty-bitmap:x"};
    assert_fails(nbd_blocks_open(&spec, &b, &err), &err, ERR_PROTOCOL);
    b = open_end(c, 1);
    ExtentVec changed = {0}, zeros = {0};
    assert_ok(b->ops->extents(b, 0, MIB, &changed, &zeros, &err), &err);
    assert_int_equal(zeros.len, 0);
    end(b, c);
}

static void run(const char *const *argv)
{
    Err err = ERR_INIT;
    int status = -1;
    assert_ok(proc_run(argv, NULL, 30000, 65536, NULL, NULL, &status, &err), &err);
    assert_int_equal(status, 0);
}

static void test_dirty_bitmap_of_qemu(void **state)
{
    const char *disk = unit_path(state, "disk.qcow2");
    run((const char *const[]){"qemu-img", "create", "-q", "-f", "qcow2", disk, "64M", NULL});
    run((const char *const[]){"qemu-img", "bitmap", "--add", disk, "b0", NULL});
    run((const char *const[]){"qemu-io", "-c", "write -q 10M 64k", "-c", "write -q -z 20M 1M", "-c", "write -q 63M 1M",
                              disk, NULL});
    Child *c = serve((const char *const[]){"qemu-nbd", "-r", "--shared=0", "-f", "qcow2", "-B", "b0", disk, NULL});
    Err err = ERR_INIT;
    Blocks *b = NULL;
    NbdSpec spec = {.socket = child_socket(c),
                    .export_name = "",
                    .connections = 4,
                    .read_only = true,
                    .require_zeros = true,
                    .dirty_context = "qemu:dirty-bitmap:b0"};
    assert_ok(nbd_blocks_open(&spec, &b, &err), &err);
    ExtentVec changed = {0}, zeros = {0};
    assert_ok(b->ops->extents(b, 0, b->size, &changed, &zeros, &err), &err);
    const uint64_t dirty[][2] = {{10 * MIB, 65536}, {20 * MIB, MIB}, {63 * MIB, MIB}};
    assert_int_equal(changed.len, ARRAY_LEN(dirty));
    for (size_t i = 0; i < ARRAY_LEN(dirty); i++) {
        assert_int_equal(changed.items[i].offset, dirty[i][0]);
        assert_int_equal(changed.items[i].length, dirty[i][1]);
        assert_false(changed.items[i].zero);
    }
    assert_int_equal(zeros.len, 2);
    assert_int_equal(zeros.items[0].length, 10 * MIB);
    assert_int_equal(zeros.items[1].offset, 10 * MIB + 65536);
    extent_vec_clear(&changed);
    extent_vec_clear(&zeros);
    end(b, c);
}

static void test_read_only_export_is_no_target(void **state)
{
    (void)state;
    Child *c = SERVE("-r", "memory", "1M");
    Err err = ERR_INIT;
    Blocks *b = NULL;
    NbdSpec spec = {.socket = child_socket(c), .export_name = ""};
    assert_fails(nbd_blocks_open(&spec, &b, &err), &err, ERR_UNSUPPORTED);
    child_stop(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_what_was_written),
        cmocka_unit_test(test_zero_of_any_length_completes_once),
        cmocka_unit_test(test_requests_out_of_bounds_do_not_start),
        cmocka_unit_test(test_errors_of_the_server_arrive),
        cmocka_unit_test(test_abort_completes_everything),
        cmocka_unit_test_setup_teardown(test_handshake_has_a_deadline, unit_folder_setup, unit_folder_teardown),
        cmocka_unit_test_setup_teardown(test_server_that_dies, unit_folder_setup, unit_folder_teardown),
        cmocka_unit_test_setup_teardown(test_lost_connections_are_opened_again, unit_folder_setup,
                                        unit_folder_teardown),
        cmocka_unit_test_setup_teardown(test_lost_connections_are_opened_to_the_same_export, unit_folder_setup,
                                        unit_folder_teardown),
        cmocka_unit_test(test_map_is_complete_and_clipped),
        cmocka_unit_test(test_a_hole_is_no_zero),
        cmocka_unit_test(test_contexts_must_be_granted),
        cmocka_unit_test_setup_teardown(test_dirty_bitmap_of_qemu, unit_folder_setup, unit_folder_teardown),
        cmocka_unit_test(test_read_only_export_is_no_target),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
