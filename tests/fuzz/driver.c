// Drives a fuzz target without libFuzzer: every file that is named, or lies in a folder that is named, then random
// mutations of them from a fixed seed, so that what failed once fails again.
//
//   fuzz-TARGET [--mutations=N] [--seed=N] [--max=BYTES] FILE|FOLDER …
//
// The input that ends the program is left as crash-TARGET in TMPDIR.
#include "fuzz.h"

#include "base/file.h"
#include "base/opt.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <sanitizer/common_interface_defs.h>

#define CORPUS_MAX 100000
#define FILE_MAX (16u << 20)

typedef struct Input {
    uint8_t *p;
    size_t n;
} Input;

typedef struct Corpus {
    Input *items;
    size_t len;
    size_t max; // bytes of a mutation
} Corpus;

// ---- what runs now, for whoever ends the program

static const char *program;
static Input running;

static void save_running(void)
{
    char path[512];
    const char *tmp = getenv("TMPDIR"), *slash = strrchr(program, '/');
    (void)snprintf(path, sizeof(path), "%s/crash-%s", tmp && *tmp ? tmp : "/tmp", slash ? slash + 1 : program);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, running.p, running.n) != (ssize_t)running.n)
        return;
    (void)close(fd); // the program ends here
    (void)fprintf(stderr, "the input is %s\n", path);
}

