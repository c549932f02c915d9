#include "source/file/spec.h"

#include "base/str.h"
#include "codec/json.h"

#include <stdio.h>

static bool is_nbd_uri(const char *uri)
{
    static const char *const schemes[] = {"nbd://", "nbds://", "nbd+unix://", "nbds+unix://"};
    for (size_t i = 0; i < ARRAY_LEN(schemes); i++)
        if (str_starts(uri, schemes[i]))
            return true;
    return false;
}

static bool read_format(const json_t *disk, FileFormat *ret, Err *err)
{
    const char *format;
    if (!codec_json_text_opt(disk, "format", 16, &format, err))
        return false;
    *ret = FILE_PROBED;
    if (!format)
        return true;
    if (!str_eq(format, "raw") && !str_eq(format, "qcow2"))
        return err_set(err, ERR_INVALID, "format is \"%s\"; HINT: raw or qcow2", format);
    *ret = str_eq(format, "raw") ? FILE_RAW : FILE_QCOW2;
    return true;
}

static bool read_disk(const json_t *disk, size_t index, FileSpecDisk *ret, Err *err)
{
    static const char *const known[] = {"key", "path", "format", "uri", NULL};
    const char *key;
    FileSpecDisk d = {.path = NULL};
    if (!codec_json_object(disk, "disk", err) || !codec_json_only(disk, known, err) ||
        !codec_json_text_opt(disk, "key", SOURCE_KEY_MAX, &key, err) ||
        !codec_json_text_opt(disk, "path", SOURCE_TEXT_MAX, &d.path, err) ||
        !codec_json_text_opt(disk, "uri", SOURCE_TEXT_MAX, &d.uri, err) || !read_format(disk, &d.format, err))
        return false;
    if (!d.path == !d.uri)
        return err_set(err, ERR_INVALID, "a disk has either a path or a uri");
    if (d.path && !source_check_path("path", d.path, SOURCE_TEXT_MAX, err))
        return false;
    if (d.uri && (!is_nbd_uri(d.uri) || !str_has_no_controls(d.uri)))
        return err_set(err, ERR_INVALID, "uri is no NBD URI; HINT: nbd://host/export");
    if (d.uri && d.format != FILE_PROBED)
        return err_set(err, ERR_INVALID, "a disk with a uri has no format: the export is the disk");
    if (key && !source_check_key(key, err))
        return false;
    if (key)
        (void)snprintf(d.key, sizeof(d.key), "%s", key); // fits: it was checked
    else
        (void)snprintf(d.key, sizeof(d.key), "disk-%zu", index);
    *ret = d;
    return true;
}

static bool read_disks(const json_t *disks, FileSpec *s, Err *err)
{
    for (size_t i = 0; i < json_array_size(disks); i++) {
        if (!read_disk(json_array_get(disks, i), i, &s->disks[i], err))
            return err_context(err, "disks[%zu]", i);
        for (size_t j = 0; j < i; j++)
            if (str_eq(s->disks[j].key, s->disks[i].key))
                return err_set(err, ERR_INVALID, "two disks have the key \"%s\"", s->disks[i].key);
        s->len++;
    }
    return true;
}

bool file_spec_read(const json_t *spec, FileSpec *ret, Err *err)
{
    static const char *const known[] = {"type", "disks", "inconsistent", NULL};
    json_t *disks;
    FileSpec s = {.len = 0};
    if (!codec_json_object(spec, "source", err) || !codec_json_only(spec, known, err) ||
        !codec_json_array(spec, "disks", SOURCE_DISKS_MAX, &disks, err) ||
        !codec_json_bool_opt(spec, "inconsistent", false, &s.inconsistent, err))
        return false;
    if (json_array_size(disks) == 0)
        return err_set(err, ERR_INVALID, "disks is empty");
    s.disks = mem_calloc(json_array_size(disks), sizeof(*s.disks), err);
    if (!s.disks)
        return false;
    if (!read_disks(disks, &s, err)) {
        file_spec_clear(&s);
        return false;
    }
    *ret = s;
    return true;
}

void file_spec_clear(FileSpec *s)
{
    free(s->disks);
    *s = (FileSpec){0};
}
