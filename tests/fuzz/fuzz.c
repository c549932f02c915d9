#include "fuzz.h"

#include "base/file.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define SLOTS 8

_Noreturn void fuzz_failed(const char *file, int line, const char *claim)
{
    (void)fprintf(stderr, "%s:%d: WRONG: %s\n", file, line, claim);
    abort();
}

char *fuzz_text(const uint8_t *data, size_t n)
{
    char *text = malloc(n + 1);
    fuzz_check(text != NULL);
    if (n > 0)
        memcpy(text, data, n);
    text[n] = '\0';
    return text;
}

static char folder[512];

static void remove_folder(void)
{
    Err err = ERR_INIT;
    if (!file_remove_tree(folder, &err))
        (void)fprintf(stderr, "%s\n", err.details);
}

static void make_folder(void)
{
    const char *tmp = getenv("TMPDIR");
    (void)snprintf(folder, sizeof(folder), "%s/sendense-fuzz-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    fuzz_check(mkdtemp(folder) != NULL);
    fuzz_check(atexit(remove_folder) == 0);
}

const char *fuzz_file(unsigned slot, const uint8_t *data, size_t n)
{
    static char paths[SLOTS][600];
    Err err = ERR_INIT;
    if (!folder[0])
        make_folder();
    (void)snprintf(paths[slot], sizeof(paths[slot]), "%s/%u", folder, slot);
    cleanup_close int fd = open(paths[slot], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    fuzz_check(fd >= 0 && file_write(fd, data, n, &err));
    return paths[slot];
}
