#include "unit.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/num.h"

#include <dirent.h>
#include <inttypes.h>
#include <unistd.h>

UnitRandom unit_random(void)
{
    UnitRandom r = {0};
    Err err = ERR_INIT;
    const char *seed = getenv("SENDENSE_TEST_SEED");
    if (!seed || !num_u64(seed, 0, UINT64_MAX, &r.state, &err))
        r.state = (uint64_t)clock_utc_us() ^ (uint64_t)getpid() << 48;
    print_message("SENDENSE_TEST_SEED=%" PRIu64 "\n", r.state);
    return r;
}

uint64_t unit_random_next(UnitRandom *r)
{
    uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

uint64_t unit_random_below(UnitRandom *r, uint64_t n)
{
    return unit_random_next(r) % n;
}

int unit_folder_setup(void **state)
{
    const char *tmp = getenv("TMPDIR");
    Err err = ERR_INIT;
    char *path = mem_printf(&err, "%s/sendense-unit-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!path || !mkdtemp(path)) {
        free(path);
        return -1;
    }
    *state = path;
    return 0;
}

int unit_folder_teardown(void **state)
{
    Err err = ERR_INIT;
    bool ok = file_remove_tree(*state, &err);
    if (!ok)
        print_error("%s\n", err.details);
    free(*state);
    return ok ? 0 : -1;
}

const char *unit_path(void **state, const char *name)
{
    static char buffers[4][4096];
    static unsigned next;
    char *buf = buffers[next++ % 4];
    (void)snprintf(buf, sizeof(buffers[0]), "%s/%s", (const char *)*state, name);
    return buf;
}

int unit_patience(int ms)
{
    Err err = ERR_INIT;
    uint64_t slowness = 1;
    const char *text = getenv("SENDENSE_TEST_SLOWNESS");
    if (text)
        assert_ok(num_u64(text, 1, 1000, &slowness, &err), &err);
    return ms * (int)slowness;
}

int unit_open_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    int n = 0;
    while (readdir(d))
        n++;
    (void)closedir(d);
    return n - 3; // ".", ".." and the folder itself
}
