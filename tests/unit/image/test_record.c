// Commit record and repository.json: what was written comes back, and nothing else gets in.
#include "image/record.h"

#include "base/str.h"
#include "codec/json.h"
#include "image/layout.h"
#include "unit.h"

static const HashSpec xxh = {.algorithm = HASH_XXH3_128, .seed = UINT64_C(0xfedcba9876543210)};
static const HashSpec sha = {.algorithm = HASH_SHA256, .seed = 1};

static char *dup(const char *s)
{
    char *copy = strdup(s);
    assert_non_null(copy);
    return copy;
}

static Hash some_hash(const HashSpec *spec, const char *text)
{
    Hash h;
    hash_bytes(spec, text, strlen(text), &h);
    return h;
}

// An increment of two disks, one of them new.
static Record sample(const HashSpec *spec)
{
    Record r = {
        .backup_id = dup("backup-Büro \"1\"-1700000060"),
        .vm_id = dup("52d0eb97-27ad-4c3d-874a-c34e85f2ea95"),
        .vm_name = dup("Büro \"1\""),
        .source_type = dup("qemu"),
        .repository_uuid = dup("11111111-2222-4333-8444-555555555555"),
        .context = dup("ctx-B-ro--1--52d0eb97-20260102030405"),
        .parent_backup_id = dup("backup-Büro \"1\"-1700000000"),
        .sequence = 9007199254740993,
        .requested_type = BACKUP_INCREMENTAL,
        .type = BACKUP_INCREMENTAL,
        .reason = CHAIN_NONE,
        .consistency = dup("crash"),
        .consistency_detail = dup("the agent did not answer"),
        .partial = true,
        .left_out = dup("scsi0:3"),
        .created_us = 1700000060123456,
        .completed_us = 1700000070000000,
    };
    r.disks = calloc(2, sizeof *r.disks);
    assert_non_null(r.disks);
    r.disks_len = 2;
    r.disks[0] = (RecordDisk){
        .disk_key = dup("scsi0:0"),
        .disk_id = 2000,
        .disk_no = 0,
        .label = dup("Platte\n1"),
        .backing_identity = dup("/dev/x"),
        .size = 1000001,
        .mode = DISK_TRACKED,
        .reason = CHAIN_NONE,
        .reason_text = dup(""),
        .change_id = dup("52 d0 eb 97/446"),
        .tracking = true,
        .parent_backup_id = dup("backup-Büro \"1\"-1700000000"),
        .image = dup("backup-B-ro--1--52d0eb97-1700000060-incr.qcow2"),
        .hashes = dup("backup-B-ro--1--52d0eb97-1700000060-incr.hashes"),
        .backing_name = dup("backup-B-ro--1--52d0eb97-1700000000-full.qcow2"),
        .chain_length = 2,
        .image_bytes = 393216,
        .stored_bytes = 65536,
        .transferred_bytes = 65536,
        .changed_bytes = 4096,
        .areas = 7,
        .area_bytes = 4097,
        .read_bytes = 70000,
        .audit = {.unchanged = 15, .checked = 14},
        .root = some_hash(spec, "root"),
        .metadata = some_hash(spec, "metadata"),
        .hashes_digest = some_hash(spec, "digest"),
    };
    r.disks[1] = (RecordDisk){
        .disk_key = dup("scsi0:1"),
        .disk_id = 2001,
        .disk_no = 1,
        .label = dup(""),
        .backing_identity = dup(""),
        .size = DISK_SIZE_MAX,
        .mode = DISK_FULL,
        .reason = CHAIN_NEW_DISK,
        .reason_text = dup("the parent does not hold it"),
        .change_id = dup("52d0eb97-27ad-4c3d-874a-c34e85f2ea95/1"),
        .image = dup("backup-B-ro--1--52d0eb97-1700000060-full.qcow2"),
        .hashes = dup("backup-B-ro--1--52d0eb97-1700000060-full.hashes"),
        .chain_length = 1,
        .root = some_hash(spec, "root 1"),
        .metadata = some_hash(spec, "metadata 1"),
        .hashes_digest = some_hash(spec, "digest 1"),
    };
    return r;
}

