// The packed database: a line about it in a skippable frame, the database in a zstd frame, and a SHA-256 of both in
// another skippable one; so that stock tools read it, and one changed bit is seen. docs/internals/database-backup.md.
#include "base/clock.h"
#include "base/file.h"
#include "base/str.h"
#include "codec/json.h"
#include "store/dump.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#define FORMAT 1
#define MAGIC_LINE 0x184D2A50u // of skippable frames
#define MAGIC_END 0x184D2A51u
#define HEAD 8u
#define END_BYTES (HEAD + crypto_hash_sha256_BYTES)
#define LINE_MAX_BYTES 4096
#define LEVEL 3
#define BUFFER (256u << 10)
#define WINDOW_LOG_MAX 27 // what a reader has to keep: 128 MiB
#define DIGEST_TEXT (2 * crypto_hash_sha256_BYTES + 1)
#define DATABASE_MAX (UINT64_C(1) << 40)

static void hex_of(crypto_hash_sha256_state *state, char out[DIGEST_TEXT])
{
    unsigned char hash[crypto_hash_sha256_BYTES];
    (void)crypto_hash_sha256_final(state, hash);
    str_hex(hash, sizeof(hash), out);
}

static void hex_of_text(const char *text, char out[DIGEST_TEXT])
{
    crypto_hash_sha256_state state;
    (void)crypto_hash_sha256_init(&state);
    (void)crypto_hash_sha256_update(&state, (const unsigned char *)text, strlen(text));
    hex_of(&state, out);
}

// ---- the line

// Without "digest", then with it.
static bool encode_line(const DumpInfo *info, const char *sha256, char **ret, Err *err)
{
    cleanup_json json_t *o = json_object();
    cleanup_free char *plain = NULL;
    char digest[DIGEST_TEXT];
    bool ok = (o || err_no_memory(err)) && codec_json_set_u64(o, "format", FORMAT, err) &&
        codec_json_set_text(o, "hub_id", info->hub_id, err) && codec_json_set_u64(o, "number", info->number, err) &&
        codec_json_set_time(o, "created_at", info->created_us, err) &&
        codec_json_set_text(o, "engine", info->engine, err) && codec_json_set_text(o, "version", info->version, err) &&
        codec_json_set_u64(o, "schema", info->schema, err) &&
        codec_json_set_u64(o, "database_bytes", info->database_bytes, err) &&
        codec_json_set_text(o, "database_sha256", sha256, err) && codec_json_dump(o, &plain, err);
    if (!ok)
        return false;
    hex_of_text(plain, digest);
    return codec_json_set_text(o, "digest", digest, err) && codec_json_dump(o, ret, err);
}

static bool copy_text(const json_t *o, const char *key, size_t size, char *out, Err *err)
{
    const char *text;
    if (!codec_json_text(o, key, size - 1, &text, err))
        return false;
    memcpy(out, text, strlen(text) + 1);
    return true;
}

static bool decode_members(const json_t *o, DumpInfo *ret, char sha256[DIGEST_TEXT], Err *err)
{
    const char *created;
    uint64_t format;
    if (!codec_json_u64(o, "format", UINT32_MAX, &format, err))
        return false;
    if (format > FORMAT)
        return err_set(err, ERR_UNSUPPORTED, "its format is %llu, this program knows up to %d; use a newer one",
                       (unsigned long long)format, FORMAT);
    return copy_text(o, "hub_id", sizeof(ret->hub_id), ret->hub_id, err) &&
        codec_json_u64(o, "number", INT64_MAX, &ret->number, err) &&
        codec_json_text(o, "created_at", CLOCK_TEXT, &created, err) && clock_parse(created, &ret->created_us, err) &&
        copy_text(o, "engine", sizeof(ret->engine), ret->engine, err) &&
        copy_text(o, "version", sizeof(ret->version), ret->version, err) &&
        codec_json_u64(o, "schema", UINT32_MAX, &ret->schema, err) &&
        codec_json_u64(o, "database_bytes", DATABASE_MAX, &ret->database_bytes, err) &&
        copy_text(o, "database_sha256", DIGEST_TEXT, sha256, err);
}

