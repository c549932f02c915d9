#include "unit.h"

#include <errno.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "source/qemu/scratch.h"

static int connects, receives; // how many of the next ones end with EINTR

int __real_connect(int fd, const struct sockaddr *address, socklen_t size);
int __wrap_connect(int fd, const struct sockaddr *address, socklen_t size);
ssize_t __real_recv(int fd, void *to, size_t n, int flags);
ssize_t __wrap_recv(int fd, void *to, size_t n, int flags);

static bool is_interrupted(int *left)
{
    errno = EINTR;
    return *left > 0 && (*left)--;
}

int __wrap_connect(int fd, const struct sockaddr *address, socklen_t size)
{
    return is_interrupted(&connects) ? -1 : __real_connect(fd, address, size);
}

ssize_t __wrap_recv(int fd, void *to, size_t n, int flags)
{
    return is_interrupted(&receives) ? -1 : __real_recv(fd, to, n, flags);
}

typedef struct Server {
    int fd;
    const char *says;
} Server;

static void *serve(void *opaque)
{
    const Server *server = opaque;
    cleanup_close int fd = accept(server->fd, NULL, NULL);
    ssize_t n = fd < 0 ? -1 : send(fd, server->says, strlen(server->says), MSG_NOSIGNAL);
    return n == (ssize_t)strlen(server->says) ? opaque : NULL;
}

// Is it served, when whoever accepts says this?
static bool is_served(const Scratch *s, int fd, const char *says)
{
    Server server = {fd, says};
    pthread_t thread;
    void *done;
    assert_int_equal(pthread_create(&thread, NULL, serve, &server), 0);
    bool served = scratch_is_served(s);
    assert_int_equal(pthread_join(thread, &done), 0);
    assert_ptr_equal(done, &server);
    return served;
}

static void listen_at(void **state, Scratch *s, int *fd)
{
    Err err = ERR_INIT;
    assert_ok(scratch_open(unit_path(state, ""), "nbd.sock", s, &err), &err);
    assert_ok(scratch_listen(s, fd, &err), &err);
}

static void test_a_greeting_and_nothing_else(void **state)
{
    Scratch s = SCRATCH_NONE;
    cleanup_close int fd = -1;
    listen_at(state, &s, &fd);
    assert_true(is_served(&s, fd, "NBDMAGICIHAVEOPT"));
    assert_false(is_served(&s, fd, "NBDMAGIK"));
    assert_false(is_served(&s, fd, "NBDMAGI"));
    assert_false(is_served(&s, fd, ""));
    mem_cleanup_close(&fd);
    assert_false(scratch_is_served(&s)); // a name of the dead
    scratch_unlink(&s);
    assert_false(scratch_is_served(&s));
    scratch_clear(&s);
}

// A cancel's signal came while the sweep waited for the greeting: QEMU's NBD server was taken for somebody else's, and
// left running.
static void test_a_signal_is_no_answer(void **state)
{
    Scratch s = SCRATCH_NONE;
    cleanup_close int fd = -1;
    listen_at(state, &s, &fd);
    connects = receives = 3;
    assert_true(is_served(&s, fd, "NBDMAGICIHAVEOPT"));
    assert_int_equal(connects + receives, 0);
    scratch_unlink(&s);
    scratch_clear(&s);
}

static void test_numbers(void **state)
{
    (void)state;
    const uint64_t mib = 1 << 20, gib = 1 << 30;
    assert_int_equal(scratch_low_water(0), 16 * mib);
    assert_int_equal(scratch_low_water(10 * gib), gib / 2);
    assert_int_equal(scratch_low_water(UINT64_MAX), 2 * gib);
    const uint64_t sizes[] = {10 * gib, 1024 * gib};
    assert_int_equal(scratch_need(10 * gib, sizes, 2), gib / 2 + gib + 8 * gib);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_greeting_and_nothing_else, unit_folder_setup, unit_folder_teardown),
        cmocka_unit_test_setup_teardown(test_a_signal_is_no_answer, unit_folder_setup, unit_folder_teardown),
        cmocka_unit_test(test_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
