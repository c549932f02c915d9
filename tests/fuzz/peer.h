// A peer on a unix socket that has said all of the input already, and then nothing more. Linked with --wrap=connect
// and --wrap=uuid_random_bytes: no thread, no clock, no chance.
#pragma once

#include "fuzz.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#define PEER_MAX 32768 // bytes that a socket takes at once

static const uint8_t *peer_bytes;
static size_t peer_n;
static int peer_fd = -1;

int __wrap_connect(int fd, const struct sockaddr *address, socklen_t n);
int __wrap_connect(int fd, const struct sockaddr *address, socklen_t n)
{
    (void)address, (void)n;
    int pair[2];
    fuzz_check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    fuzz_check(write(pair[1], peer_bytes, peer_n) == (ssize_t)peer_n && shutdown(pair[1], SHUT_WR) == 0);
    fuzz_check(dup3(pair[0], fd, O_CLOEXEC) == fd && fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    (void)close(pair[0]);
    peer_fd = pair[1];
    return 0;
}

bool __wrap_uuid_random_bytes(void *p, size_t n, Err *err);
bool __wrap_uuid_random_bytes(void *p, size_t n, Err *err)
{
    (void)err;
    memset(p, 7, n);
    return true;
}

static inline void peer_start(const uint8_t *data, size_t n)
{
    peer_bytes = data;
    peer_n = MIN(n, PEER_MAX);
}

static inline void peer_end(void)
{
    if (peer_fd >= 0)
        (void)close(peer_fd);
    peer_fd = -1;
}

// What any peer may lead to, besides success.
static inline void peer_check(const Err *err)
{
    fuzz_check(err->code == ERR_PROTOCOL || err->code == ERR_UNAVAILABLE || err->code == ERR_TOO_LARGE ||
               err->code == ERR_UNSUPPORTED || err->code == ERR_NOT_FOUND || err->code == ERR_TIMEOUT);
}