// Before anything in it is believed, its format included.
static bool has_its_digest(const json_t *o, Err *err)
{
    const char *said;
    char digest[DIGEST_TEXT];
    cleanup_free char *plain = NULL;
    cleanup_json json_t *rest = json_copy((json_t *)(uintptr_t)o);
    if (!codec_json_object(o, "the file's line", err) || !codec_json_text(o, "digest", DIGEST_TEXT, &said, err))
        return false;
    if (!rest || json_object_del(rest, "digest") != 0)
        return err_no_memory(err);
    if (!codec_json_dump(rest, &plain, err))
        return false;
    hex_of_text(plain, digest);
    return str_eq(said, digest) || err_set(err, ERR_DAMAGED, "its digest is another one");
}

// What is not exactly as it would be written is damaged.
static bool decode_line(const char *line, size_t n, DumpInfo *ret, char sha256[DIGEST_TEXT], Err *err)
{
    cleanup_json json_t *o = NULL;
    cleanup_free char *again = NULL;
    Err why = ERR_INIT;
    if (codec_json_parse(line, n, LINE_MAX_BYTES, &o, &why) && has_its_digest(o, &why) &&
        decode_members(o, ret, sha256, &why) && encode_line(ret, sha256, &again, &why) && strlen(again) == n &&
        memcmp(again, line, n) == 0)
        return true;
    if (why.code == ERR_UNSUPPORTED || why.code == ERR_NO_MEMORY) {
        *err = why;
        return false;
    }
    return err_set(err, ERR_DAMAGED, "what it says of itself is not what was written");
}

// ---- packing

static bool read_some(int fd, void *p, size_t n, size_t *ret, Err *err)
{
    ssize_t got;
    do
        got = read(fd, p, n);
    while (got < 0 && errno == EINTR);
    *ret = got > 0 ? (size_t)got : 0;
    return got >= 0 || err_errno(err, errno, "cannot read");
}

static bool hash_file(int fd, char sha256[DIGEST_TEXT], uint64_t *ret_bytes, const DbPatience *patience, Err *err)
{
    cleanup_free unsigned char *buffer = mem_calloc(BUFFER, 1, err);
    crypto_hash_sha256_state state;
    size_t n = 1;
    *ret_bytes = 0;
    (void)crypto_hash_sha256_init(&state);
    while (buffer && n > 0) {
        if (!db_go_on(patience, err) || !read_some(fd, buffer, BUFFER, &n, err))
            return false;
        (void)crypto_hash_sha256_update(&state, buffer, n);
        *ret_bytes += n;
    }
    hex_of(&state, sha256);
    return buffer && (lseek(fd, 0, SEEK_SET) == 0 || err_errno(err, errno, "cannot read again"));
}

typedef struct Out {
    int fd;
    crypto_hash_sha256_state all;
} Out;

static bool write_out(Out *o, const void *p, size_t n, Err *err)
{
    (void)crypto_hash_sha256_update(&o->all, p, n);
    return file_write(o->fd, p, n, err);
}

static void put_head(uint32_t magic, uint32_t n, unsigned char head[HEAD])
{
    for (unsigned i = 0; i < 4; i++) {
        head[i] = (unsigned char)(magic >> 8 * i);
        head[4 + i] = (unsigned char)(n >> 8 * i);
    }
}

static bool write_line(Out *o, char *line, Err *err)
{
    unsigned char head[HEAD];
    size_t n = strlen(line);
    line[n] = '\n'; // in the NUL's place
    put_head(MAGIC_LINE, (uint32_t)n + 1, head);
    return write_out(o, head, sizeof(head), err) && write_out(o, line, n + 1, err);
}

static bool write_end(Out *o, Err *err)
{
    unsigned char end[END_BYTES];
    put_head(MAGIC_END, crypto_hash_sha256_BYTES, end);
    (void)crypto_hash_sha256_final(&o->all, end + HEAD);
    return file_write(o->fd, end, sizeof(end), err);
}

