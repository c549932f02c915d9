// Writes the fuzz targets' binary seeds, from small points of the real engine: fuzz-seeds FOLDER. One has subclusters,
// and is made by QEMU.
#include "base/file.h"
#include "base/proc.h"
#include "base/str.h"
#include "codec/zframe.h"
#include "image/journal.h"
#include "image/record.h"
#include "image/writer.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define SEED UINT64_C(0x1234567890abcdef)
#define PIECE_MAX 32768

static const char *corpus;

static void must(bool ok, const Err *err)
{
    if (ok)
        return;
    (void)fprintf(stderr, "fuzz-seeds: %s\n", err->details);
    exit(1);
}

// <corpus>/<target>/<name>
static void put(const char *target, const char *name, const void *p, size_t n)
{
    Err err = ERR_INIT;
    char path[1024];
    (void)snprintf(path, sizeof(path), "%s/%s", corpus, target);
    must(file_mkdir_p(path, 0755, &err), &err);
    (void)snprintf(path, sizeof(path), "%s/%s/%s", corpus, target, name);
    cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    must(fd >= 0 && file_write(fd, p, n, &err), &err);
}

static void put32(uint8_t *p, size_t v)
{
    for (size_t i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

// ---- points

typedef struct Layer {
    char image[64], hashes[64];
} Layer;

static void remove_layer(const Layer *l)
{
    Err err = ERR_INIT;
    must(file_unlink(l->image, &err) && file_unlink(l->hashes, &err), &err);
}

static Layer layer_named(const char *name)
{
    Layer l;
    (void)snprintf(l.image, sizeof(l.image), "%s.qcow2", name);
    (void)snprintf(l.hashes, sizeof(l.hashes), "%s.hashes", name);
    remove_layer(&l); // of an earlier run that ended half way
    return l;
}

// Clusters of the disk are 'a', 'b', … : as many bytes of it as its place counts, the rest zeros; '.': zeros.
static Layer write_layer(const char *name, const HashGeometry *geo, const Layer *base, const char *clusters,
                         unsigned odd, unsigned compression)
{
    Err err = ERR_INIT;
    Layer l = layer_named(name);
    ChainHashes *parent = NULL;
    ChainLayerPath below = {.hashes = base ? base->hashes : NULL};
    if (base)
        must(chain_hashes_open(&below, 1, geo, &parent, &err), &err);
    uint64_t size = strlen(clusters) * (uint64_t)geo->cluster_size - odd;
    WriterSpec spec = {.image_path = l.image,
                       .hashes_path = l.hashes,
                       .backing_name = base ? base->image : NULL,
                       .size = size,
                       .cluster_bits = (uint32_t)__builtin_ctz(geo->cluster_size),
                       .hash = geo->spec,
                       .mode = base ? DISK_COMPARE : DISK_FULL,
                       .parent = parent,
                       .compression = compression};
    Writer *w = NULL;
    HashesSummary summary;
    Hash digest;
    must(writer_open(&spec, &w, &err), &err);
    cleanup_free uint8_t *p = mem_calloc(geo->cluster_size, 1, &err);
    for (size_t i = 0; clusters[i]; i++) {
        uint64_t at = i * geo->cluster_size;
        memset(p, 0, geo->cluster_size);
        if (clusters[i] != '.')
            memset(p, clusters[i], (i + 1) * 8);
        must(writer_write(w, p, at, (uint32_t)MIN(size - at, geo->cluster_size), &err), &err);
    }
    must(writer_seal(w, NULL, &summary, &digest, &err), &err);
    writer_free(w);
    chain_hashes_free(parent);
    return l;
}

// Runs of bytes that are not zero, and what is shorter than a piece's own head between them.
static void add_pieces(StrBuf *b, const uint8_t *p, size_t n)
{
    Err err = ERR_INIT;
    for (size_t at = 0, end; at < n; at = end) {
        if (p[at] == 0) {
            end = at + 1;
            continue;
        }
        size_t last = at;
        for (end = at + 1; end < n && end - last < 8 && end - at < PIECE_MAX; end++)
            if (p[end] != 0)
                last = end;
        end = last + 1;
        uint8_t head[6];
        put32(head, at);
        head[4] = (uint8_t)(end - at);
        head[5] = (uint8_t)((end - at) >> 8);
        must(str_add_bytes(b, head, 6, &err) && str_add_bytes(b, p + at, end - at, &err), &err);
    }
}

// The input of image.c; the first layer's files are inputs of other targets, too.
static void put_point(const char *name, const Layer *tip, const Layer *full)
{
    Err err = ERR_INIT;
    StrBuf input = STR_BUF(1u << 20);
    uint8_t head[24] = {0};
    must(str_add_bytes(&input, head, sizeof(head), &err), &err);
    for (size_t i = 0; i < 2; i++) {
        const Layer *l = i == 0 ? tip : full;
        char *image, *hashes;
        size_t image_n, hashes_n;
        if (!l)
            continue;
        must(file_read(l->image, 1u << 20, &image, &image_n, &err), &err);
        must(file_read(l->hashes, 1u << 20, &hashes, &hashes_n, &err), &err);
        size_t before = input.len;
        add_pieces(&input, (const uint8_t *)image, image_n);
        put32(head + 12 * i, image_n);
        put32(head + 12 * i + 4, input.len - before);
        put32(head + 12 * i + 8, hashes_n);
        must(str_add_bytes(&input, hashes, hashes_n, &err), &err);
        if (i == 0) {
            uint8_t start[8 + 4096] = {0};
            start[5] = (uint8_t)(image_n >> 16), start[6] = (uint8_t)(image_n >> 8), start[7] = (uint8_t)image_n;
            memcpy(start + 8, image, 512);
            put("qcow2", name, start, 8 + 512);
            put("hashes", name, hashes, hashes_n);
        }
        free(image);
        free(hashes);
    }
    memcpy(input.s, head, sizeof(head));
    put("image", name, input.s, input.len);
    str_clear(&input);
}

static HashGeometry geometry(HashAlgorithm algorithm, uint32_t cluster_size)
{
    Err err = ERR_INIT;
    HashGeometry geo;
    HashSpec spec = {.algorithm = algorithm, .seed = SEED};
    must(hash_geometry_init(&geo, &spec, cluster_size, &err), &err);
    return geo;
}

// An increment of subclusters of 512 bytes on a full of ours: one of cluster 0 written, two of cluster 1 zeroed.
static Layer qemu_layer(const char *name, const HashGeometry *geo, const Layer *base, const char *clusters)
{
    Err err = ERR_INIT;
    Layer l = layer_named(name);
    char *out = NULL, *errors = NULL;
    int status = -1;
    const char *create[] = {"qemu-img", "create",    "-q", "-f",    "qcow2", "-o", "extended_l2=on,cluster_size=16k",
                            "-b",       base->image, "-F", "qcow2", l.image, NULL};
    const char *write[] = {"qemu-io", "-f", "qcow2", "-c", "write -P 7 512 512", "-c", "write -z 16384 1024",
                           l.image,   NULL};
    must(proc_run(create, NULL, 30000, 65536, &out, &errors, &status, &err) && status == 0, &err);
    free(out);
    free(errors);
    must(proc_run(write, NULL, 30000, 65536, &out, &errors, &status, &err) && status == 0, &err);
    free(out);
    free(errors);
    uint64_t size = strlen(clusters) * (uint64_t)geo->cluster_size;
    cleanup_free uint8_t *p = mem_calloc(geo->cluster_size, 1, &err), *marks = mem_calloc(geo->leaves, 1, &err);
    cleanup_free Hash *leaves = mem_calloc(geo->leaves, sizeof(Hash), &err);
    HashesSummary s = {.size = size, .stored_clusters = 2};
    for (size_t i = 0; i < geo->leaves; i++) {
        leaves[i] = geo->zero_leaf;
        if (i >= strlen(clusters))
            continue;
        memset(p, 0, geo->cluster_size);
        if (i != 1 && clusters[i] != '.')
            memset(p, clusters[i], (i + 1) * 8);
        if (i == 0)
            memset(p + 512, 7, 512);
        hash_bytes(&geo->spec, p, geo->cluster_size, &leaves[i]);
        marks[i] = i < 2 ? HASH_DATA : HASH_ABSENT;
    }
    HashesWriter *w = NULL;
    Hash node, digest;
    size_t image_n;
    char *image;
    must(file_read(l.image, 1u << 20, &image, &image_n, &err), &err);
    free(image);
    s.image_bytes = image_n;
    hash_node(geo, leaves, &node);
    hash_root(geo, size, &node, 1, &s.root);
    must(hashes_writer_open(l.hashes, geo, size, &w, &err) && hashes_writer_add(w, 0, marks, leaves, &err) &&
             hashes_writer_end(w, &node, &s, &digest, &err),
         &err);
    hashes_writer_free(w);
    return l;
}

static void points(void)
{
    HashGeometry small = geometry(HASH_XXH3_128, 4096), sha = geometry(HASH_SHA256, 4096);
    HashGeometry large = geometry(HASH_XXH3_128, 16384);
    Layer full = write_layer("base", &small, NULL, "ab.d", 95, 0);
    put_point("full", &full, NULL);
    Layer tip = write_layer("tip", &small, &full, "a.cde", 1, 0);
    put_point("chain", &tip, &full);
    remove_layer(&tip);
    remove_layer(&full);
    full = write_layer("base", &sha, NULL, "ab", 0, 0);
    put_point("sha256", &full, NULL);
    remove_layer(&full);
    full = write_layer("base", &large, NULL, "ab.d", 0, 3);
    put_point("zstd", &full, NULL);
    tip = qemu_layer("tip", &large, &full, "ab.d");
    put_point("subclusters", &tip, &full);
    remove_layer(&tip);
    remove_layer(&full);
}

// ---- the rest

static void frames(void)
{
    Err err = ERR_INIT;
    ZframePress *z = NULL;
    uint8_t in[4096], out[1 + 4096] = {3}; // of 4096 bytes
    for (size_t i = 0; i < sizeof(in); i++)
        in[i] = (uint8_t)(i % 97 < 40 ? i / 64 : 0);
    must(zframe_press_new(3, &z, &err), &err);
    put("zframe", "frame", out, 1 + zframe_press(z, in, sizeof(in), out + 1, 4096));
    zframe_press_free(z);
    put("zframe", "plain", in, 1024);
}

static void records(void)
{
    Err err = ERR_INIT;
    HashSpec spec = {.algorithm = HASH_XXH3_128, .seed = SEED};
    RepositoryInfo info = {.format = 1, .cluster_size = 65536, .hash = spec, .created_us = 1700000000000000};
    (void)snprintf(info.uuid, sizeof(info.uuid), "11111111-2222-4333-8444-555555555555");
    char *text;
    must(repository_info_encode(&info, &text, &err), &err);
    put("record", "repository", text, strlen(text));
    free(text);
    Hash h;
    hash_bytes(&spec, "x", 1, &h);
    RecordDisk disks[2] = {
        {.disk_key = "scsi0:0",
         .disk_id = 2000,
         .label = "first",
         .backing_identity = "/dev/x",
         .size = 1000001,
         .mode = DISK_TRACKED,
         .reason_text = "",
         .change_id = "52 d0 eb 97/446",
         .tracking = true,
         .parent_backup_id = "backup-web-1700000000",
         .image = "backup-web-1700000060-incr.qcow2",
         .hashes = "backup-web-1700000060-incr.hashes",
         .backing_name = "backup-web-1700000000-full.qcow2",
         .chain_length = 2,
         .image_bytes = 393216,
         .stored_bytes = 65536,
         .transferred_bytes = 65536,
         .changed_bytes = 4096,
         .root = h,
         .metadata = h,
         .hashes_digest = h},
        {.disk_key = "scsi0:1",
         .disk_id = 2001,
         .disk_no = 1,
         .label = "",
         .backing_identity = "",
         .size = 512,
         .mode = DISK_FULL,
         .reason = CHAIN_NEW_DISK,
         .reason_text = "the parent does not hold it",
         .change_id = "52d0eb97-27ad-4c3d-874a-c34e85f2ea95/1",
         .image = "backup-web-1700000060-full.qcow2",
         .hashes = "backup-web-1700000060-full.hashes",
         .chain_length = 1,
         .root = h,
         .metadata = h,
         .hashes_digest = h},
    };
    Record r = {.backup_id = "backup-web-1700000060",
                .vm_id = "52d0eb97-27ad-4c3d-874a-c34e85f2ea95",
                .vm_name = "web",
                .source_type = "qemu",
                .repository_uuid = info.uuid,
                .context = "ctx-web-20260102030405",
                .parent_backup_id = "backup-web-1700000000",
                .sequence = 7,
                .requested_type = BACKUP_INCREMENTAL,
                .type = BACKUP_INCREMENTAL,
                .consistency = "crash",
                .partial = true,
                .left_out = "scsi0:3",
                .created_us = 1700000060123456,
                .completed_us = 1700000070000000,
                .disks = disks,
                .disks_len = 2};
    must(record_encode(&r, &spec, &text, &err), &err);
    put("record", "record", text, strlen(text));
    free(text);
}

// Three records: of every kind of item, of none, and of one.
static void journal(void)
{
    Err err = ERR_INIT;
    Journal *j = NULL;
    char *text = NULL;
    size_t n;
    const JournalSpec spec = {.hash = {.algorithm = HASH_XXH3_128, .seed = SEED},
                              .size = 256 * 4096 + 512,
                              .cluster_size = 4096,
                              .mode = DISK_FULL};
    const JournalItem items[] = {
        {.first = 3, .count = 1, .kind = JOURNAL_CLUSTER, .entry = 0x8000000000050000, .leaf.bytes = {1, 2, 3}},
        {.first = 4, .count = 100, .kind = JOURNAL_NOTHING},
        {.first = 104, .count = 2, .kind = JOURNAL_ZERO},
        {.first = 256, .count = 1, .kind = JOURNAL_PART, .entry = 0x8000000000051000, .leaf.bytes = {9}},
    };
    must(journal_create("journal", &spec, &j, &err), &err);
    must(journal_append(j, items, 4, 0x60000, &err) && journal_append(j, items, 0, 0x60000, &err) &&
             journal_append(j, items, 1, 0x61000, &err),
         &err);
    journal_free(j);
    must(file_read("journal", 1u << 20, &text, &n, &err), &err);
    put("journal", "records", text, n);
    put("journal", "torn", text, n - 5);
    free(text);
}

int main(int argc, char **argv)
{
    Err err = ERR_INIT;
    char *real = NULL, scratch[] = "/tmp/sendense-seeds-XXXXXX";
    must(argc == 2 || err_set(&err, ERR_USAGE, "one argument: the corpus's folder"), &err);
    must(file_mkdir_p(argv[1], 0755, &err) && file_realpath(argv[1], &real, &err), &err);
    corpus = real;
    // The names of the layers are relative, as backing files' are.
    must((mkdtemp(scratch) && chdir(scratch) == 0) || err_errno(&err, 2, "%s", scratch), &err);
    points();
    frames();
    records();
    journal();
    must(file_remove_tree(scratch, &err), &err);
    free(real);
    return 0;
}
