// A race on the engine's own state: a look at the next host cluster without its lock while a thread writes. Tools that
// look for races have to find it, or finding none in the engine says nothing (tools/sanitize).
#include "base/file.h"
#include "image/writer_parts.h"

#include <pthread.h>
#include <stdio.h>

#define CLUSTERS 64

static atomic_bool done;

static void *write_all(void *arg)
{
    Err err = ERR_INIT;
    uint8_t bytes[4096];
    bool ok = true;
    memset(bytes, 7, sizeof(bytes));
    for (uint64_t i = 0; ok && i < CLUSTERS; i++)
        ok = writer_write(arg, bytes, i * sizeof(bytes), sizeof(bytes), &err);
    atomic_store_explicit(&done, true, memory_order_relaxed); // an order would hide the race
    return ok ? NULL : "write";
}

int main(int argc, char **argv)
{
    Err err = ERR_INIT;
    Writer *w = NULL;
    pthread_t thread;
    void *failed = NULL;
    uint64_t seen = 0;
    if (argc != 2) {
        (void)fprintf(stderr, "usage: planted-race FOLDER\n");
        return 2;
    }
    cleanup_free char *image = file_join(argv[1], "image", &err), *hashes = file_join(argv[1], "hashes", &err);
    WriterSpec spec = {
        .image_path = image, .hashes_path = hashes, .size = CLUSTERS * 4096, .cluster_bits = 12, .mode = DISK_FULL};
    if (!image || !hashes || !writer_open(&spec, &w, &err) || pthread_create(&thread, NULL, write_all, w) != 0) {
        (void)fprintf(stderr, "planted-race: %s\n", err.details);
        return 2;
    }
    while (!atomic_load_explicit(&done, memory_order_relaxed))
        seen = w->next;
    (void)pthread_join(thread, &failed); // it was started
    writer_free(w);
    (void)printf("%llu\n", (unsigned long long)seen);
    return failed ? 2 : 0;
}
