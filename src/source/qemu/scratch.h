// The scratch folder: images that take up what the guest overwrites during a backup, and the socket of QEMU's NBD
// server. QEMU gets both as descriptors, so that it may run as another user; an image has no name from the start.
#pragma once

#include "base/mem.h"

#include <sys/types.h>

typedef struct Scratch {
    char *folder;     // 0700, ours: below what the user named
    char *socket;     // path of the NBD server's socket
    char connect[32]; // what to connect to: a path of this process only, short; "" before scratch_listen()
    int socket_fd;    // O_PATH
    dev_t dev;        // of the socket
    ino_t ino;
} Scratch;

#define SCRATCH_NONE ((Scratch){.socket_fd = -1})
#define SCRATCH_DEFAULT "/var/tmp"

// base NULL: SCRATCH_DEFAULT. name: of the socket. ERR_FORBIDDEN when the folder below base is not ours alone.
bool scratch_open(const char *base, const char *name, Scratch *ret, Err *err) must_check;

// The same where the folder is there already: makes nothing. ERR_NOT_FOUND.
bool scratch_find(const char *base, const char *name, Scratch *ret, Err *err) must_check;

// A new QCOW2 of this virtual size, open for reading and writing.
bool scratch_image(const Scratch *s, uint64_t size, int *ret_fd, Err *err) must_check;

// A new listening socket, in the place of an old one.
bool scratch_listen(Scratch *s, int *ret_fd, Err *err) must_check;
// Does an NBD server answer at the socket? Only that of a QEMU can that got it from us. Waits for up to 5 s where
// somebody holds the socket and does not serve it.
bool scratch_is_served(const Scratch *s);
// Is the socket still the one of scratch_listen(), and not of a later run?
bool scratch_is_same(const Scratch *s);
void scratch_unlink(const Scratch *s); // the socket; fine if it is gone

// Free bytes below which a backup gives way to the guest (whose writes fail when the folder is full), and what
// must be free to start, for disks of `sizes` bytes: the mark, and a tenth of each disk, at most 8 GiB of each.
uint64_t scratch_low_water(uint64_t filesystem_bytes);
uint64_t scratch_need(uint64_t filesystem_bytes, const uint64_t *sizes, size_t n);

void scratch_clear(Scratch *s); // closes; removes nothing
