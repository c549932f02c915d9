// Commit records and repository.json. Half of the inputs get a digest that fits, or no mutation would come beyond it.
#include "fuzz.h"

#include "codec/json.h"
#include "image/record.h"

static const HashSpec *const SPEC = &(HashSpec){.algorithm = HASH_XXH3_128, .seed = 0x1234567890abcdef};

// The same with the canonical form and the digest that the decoder wants. NULL: not an object.
static char *sealed(const uint8_t *data, size_t n, const HashSpec *spec)
{
    Err err = ERR_INIT;
    Hash h;
    char digest[HASH_TEXT_MAX], *text = NULL, *line = NULL;
    cleanup_json json_t *object = NULL;
    if (!codec_json_parse((const char *)data, n, RECORD_MAX_BYTES, &object, &err) || !json_is_object(object))
        return NULL;
    (void)json_object_del(object, "digest"); // it may not be there
    fuzz_check(codec_json_dump(object, &text, &err));
    hash_bytes(spec, text, strlen(text), &h);
    hash_text(spec, &h, digest);
    free(text);
    fuzz_check(codec_json_set_text(object, "digest", digest, &err) && codec_json_dump(object, &text, &err));
    line = mem_printf(&err, "%s\n", text);
    free(text);
    return line;
}

static bool decode(const char *text, size_t n, Record *ret, Err *err)
{
    return record_decode(text, n, SPEC, ret, err);
}

static bool encode(const Record *r, char **ret, Err *err)
{
    return record_encode(r, SPEC, ret, err);
}

static void record(const char *text, size_t n)
{
    fuzz_round_trip(Record, text, n, decode, encode, record_clear);
}

static void no_info(const RepositoryInfo *unused)
{
    (void)unused;
}

static void info(const char *text, size_t n)
{
    fuzz_round_trip(RepositoryInfo, text, n, repository_info_decode, repository_info_encode, no_info);
    Err err = ERR_INIT;
    RepositoryInfo i;
    HashGeometry geo;
    if (repository_info_decode(text, n, &i, &err))
        fuzz_check(hash_geometry_init(&geo, &i.hash, i.cluster_size, &err));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    record((const char *)data, n);
    info((const char *)data, n);
    char *text = sealed(data, n, SPEC);
    if (text) {
        record(text, strlen(text));
        info(text, strlen(text));
    }
    free(text);
    return 0;
}