static void round_trip(void **state)
{
    (void)state;
    const HashSpec *const specs[] = {&xxh, &sha};
    for (size_t i = 0; i < 2; i++) {
        Err err = ERR_INIT;
        Record r = sample(specs[i]), back;
        char *text, *again;
        assert_ok(record_encode(&r, specs[i], &text, &err), &err);
        assert_ok(record_decode(text, strlen(text), specs[i], &back, &err), &err);
        assert_string_equal(back.backup_id, r.backup_id);
        assert_string_equal(back.vm_name, r.vm_name);
        assert_true(back.sequence == 9007199254740993);
        assert_true(back.partial);
        assert_string_equal(back.left_out, "scsi0:3");
        assert_string_equal(back.consistency_detail, "the agent did not answer");
        assert_true(back.created_us == r.created_us && back.completed_us == r.completed_us);
        assert_int_equal(back.disks_len, 2);
        assert_string_equal(back.disks[0].label, "Platte\n1");
        assert_true(back.disks[0].tracking);
        assert_int_equal(back.disks[0].mode, DISK_TRACKED);
        assert_true(back.disks[0].areas == 7 && back.disks[0].area_bytes == 4097 && back.disks[0].read_bytes == 70000);
        assert_true(back.disks[0].audit.unchanged == 15 && back.disks[0].audit.checked == 14);
        assert_true(back.disks[1].audit.unchanged == 0 && back.disks[1].areas == 0);
        assert_string_equal(back.disks[0].backing_name, r.disks[0].backing_name);
        assert_true(hash_equal(&back.disks[0].root, &r.disks[0].root));
        assert_true(back.disks[1].size == DISK_SIZE_MAX);
        assert_null(back.disks[1].parent_backup_id);
        assert_null(back.disks[1].backing_name);
        assert_ok(record_encode(&back, specs[i], &again, &err), &err);
        assert_string_equal(text, again);
        free(text);
        free(again);
        record_clear(&r);
        record_clear(&back);
    }
}

static void must_refuse(const char *text, size_t n, const char *what, size_t at)
{
    Err err = ERR_INIT;
    Record r;
    if (record_decode(text, n, &xxh, &r, &err))
        fail_msg("%s at byte %zu went unseen", what, at);
    if (err.code != ERR_DAMAGED)
        fail_msg("%s at byte %zu: %s: %s", what, at, err_name(err.code), err.details);
}

// Also where the text stays valid JSON: white space, another digit, an escape.
static void every_flipped_bit_is_seen(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Record r = sample(&xxh);
    char *text;
    assert_ok(record_encode(&r, &xxh, &text, &err), &err);
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            text[i] ^= (char)(1u << bit);
            must_refuse(text, n, "a flipped bit", i);
            text[i] ^= (char)(1u << bit);
        }
    }
    char *other = malloc(n + 2);
    assert_non_null(other);
    for (size_t i = 0; i <= n; i++) {
        must_refuse(text, i == n ? n - 1 : i, "a cut", i);
        for (const char *c = " \n\t,0"; *c; c++) {
            memcpy(other, text, i);
            other[i] = *c;
            memcpy(other + i + 1, text + i, n - i);
            must_refuse(other, n + 1, "an inserted byte", i);
        }
    }
    free(other);
    Record back;
    assert_fails(record_decode(text, n, &sha, &back, &err), &err, ERR_DAMAGED);
    HashSpec seed = {.algorithm = HASH_XXH3_128, .seed = xxh.seed + 1};
    assert_fails(record_decode(text, n, &seed, &back, &err), &err, ERR_DAMAGED);
    free(text);
    record_clear(&r);
}

// What encode() makes of an object that somebody who knows the seed changed.
static char *reseal(json_t *o)
{
    Err err = ERR_INIT;
    char *text, digest[HASH_TEXT_MAX];
    Hash h;
    (void)json_object_del(o, "digest");
    assert_ok(codec_json_dump(o, &text, &err), &err);
    hash_bytes(&xxh, text, strlen(text), &h);
    hash_text(&xxh, &h, digest);
    free(text);
    assert_ok(codec_json_set_text(o, "digest", digest, &err), &err);
    assert_ok(codec_json_dump(o, &text, &err), &err);
    char *line = mem_printf(&err, "%s\n", text);
    assert_non_null(line);
    free(text);
    return line;
}

typedef struct Change {
    int disk; // -1: the record itself, or repository.json
    const char *key;
    const char *json; // NULL: removed
} Change;

static bool decode_record(const char *text, Err *err)
{
    Record r;
    bool ok = record_decode(text, strlen(text), &xxh, &r, err);
    if (ok)
        record_clear(&r);
    return ok;
}

static bool decode_info(const char *text, Err *err)
{
    RepositoryInfo i;
    return repository_info_decode(text, strlen(text), &i, err);
}