static void on_abort(int number)
{
    save_running();
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

static void run(Input in)
{
    // Memory of exactly its length, so that a byte too far is seen.
    running = (Input){malloc(in.n), in.n};
    fuzz_check(running.p != NULL || in.n == 0);
    if (in.n > 0)
        memcpy(running.p, in.p, in.n);
    (void)LLVMFuzzerTestOneInput(running.p, running.n);
    free(running.p);
    running = (Input){0};
}

// ---- corpus

static bool add_file(Corpus *c, const char *path, Err *err)
{
    char *p;
    size_t n;
    if (!file_read(path, FILE_MAX, &p, &n, err))
        return false;
    Input *grown = reallocarray(c->items, c->len + 1, sizeof(*grown));
    if (!grown) {
        free(p);
        return err_no_memory(err);
    }
    c->items = grown;
    c->items[c->len++] = (Input){(uint8_t *)p, n};
    return true;
}

static bool add(Corpus *c, const char *path, Err *err)
{
    FileList list = {0};
    if (!file_is_dir(path))
        return add_file(c, path, err);
    bool ok = file_list(path, CORPUS_MAX, &list, err);
    for (size_t i = 0; ok && i < list.len; i++) {
        cleanup_free char *file = file_join(path, list.names[i], err);
        ok = file && add_file(c, file, err);
    }
    file_list_clear(&list);
    return ok;
}

// ---- mutations

static uint64_t state;

static uint64_t below(uint64_t n)
{
    uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (z ^ z >> 31) % n;
}

// A number of 1, 2, 4 or 8 bytes at the edge of something, either end first.
static void put_number(uint8_t *p, size_t n)
{
    static const uint64_t edges[] = {0,
                                     1,
                                     7,
                                     8,
                                     0x7f,
                                     0x80,
                                     0xff,
                                     0x100,
                                     511,
                                     512,
                                     4096,
                                     0x7fff,
                                     0x8000,
                                     0xffff,
                                     0x10000,
                                     0x7fffffff,
                                     0x80000000,
                                     0xffffffff,
                                     UINT64_C(1) << 32,
                                     UINT64_C(1) << 56,
                                     INT64_MAX,
                                     UINT64_C(1) << 63,
                                     UINT64_MAX};
    size_t width = (size_t)1 << below(4);
    width = MIN(width, n);
    uint64_t v = edges[below(ARRAY_LEN(edges))] + below(3) - 1;
    bool big = below(2) == 0;
    for (size_t i = 0; i < width; i++)
        p[i] = (uint8_t)(v >> (big ? width - 1 - i : i) * 8);
}

// Opens a gap of n bytes at `at`, filled from somewhere.
static void insert(Input *in, size_t max, const Input *other)
{
    size_t at = below(in->n + 1), n = 1 + below(below(4) ? 8 : 256);
    if (in->n + n > max)
        return;
    memmove(in->p + at + n, in->p + at, in->n - at);
    in->n += n;
    for (size_t i = 0, from = below(other->n + 1); i < n; i++)
        in->p[at + i] = from + i < other->n ? other->p[from + i] : (uint8_t)below(256);
}

static void cut(Input *in)
{
    size_t at = below(in->n), n = 1 + below(below(4) ? 8 : in->n);
    n = MIN(n, in->n - at);
    memmove(in->p + at, in->p + at + n, in->n - at - n);
    in->n -= n;
}

static void copy_within(Input *in, const Input *other)
{
    if (other->n == 0)
        return;
    size_t to = below(in->n), from = below(other->n), n = MIN(in->n - to, other->n - from);
    memcpy(in->p + to, other->p + from, 1 + below(n));
}

static void mutate_once(Input *in, size_t max, const Input *other)
{
    static const char words[] = "{}[]\",:\\ \n0123456789-+.eEnulltrue/%?&=";
    uint64_t kind = in->n == 0 ? 0 : below(8);
    size_t at = in->n == 0 ? 0 : below(in->n);
    switch (kind) {
    case 0: insert(in, max, other); break;
    case 1: cut(in); break;
    case 2: in->p[at] ^= (uint8_t)(1u << below(8)); break;
    case 3: in->p[at] = (uint8_t)below(256); break;
    case 4: in->p[at] = (uint8_t)words[below(sizeof(words) - 1)]; break;
    case 5: in->p[at] = (uint8_t)(in->p[at] + below(5) - 2); break;
    case 6: copy_within(in, other); break;
    default: put_number(in->p + at, in->n - at); break;
    }
}

static void run_mutations(const Corpus *c, uint64_t count)
{
    uint8_t *p = malloc(c->max);
    fuzz_check(p != NULL);
    for (uint64_t i = 0; i < count; i++) {
        const Input *from = &c->items[below(c->len)];
        Input in = {p, MIN(from->n, c->max)};
        if (in.n > 0)
            memcpy(p, from->p, in.n);
        for (uint64_t k = 1 + below(4); k > 0; k--)
            mutate_once(&in, c->max, &c->items[below(c->len)]);
        run(in);
    }
    free(p);
}

int main(int argc, char **argv)
{
    Err err = ERR_INIT;
    OptList paths = {0};
    Corpus c = {0};
    uint64_t mutations = 0, seed = 1, max = 65536;
    const Opt table[] = {
        {"mutations", OPT_U64, &mutations, 0, UINT64_MAX, "N", "how many, after the files; default 0"},
        {"seed", OPT_U64, &seed, 0, UINT64_MAX, "N", "of the mutations; default 1"},
        {"max", OPT_U64, &max, 16, FILE_MAX, "BYTES", "longest mutation; default 65536"},
        {NULL, OPT_FLAG, NULL, 0, 0, NULL, NULL},
    };
    bool ok = opt_parse(argc, argv, table, false, &paths, &err);
    for (size_t i = 0; ok && i < paths.len; i++)
        ok = add(&c, paths.items[i], &err);
    if (ok && c.len == 0)
        ok = err_set(&err, ERR_USAGE, "no input; name a file or a folder");
    if (!ok) {
        (void)fprintf(stderr, "%s: %s\n", argv[0], err.details);
        return err_exit(err.code);
    }
    program = argv[0];
    __sanitizer_set_death_callback(save_running);
    (void)signal(SIGABRT, on_abort);
    c.max = max;
    state = seed;
    for (size_t i = 0; i < c.len; i++)
        run(c.items[i]);
    run_mutations(&c, mutations);
    (void)printf("%zu inputs, %" PRIu64 " mutations\n", c.len, mutations);
    for (size_t i = 0; i < c.len; i++)
        free(c.items[i].p);
    free(c.items);
    opt_list_clear_borrowed(&paths);
    return 0;
}