static bool compress(ZSTD_CCtx *z, int from, Out *to, const DbPatience *patience, Err *err)
{
    cleanup_free char *in = mem_calloc(2, BUFFER, err);
    char *out = in ? in + BUFFER : NULL;
    size_t n = 1;
    while (in && n > 0) {
        if (!db_go_on(patience, err) || !read_some(from, in, BUFFER, &n, err))
            return false;
        ZSTD_inBuffer input = {.src = in, .size = n};
        size_t left;
        do {
            ZSTD_outBuffer output = {.dst = out, .size = BUFFER};
            left = ZSTD_compressStream2(z, &output, &input, n > 0 ? ZSTD_e_continue : ZSTD_e_end);
            if (ZSTD_isError(left))
                return err_set(err, ERR_INTERNAL, "cannot compress: %s", ZSTD_getErrorName(left));
            if (!write_out(to, out, output.pos, err))
                return false;
        } while (input.pos < input.size || (n == 0 && left > 0));
    }
    return in != NULL;
}

static bool find_schema(const char *database, uint64_t *ret, Err *err)
{
    Db *db = NULL;
    int64_t schema = 0;
    bool ok = db_sqlite_open(database, &db, err) &&
        db_number(db, "SELECT MAX(version) FROM schema_migrations", DB_NO_ARGS, 0, &schema, err);
    if (db)
        db->ops->close(db);
    *ret = (uint64_t)MAX(schema, 0);
    return ok && dump_settle(database, err);
}

bool dump_file_pack(const char *database, int fd, const DumpInfo *info, const DbPatience *patience, Err *err)
{
    DumpInfo full = *info;
    char sha256[DIGEST_TEXT];
    cleanup_free char *line = NULL;
    if (!find_schema(database, &full.schema, err))
        return false;
    cleanup_close int from = open(database, O_RDONLY | O_CLOEXEC);
    if (from < 0)
        return err_errno(err, errno, "cannot open %s", database);
    if (!hash_file(from, sha256, &full.database_bytes, patience, err) || !encode_line(&full, sha256, &line, err))
        return false;
    Out out = {.fd = fd};
    (void)crypto_hash_sha256_init(&out.all);
    ZSTD_CCtx *z = ZSTD_createCCtx();
    bool ok = z != NULL || err_no_memory(err);
    ok = ok &&
        (!(ZSTD_isError(ZSTD_CCtx_setParameter(z, ZSTD_c_compressionLevel, LEVEL)) ||
           ZSTD_isError(ZSTD_CCtx_setParameter(z, ZSTD_c_checksumFlag, 1))) ||
         err_set(err, ERR_INTERNAL, "zstd takes no settings"));
    ok = ok && write_line(&out, line, err) && compress(z, from, &out, patience, err) && write_end(&out, err);
    (void)ZSTD_freeCCtx(z);
    return ok;
}

// ---- unpacking

typedef struct Unpack {
    ZSTD_DCtx *z;
    int from, to;
    uint64_t left; // of the file, without its end
    char *in, *out;
    crypto_hash_sha256_state all, database;
    uint64_t bytes, bytes_max;
    bool ended;
} Unpack;

static bool too_short(Err *err)
{
    return err_set(err, ERR_DAMAGED, "it ends too early");
}

static bool read_whole(Unpack *u, void *p, size_t n, Err *err)
{
    size_t got = 1;
    if (n > u->left)
        return too_short(err);
    u->left -= n;
    for (unsigned char *at = p; n > 0 && got > 0; at += got, n -= got) {
        if (!read_some(u->from, at, n, &got, err))
            return false;
        (void)crypto_hash_sha256_update(&u->all, at, got);
    }
    return n == 0 || too_short(err);
}