static void expect_after(bool (*decode)(const char *text, Err *err), const char *text, const Change *c, ErrCode code)
{
    Err err = ERR_INIT;
    json_t *o;
    assert_ok(codec_json_parse(text, strlen(text) - 1, RECORD_MAX_BYTES, &o, &err), &err);
    char *same = reseal(o); // else it would be the digest that is refused
    assert_string_equal(same, text);
    free(same);
    json_t *target = c->disk < 0 ? o : json_array_get(json_object_get(o, "disks"), (size_t)c->disk);
    if (c->json) {
        json_t *value = json_loads(c->json, JSON_DECODE_ANY, NULL);
        assert_non_null(value);
        assert_int_equal(json_object_set_new(target, c->key, value), 0);
    } else {
        assert_int_equal(json_object_del(target, c->key), 0);
    }
    char *line = reseal(o);
    if (decode(line, &err))
        fail_msg("disk %d: %s = %s was accepted", c->disk, c->key, c->json ? c->json : "(none)");
    if (err.code != code)
        fail_msg("disk %d: %s = %s: %s: %s", c->disk, c->key, c->json ? c->json : "(none)", err_name(err.code),
                 err.details);
    free(line);
    json_decref(o);
}

// One of the future, which holds what we do not know, is told apart from a damaged one.
static void expect_newer(bool (*decode)(const char *text, Err *err), const char *text)
{
    Err err = ERR_INIT;
    json_t *o;
    assert_ok(codec_json_parse(text, strlen(text) - 1, RECORD_MAX_BYTES, &o, &err), &err);
    assert_int_equal(json_object_set_new(o, "format", json_integer(2)), 0);
    assert_int_equal(json_object_set_new(o, "extra", json_true()), 0);
    char *line = reseal(o);
    assert_false(decode(line, &err));
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    free(line);
    json_decref(o);
}

static void hostile_members(void **state)
{
    (void)state;
    static const Change changes[] = {
        {-1, "backup_id", "\"\""},
        {-1, "backup_id", NULL},
        {-1, "backup_id", "7"},
        {-1, "vm_id", "\"x\""},
        {-1, "vm_name", "\"a\\u0001b\""},
        {-1, "vm_name", "\" \""},
        {-1, "repository_uuid", "\"11111111-2222-4333-8444-55555555555\""},
        {-1, "context", "\"../../etc\""},
        {-1, "context", "\"ctx-a/../../b-20260102030405\""},
        {-1, "parent_backup_id", "null"},
        {-1, "parent_backup_id", "\"backup-Büro \\\"1\\\"-1700000060\""},
        {-1, "sequence", "0"},
        {-1, "sequence", "-1"},
        {-1, "sequence", "1.5"},
        {-1, "type", "\"full\""},
        {-1, "type", "\"FULL\""},
        {-1, "reason", "\"because\""},
        {-1, "consistency", "\"perfect\""},
        {-1, "partial", "false"},
        {-1, "partial", "1"},
        {-1, "created_at", "null"},
        {-1, "created_at", "\"yesterday\""},
        {-1, "disks", "[]"},
        {-1, "disks", "{}"},
        {-1, "disks", "[7]"},
        {-1, "extra", "1"},
        {-1, "format", "0"},
        {0, "extra", "1"},
        {0, "disk_key", "\"\""},
        {0, "disk_key", "\"scsi0:1\""},
        {0, "disk_no", "1"},
        {0, "disk_no", "100000"},
        {0, "disk_id", "2001"},
        {0, "size", "0"},
        {0, "size", "72057594037927937"},
        {0, "mode", "\"full\""},
        {0, "mode", "\"compare2\""},
        {0, "chain_length", "1"},
        {0, "chain_length", "251"},
        {0, "chain_length", "0"},
        {-1, "completed_at", "\"1970-01-01T00:00:00.000000Z\""},
        {-1, "consistency_detail", "7"},
        {0, "parent_backup_id", "null"},
        {0, "parent_backup_id", "\"backup-other-1\""},
        {0, "image", "\"../backup-a-1-incr.qcow2\""},
        {0, "image", "\"/etc/passwd\""},
        {0, "image", "\"backup-B-ro--1--52d0eb97-1700000060-full.qcow2\""},
        {0, "image", "\"backup-B-ro--1--52d0eb97-1700000060-incr.qcow2.partial-ab\""},
        {0, "hashes", "\"backup-B-ro--1--52d0eb97-1700000061-incr.hashes\""},
        {0, "hashes", "\"..\""},
        {0, "backing_name", "\"/etc/hostname\""},
        {0, "backing_name", "\"backup-B-ro--1--52d0eb97-1700000060-incr.qcow2\""},
        {0, "backing_name", "null"},
        {0, "change_id", "\"\""},
        {0, "wrong_blocks", "1"}, // then it were compared
        {0, "checked_blocks", "16"},
        {0, "areas", "-1"},
        {1, "unchanged_blocks", "1"}, // a full has no audit
        {0, "root", "\"00\""},
        {0, "root", "\"zz\""},
        {0, "metadata", NULL},
        {0, "hashes_digest", "null"},
        {1, "backing_name", "\"backup-B-ro--1--52d0eb97-1700000000-full.qcow2\""},
        {1, "chain_length", "2"},
        {1, "tracking", "\"yes\""},
    };
    Err err = ERR_INIT;
    Record r = sample(&xxh);
    char *text;
    assert_ok(record_encode(&r, &xxh, &text, &err), &err);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++)
        expect_after(decode_record, text, &changes[i],
                     changes[i].disk < 0 && str_eq(changes[i].key, "format") ? ERR_UNSUPPORTED : ERR_DAMAGED);
    expect_newer(decode_record, text);
    free(text);
    record_clear(&r);
}

