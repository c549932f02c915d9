// The peer of an increment: copies ranges from one NBD export to another, one request at a time, then flushes.
//
//   one-at-a-time FROM-URI TO-URI <ranges      a line for each range: offset and length, in bytes
#include <inttypes.h>
#include <libnbd.h>
#include <stdio.h>
#include <stdlib.h>

#define REQUEST_MAX (UINT64_C(1) << 20)

static struct nbd_handle *open_uri(const char *uri)
{
    struct nbd_handle *h = nbd_create();
    if (h && nbd_connect_uri(h, uri) == 0)
        return h;
    fprintf(stderr, "%s: %s\n", uri, nbd_get_error());
    exit(1);
}

int main(int argc, char **argv)
{
    static char buffer[REQUEST_MAX], line[64];
    if (argc != 3) {
        fprintf(stderr, "usage: one-at-a-time FROM-URI TO-URI <ranges\n");
        return 2;
    }
    struct nbd_handle *from = open_uri(argv[1]), *to = open_uri(argv[2]);
    while (fgets(line, sizeof(line), stdin)) {
        char *rest;
        uint64_t at = strtoull(line, &rest, 10), left = strtoull(rest, NULL, 10);
        for (uint64_t n; left > 0; at += n, left -= n) {
            n = left < REQUEST_MAX ? left : REQUEST_MAX;
            if (nbd_pread(from, buffer, n, at, 0) != 0 || nbd_pwrite(to, buffer, n, at, 0) != 0) {
                fprintf(stderr, "%" PRIu64 ": %s\n", at, nbd_get_error());
                return 1;
            }
        }
    }
    if (nbd_flush(to, 0) != 0) {
        fprintf(stderr, "flush: %s\n", nbd_get_error());
        return 1;
    }
    nbd_close(from);
    nbd_close(to);
    return 0;
}
