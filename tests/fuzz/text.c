// Texts from outside that become numbers, times, names, and names of files: one of them a line.
#include "fuzz.h"

#include "base/clock.h"
#include "base/num.h"
#include "base/uuid.h"
#include "domain/changeid.h"
#include "domain/name.h"
#include "image/layout.h"

#include <stdio.h>

#define UUID_A "11111111-aaaa-4bbb-8ccc-222222222222"

static void numbers(const char *s)
{
    Err err = ERR_INIT;
    uint64_t v;
    char again[32];
    if (num_u64(s, 10, 1000000, &v, &err)) {
        fuzz_check(v >= 10 && v <= 1000000);
        (void)snprintf(again, sizeof(again), "%llu", (unsigned long long)v);
        fuzz_check(str_eq(again, s + strspn(s, "0")));
    }
    err_clear(&err);
    if (num_size(s, 1, UINT64_C(1) << 50, &v, &err))
        fuzz_check(v >= 1 && v <= UINT64_C(1) << 50);
    err_clear(&err);
    int64_t us, us_again;
    char time[CLOCK_TEXT];
    if (clock_parse(s, &us, &err)) {
        clock_format(us, time);
        fuzz_check(clock_parse(time, &us_again, &err) && us == us_again);
    }
}

static void change_ids(const char *s)
{
    Err err = ERR_INIT;
    char uuid[37], again[CHANGEID_MINTED];
    uint64_t sequence;
    if (!changeid_parse(s, uuid, &sequence, &err))
        return;
    fuzz_check(changeid_check(s, &err) && uuid_is_valid(uuid));
    fuzz_check(changeid_mint(uuid, sequence, again, &err) && str_eq(again, s));
}

static void names(const char *s)
{
    Err err = ERR_INIT;
    char slug[NAME_SLUG], again[NAME_SLUG], id[NAME_BACKUP_ID], stem[NAME_STEM];
    if (!name_check("name", s, &err))
        return;
    name_slug(s, UUID_A, slug);
    name_slug(slug, UUID_A, again);
    fuzz_check(str_eq(slug, again) && slug[0] != '\0' && slug[0] != '.' && slug[0] != '-' && strlen(slug) <= 64);
    fuzz_check(strspn(slug, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == strlen(slug));
    fuzz_check(name_backup_id(s, 1795376000, id, &err) && name_check_job_id(id, &err));
    fuzz_check(name_stem(id, slug, stem, &err) && layout_is_stem(stem));
}

static void layout(const char *s)
{
    Err err = ERR_INIT;
    LayoutName n;
    char name[LAYOUT_NAME];
    unsigned disk = 0;
    if (layout_parse(s, &n)) {
        fuzz_check(layout_is_stem(n.stem) && (!n.attempt[0] || layout_is_attempt(n.attempt)) && !strchr(s, '/'));
        fuzz_check(layout_name(n.kind, n.stem, n.attempt[0] ? n.attempt : NULL, name, &err) && str_eq(name, s));
    }
    if (layout_disk_no(s, &disk)) {
        (void)snprintf(name, sizeof(name), "disk-%u", disk);
        fuzz_check(disk <= LAYOUT_DISK_MAX && str_eq(name, s));
    }
    if (layout_is_context(s))
        fuzz_check(str_starts(s, "ctx-") && !strchr(s, '/'));
}

static void hex(const char *s)
{
    uint8_t bytes[32];
    char again[65];
    size_t n = strlen(s) / 2;
    if (n > sizeof(bytes) || !str_unhex(s, bytes, n))
        return;
    str_hex(bytes, n, again);
    fuzz_check(strlen(again) == strlen(s));
}

static void utf8(const char *s)
{
    cleanup_free char *copy = strdup(s);
    fuzz_check(copy != NULL);
    str_make_utf8(copy);
    fuzz_check(str_is_utf8(copy, strlen(copy)) && strlen(copy) == strlen(s));
    if (str_is_utf8(s, strlen(s)))
        fuzz_check(str_eq(copy, s));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char *text = fuzz_text(data, n), *rest = text;
    for (char *line; (line = strsep(&rest, "\n")) != NULL;) {
        numbers(line);
        change_ids(line);
        names(line);
        layout(line);
        hex(line);
        utf8(line);
    }
    free(text);
    return 0;
}