// What could not be read back is never written.
static void encode_refuses(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    char *text;
    Record r = sample(&xxh);
    free(r.disks[0].image);
    r.disks[0].image = dup("a/b.qcow2");
    assert_fails(record_encode(&r, &xxh, &text, &err), &err, ERR_INVALID);
    record_clear(&r);
    r = sample(&xxh);
    free(r.disks[1].change_id);
    r.disks[1].change_id = NULL;
    assert_fails(record_encode(&r, &xxh, &text, &err), &err, ERR_INVALID);
    record_clear(&r);
    r = sample(&xxh);
    free(r.disks[1].label);
    r.disks[1].label = dup("\xff");
    assert_fails(record_encode(&r, &xxh, &text, &err), &err, ERR_INVALID);
    record_clear(&r);
    r = sample(&xxh);
    r.disks[1].disk_no = LAYOUT_DISK_MAX + 1;
    assert_fails(record_encode(&r, &xxh, &text, &err), &err, ERR_INVALID);
    r.disks[1].disk_no = 1;
    free(r.parent_backup_id);
    r.parent_backup_id = dup("backup-a/b\n-1");
    assert_fails(record_encode(&r, &xxh, &text, &err), &err, ERR_INVALID);
    record_clear(&r);
    r = (Record){0};
    assert_fails(record_encode(&r, &xxh, &text, &err), &err, ERR_INVALID);
}

// As many disks as there may be, each with as much to say as it may.
static void too_large_a_record(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Record r = sample(&xxh);
    char *text, lines[4097], keys[RECORD_DISKS_MAX][16];
    RecordDisk *disks = calloc(RECORD_DISKS_MAX, sizeof *disks);
    assert_non_null(disks);
    memset(lines, '\n', 4096);
    lines[4096] = '\0';
    for (unsigned i = 0; i < RECORD_DISKS_MAX; i++) {
        disks[i] = r.disks[i == 0 ? 0 : 1];
        (void)snprintf(keys[i], sizeof keys[i], "scsi%u", i);
        disks[i].disk_key = keys[i];
        disks[i].disk_no = i;
        disks[i].disk_id = 2000 + i;
    }
    Record large = r;
    large.disks = disks;
    large.disks_len = RECORD_DISKS_MAX;
    assert_ok(record_encode(&large, &xxh, &text, &err), &err);
    free(text);
    for (unsigned i = 0; i < RECORD_DISKS_MAX; i++)
        disks[i].label = disks[i].reason_text = disks[i].backing_identity = lines;
    assert_fails(record_encode(&large, &xxh, &text, &err), &err, ERR_TOO_LARGE);
    free(disks);
    record_clear(&r);
}

static void decode_is_bounded(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    Record r;
    size_t n = RECORD_MAX_BYTES + 10;
    char *text = malloc(n);
    assert_non_null(text);
    memset(text, ' ', n);
    text[n - 1] = '\n';
    assert_fails(record_decode(text, n, &xxh, &r, &err), &err, ERR_DAMAGED);
    memset(text, '[', n - 1);
    assert_fails(record_decode(text, RECORD_MAX_BYTES, &xxh, &r, &err), &err, ERR_DAMAGED);
    assert_fails(record_decode(text, 0, &xxh, &r, &err), &err, ERR_DAMAGED);
    assert_fails(record_decode("\n", 1, &xxh, &r, &err), &err, ERR_DAMAGED);
    assert_fails(record_decode("[]\n", 3, &xxh, &r, &err), &err, ERR_DAMAGED);
    assert_fails(record_decode("{}\n", 3, &xxh, &r, &err), &err, ERR_DAMAGED);
    free(text);
}

