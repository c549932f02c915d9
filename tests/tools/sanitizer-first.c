// Preloaded into a stock program beside a sanitizer's runtime, so that this starts before every other library.
// Without it p11-kit's first malloc() starts it, with glibc's lock of locales held; the runtime looks for symbols that
// are not there, gettext takes the same lock for the message and gives it back once too often, and the program hangs
// at its end. What the program starts gets neither: a shell of nbdkit's, and dd, are none of ours.
#include <stdlib.h>
#include <string.h>

// Before libc has its own view of the environment: hence glibc's arguments of a constructor.
__attribute__((constructor)) static void first(int argc, char **argv, char **envp)
{
    (void)argc;
    (void)argv;
    void *volatile p = malloc(1); // volatile: else the compiler leaves the pair out
    free(p);
    char **to = envp;
    for (char **from = envp; *from; from++)
        if (strncmp(*from, "LD_PRELOAD=", 11) != 0)
            *to++ = *from;
    *to = NULL;
}
