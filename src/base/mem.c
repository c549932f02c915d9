#include "base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

void mem_cleanup_free(void *pointer_to_pointer)
{
    void *p;
    memcpy(&p, pointer_to_pointer, sizeof(p));
    free(p);
}

void mem_cleanup_close(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd); // read-only or already synced by the owner: nothing to lose here
}

int mem_take_fd(int *fd)
{
    int taken = *fd;
    *fd = -1;
    return taken;
}

void *mem_calloc(size_t n, size_t size, Err *err)
{
    size_t bytes;
    void *p = __builtin_mul_overflow(n, size, &bytes) ? NULL : calloc(1, bytes ? bytes : 1);
    if (!p)
        (void)err_no_memory(err);
    return p;
}

char *mem_strdup(const char *s, Err *err)
{
    char *p = strdup(s);
    if (!p)
        (void)err_no_memory(err);
    return p;
}

char *mem_printf(Err *err, const char *fmt, ...)
{
    char *p = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&p, fmt, ap);
    va_end(ap);
    if (n < 0) {
        (void)err_no_memory(err);
        return NULL;
    }
    return p;
}

bool mem_replace(char **p, const char *s, Err *err)
{
    char *copy = NULL;
    if (s) {
        copy = mem_strdup(s, err);
        if (!copy)
            return false;
    }
    free(*p);
    *p = copy;
    return true;
}