static uint32_t get32(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static bool read_line(Unpack *u, DumpInfo *ret, char sha256[DIGEST_TEXT], Err *err)
{
    unsigned char head[HEAD];
    char line[LINE_MAX_BYTES];
    if (!read_whole(u, head, sizeof(head), err))
        return false;
    uint32_t n = get32(head + 4);
    if (get32(head) != MAGIC_LINE || n < 2 || n > sizeof(line))
        return err_set(err, ERR_DAMAGED, "it is no backup of a hub's database");
    return read_whole(u, line, n, err) &&
        (line[n - 1] == '\n' || err_set(err, ERR_DAMAGED, "what it says of itself is not what was written")) &&
        decode_line(line, n - 1, ret, sha256, err);
}

static bool inflate_piece(Unpack *u, size_t n, Err *err)
{
    ZSTD_inBuffer input = {.src = u->in, .size = n};
    bool full = false;
    while (input.pos < input.size || full) {
        if (u->ended)
            return err_set(err, ERR_DAMAGED, "something follows behind its end");
        ZSTD_outBuffer output = {.dst = u->out, .size = BUFFER};
        size_t left = ZSTD_decompressStream(u->z, &output, &input);
        if (ZSTD_isError(left))
            return err_set(err, ERR_DAMAGED, "it cannot be unpacked: %s", ZSTD_getErrorName(left));
        u->ended = left == 0;
        full = !u->ended && output.pos == output.size;
        u->bytes += output.pos;
        if (u->bytes > u->bytes_max)
            return err_set(err, ERR_DAMAGED, "more is in it than it says");
        (void)crypto_hash_sha256_update(&u->database, (const unsigned char *)u->out, output.pos);
        if (u->to >= 0 && !file_write(u->to, u->out, output.pos, err))
            return false;
    }
    return true;
}

static bool inflate(Unpack *u, const DbPatience *patience, Err *err)
{
    u->z = ZSTD_createDCtx();
    u->in = mem_calloc(2, BUFFER, err);
    if (!u->z || !u->in || ZSTD_isError(ZSTD_DCtx_setParameter(u->z, ZSTD_d_windowLogMax, WINDOW_LOG_MAX)))
        return err_no_memory(err);
    u->out = u->in + BUFFER;
    (void)crypto_hash_sha256_init(&u->database);
    while (u->left > 0) {
        size_t n = (size_t)MIN(u->left, BUFFER);
        if (!db_go_on(patience, err) || !read_whole(u, u->in, n, err) || !inflate_piece(u, n, err))
            return false;
    }
    return u->ended || too_short(err);
}

static bool check_end(Unpack *u, Err *err)
{
    unsigned char end[END_BYTES], expected[END_BYTES];
    put_head(MAGIC_END, crypto_hash_sha256_BYTES, expected);
    (void)crypto_hash_sha256_final(&u->all, expected + HEAD);
    u->left = END_BYTES;
    return read_whole(u, end, sizeof(end), err) &&
        (memcmp(end, expected, sizeof(end)) == 0 || err_set(err, ERR_DAMAGED, "its checksum (SHA-256) is another one"));
}

static bool unpack(Unpack *u, DumpInfo *ret, const DbPatience *patience, Err *err)
{
    char sha256[DIGEST_TEXT], found[DIGEST_TEXT];
    (void)crypto_hash_sha256_init(&u->all);
    if (!read_line(u, ret, sha256, err))
        return false;
    u->bytes_max = ret->database_bytes;
    if (!inflate(u, patience, err) || !check_end(u, err))
        return false;
    hex_of(&u->database, found);
    return (u->bytes == ret->database_bytes && str_eq(found, sha256)) ||
        err_set(err, ERR_DAMAGED, "the database in it is not the one that was written (SHA-256)");
}

bool dump_file_unpack(const char *path, int fd, DumpInfo *ret, const DbPatience *patience, Err *err)
{
    struct stat st;
    DumpInfo info = {0};
    cleanup_close int from = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (from < 0)
        return err_errno(err, errno, "cannot open %s", path);
    if (fstat(from, &st) != 0 || !S_ISREG(st.st_mode))
        return err_set(err, ERR_INVALID, "%s is not a regular file", path);
    if ((uint64_t)st.st_size < END_BYTES)
        return too_short(err) || err_context(err, "%s", path);
    Unpack u = {.from = from, .to = fd, .left = (uint64_t)st.st_size - END_BYTES};
    bool ok = unpack(&u, &info, patience, err);
    (void)ZSTD_freeDCtx(u.z);
    free(u.in);
    if (!ok)
        return err_context(err, "%s", path);
    *ret = info;
    return true;
}