static void repository_info(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    RepositoryInfo i = {.format = 1, .cluster_size = 65536, .hash = xxh, .created_us = 1700000000000000}, back;
    memcpy(i.uuid, "11111111-2222-4333-8444-555555555555", sizeof i.uuid);
    char *text;
    assert_ok(repository_info_encode(&i, &text, &err), &err);
    size_t n = strlen(text);
    assert_ok(repository_info_decode(text, n, &back, &err), &err);
    assert_string_equal(back.uuid, i.uuid);
    assert_true(back.hash.seed == i.hash.seed && back.hash.algorithm == i.hash.algorithm);
    assert_true(back.created_us == i.created_us && back.cluster_size == 65536 && !back.extended_l2);
    for (size_t at = 0; at < n; at++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            text[at] ^= (char)(1u << bit);
            if (repository_info_decode(text, n, &back, &err))
                fail_msg("a flipped bit at byte %zu went unseen", at);
            assert_int_equal(err.code, ERR_DAMAGED);
            err_clear(&err);
            text[at] ^= (char)(1u << bit);
        }
    }
    free(text);
    const uint32_t bad[] = {0, 512, 2048, 65535, 65537, 4u << 20};
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
        i.cluster_size = bad[b];
        assert_fails(repository_info_encode(&i, &text, &err), &err, ERR_INVALID);
    }
    i.cluster_size = 65536;
    i.created_us = 0;
    assert_fails(repository_info_encode(&i, &text, &err), &err, ERR_INVALID);
    i.created_us = 1;
    i.format = 2;
    assert_fails(repository_info_encode(&i, &text, &err), &err, ERR_UNSUPPORTED);
    // A hash that is not known yet, in a format that is not known yet: newer, not damaged.
    const char newer[] = "{\"digest\":\"00\",\"format\":2,\"hash_algorithm\":\"blake9\"}\n";
    assert_fails(repository_info_decode(newer, strlen(newer), &back, &err), &err, ERR_UNSUPPORTED);
}

// Safety rule 18: what repository.json says is looked at also where its digest is right.
static void hostile_info(void **state)
{
    (void)state;
    static const Change changes[] = {
        {-1, "uuid", "\"x\""},
        {-1, "uuid", "\"11111111-2222-4333-8444-55555555555g\""},
        {-1, "uuid", NULL},
        {-1, "cluster_size", "65537"},
        {-1, "cluster_size", "2048"},
        {-1, "cluster_size", "4194304"},
        {-1, "cluster_size", "\"65536\""},
        {-1, "cluster_size", NULL},
        {-1, "extended_l2", "1"},
        {-1, "hash_algorithm", "\"md5\""},
        {-1, "hash_algorithm", "\"sha256\""}, // the digest is of another kind then
        {-1, "hash_algorithm", NULL},
        {-1, "hash_seed", "\"fedcba987654321g\""},
        {-1, "hash_seed", "\"fedcba9876543211\""}, // as above
        {-1, "hash_seed", NULL},
        {-1, "created_at", "null"},
        {-1, "format", NULL},
        {-1, "format", "\"1\""},
        {-1, "extra", "1"},
    };
    Err err = ERR_INIT;
    RepositoryInfo i = {.format = 1, .cluster_size = 65536, .hash = xxh, .created_us = 1700000000000000};
    memcpy(i.uuid, "11111111-2222-4333-8444-555555555555", sizeof i.uuid);
    char *text;
    assert_ok(repository_info_encode(&i, &text, &err), &err);
    for (size_t n = 0; n < sizeof changes / sizeof *changes; n++)
        expect_after(decode_info, text, &changes[n], ERR_DAMAGED);
    expect_newer(decode_info, text);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),        cmocka_unit_test(every_flipped_bit_is_seen),
        cmocka_unit_test(hostile_members),   cmocka_unit_test(encode_refuses),
        cmocka_unit_test(decode_is_bounded), cmocka_unit_test(too_large_a_record),
        cmocka_unit_test(repository_info),   cmocka_unit_test(hostile_info),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
