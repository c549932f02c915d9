#include "unit.h"

#include "source/qemu/bitmaps.h"

#include <inttypes.h>

#define REPO "11111111-1111-4111-8111-111111111111"
#define VM "22222222-2222-4222-8222-222222222222"
#define LINE "33333333-3333-4333-8333-333333333333"
#define OTHER "44444444-4444-4444-8444-444444444444"
#define FRESH "55555555-5555-4555-8555-555555555555"
#define NAME(line, n) "sendense." REPO "." VM "." line "." #n

static const BitmapsOwner owner = {.repository = REPO, .vm = VM};

typedef struct Case {
    const char *what;
    // node/place[flags]…: r recording, i inconsistent, b busy, z empty, o another line, x of another run
    const char *bitmaps;
    const char *parent; // change ID; LINE: of place `at`
    uint64_t at;
    bool untracked;
    uint64_t size;    // 0: as the parent's
    const char *lost; // a word of the reason; NULL: tracked
    uint64_t last;    // place
} Case;

// As a run made it, and another one.
static uint64_t sequence(uint64_t place, bool other)
{
    return place ? place << BITMAPS_PLACE_SHIFT | (other ? 8 : 7) : 0;
}

// "top/1r top/2" -> the answer of query-named-block-nodes.
static json_t *nodes_of(const char *text)
{
    json_t *nodes = json_array();
    char copy[512];
    (void)snprintf(copy, sizeof(copy), "%s", text);
    for (char *save = NULL, *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        char *slash = strchr(word, '/');
        *slash = '\0';
        char *end = NULL;
        unsigned long place = strtoul(slash + 1, &end, 10);
        char name[BITMAPS_NAME];
        bitmaps_name(&owner, strchr(end, 'o') ? OTHER : LINE, sequence(place, strchr(end, 'x') != NULL), name);
        json_t *bitmap = json_pack("{s:s, s:b, s:b, s:b, s:i, s:i}", "name", name, "recording",
                                   strchr(end, 'r') != NULL, "persistent", 1, "busy", strchr(end, 'b') != NULL,
                                   "granularity", 65536, "count", strchr(end, 'z') ? 0 : 65536);
        if (strchr(end, 'i'))
            (void)json_object_set_new(bitmap, "inconsistent", json_true());
        (void)json_array_append_new(nodes, json_pack("{s:s, s:[o]}", "node-name", word, "dirty-bitmaps", bitmap));
    }
    return nodes;
}

static Line resolve(const Case *c)
{
    Err err = ERR_INIT;
    BitmapVec v = {0};
    json_t *nodes = nodes_of(c->bitmaps);
    char parent[CHANGEID_MAX];
    (void)snprintf(parent, sizeof(parent), LINE "/%" PRIu64, sequence(c->at, false));
    assert_ok(bitmaps_collect(nodes, &owner, &v, &err), &err);
    LineInput in = {.all = &v,
                    .node = "top",
                    .parent_change_id = c->at ? parent : c->parent,
                    .parent_tracking = !c->untracked,
                    .size = c->size ? c->size : 1 << 20,
                    .parent_size = 1 << 20,
                    .fresh = FRESH};
    Line l;
    bitmaps_resolve(&in, &l);
    bitmap_vec_clear(&v);
    json_decref(nodes);
    return l;
}

static void test_resolution(void **state)
{
    (void)state;
    static const Case cases[] = {
        {"the parent's alone", "top/0 top/3r", .at = 3, .last = 3},
        {"failed runs after it", "top/5r top/0 top/3 top/4", .at = 3, .last = 5},
        {"older ones do not matter", "top/0 top/1 top/2i top/3r", .at = 3, .last = 3},
        {"another line does not matter", "top/0 top/3r top/9oi below/7o", .at = 3, .last = 3},
        {"no parent", "top/0 top/3r", .lost = ""},
        {"another run's of the same place", "top/0 top/3xr", .at = 3, .lost = "went back to an earlier state"},
        {"another run's beside it", "top/0 top/3 top/3xr", .at = 3, .lost = "twice"},
        {"another run's of a later place", "top/0 top/3 top/4xr", .at = 3, .last = 4},
        {"an earlier version's", "top/0", LINE "/3", .lost = "earlier version"},
        {"parent not tracked", "top/0 top/3r", .at = 3, .untracked = true, .lost = "not tracked"},
        {"a hypervisor's own change ID", "top/0 top/3r", "52 de ad/17", .lost = "change ID"},
        {"no sequence 0", "top/0r", LINE "/0", .lost = "change ID"},
        {"resized", "top/0 top/3r", .at = 3, .size = 2 << 20, .lost = "resized from"},
        {"nothing there", "", .at = 3, .lost = "missing"},
        {"parent's missing", "top/0 top/4r", .at = 3, .lost = "3 is missing"},
        {"a gap", "top/0 top/3 top/5r", .at = 3, .lost = "4 is missing"},
        {"twice", "top/0 top/3r below/3r", .at = 3, .lost = "twice"},
        {"below a snapshot", "below/0 below/3r", .at = 3, .lost = "snapshot"},
        {"one below a snapshot", "top/0 below/3 top/4r", .at = 3, .lost = "snapshot"},
        {"a later one elsewhere", "top/0 top/3r below/4r", .at = 3, .lost = "3 was enabled"},
        {"inconsistent", "top/0 top/3i", .at = 3, .lost = "inconsistent"},
        {"one inconsistent", "top/0 top/3 top/4i top/5r", .at = 3, .lost = "4 is inconsistent"},
        {"busy", "top/0 top/3rb", .at = 3, .lost = "in use"},
        {"disabled by somebody", "top/0 top/3", .at = 3, .lost = "disabled by somebody"},
        {"enabled by somebody", "top/0 top/3r top/4r", .at = 3, .lost = "enabled by somebody"},
        {"no witness", "top/3r", .at = 3, .lost = "may have been resized"},
        {"witness without its bit", "top/0z top/3r", .at = 3, .lost = "may have been resized"},
        {"witness inconsistent", "top/0i top/3r", .at = 3, .lost = "may have been resized"},
        {"witness enabled by somebody", "top/0r top/3r", .at = 3, .lost = "may have been resized"},
        {"witness elsewhere", "below/0 top/3r", .at = 3, .lost = "may have been resized"},
        {"too many", "top/0 top/1 top/20r", .at = 1, .lost = "19 backups in a row"},
        {"no more places", "top/0 top/4194303r", .at = 4194303, .lost = "no more numbers"},
        {"a huge place elsewhere", "top/0 top/1r below/8388607", .at = 1, .lost = "in a row"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const Case *c = &cases[i];
        Line l = resolve(c);
        if (c->lost) {
            if (l.tracked || !strstr(l.lost, c->lost) || (!*c->lost && *l.lost))
                fail_msg("%s: tracked %d, lost \"%s\"", c->what, l.tracked, l.lost);
            assert_string_equal(l.uuid, FRESH);
            assert_int_equal(l.len, 0);
            assert_int_equal(l.next, UINT64_C(1) << BITMAPS_PLACE_SHIFT | UINT64_C(0x5555555555));
        } else {
            if (!l.tracked)
                fail_msg("%s: %s", c->what, l.lost);
            assert_string_equal(l.uuid, LINE);
            assert_int_equal(l.len, c->last - c->at + 1);
            assert_int_equal(l.bitmaps[0], sequence(c->at, false));
            assert_int_equal(l.bitmaps[l.len - 1], sequence(c->last, l.len > 1 && strchr(c->bitmaps, 'x') != NULL));
            assert_int_equal(l.next, (c->last + 1) << BITMAPS_PLACE_SHIFT | UINT64_C(0x5555555555));
        }
    }
}

// Safety rule 12: only names of this repository and VM are ours.
static void test_names_of_others(void **state)
{
    (void)state;
    static const char *const theirs[] = {
        "mine",
        "sendense." REPO "." VM,
        "sendense." REPO "." VM ".",
        "sendense." REPO "." VM "." LINE,
        "sendense." REPO "." VM "." LINE ".",
        "sendense." REPO "." VM "." LINE ".x",
        "sendense." REPO "." VM "." LINE ".1x",
        "sendense." REPO "." VM "." LINE ".01",
        "sendense." REPO "." VM "." LINE ".-1",
        "sendense." REPO "." VM "." LINE ".9223372036854775808",
        "sendense." REPO "." VM ".33333333-3333-4333-8333-33333333333.1",
        "sendense." VM "." REPO "." LINE ".1",
        "sendense." REPO "." OTHER "." LINE ".1",
        "xsendense." REPO "." VM "." LINE ".1",
    };
    json_t *list = json_array();
    for (size_t i = 0; i < ARRAY_LEN(theirs); i++)
        (void)json_array_append_new(list, json_pack("{s:s, s:i}", "name", theirs[i], "count", 0));
    (void)json_array_append_new(list, json_pack("{s:i}", "count", 0)); // a job's own has no name
    (void)json_array_append_new(list, json_pack("{s:s, s:i}", "name", NAME(LINE, 12), "count", 5));
    (void)json_array_append_new(list, json_pack("{s:s}", "name", "sendense." REPO "." VM ".tmp.x"));
    json_t *nodes = json_pack("[{s:s, s:o}, {s:s}]", "node-name", "n", "dirty-bitmaps", list, "node-name", "m");
    BitmapVec v = {0};
    Err err = ERR_INIT;
    assert_ok(bitmaps_collect(nodes, &owner, &v, &err), &err);
    assert_int_equal(v.len, 2);
    assert_string_equal(v.items[0].line, LINE);
    assert_int_equal(v.items[0].sequence, 12);
    assert_int_equal(v.items[0].count, 5);
    assert_string_equal(v.items[1].line, "");
    bitmap_vec_clear(&v);
    json_decref(nodes);
}

static void test_answers_that_are_none(void **state)
{
    (void)state;
    static const char *const wrong[] = {"{}", "[{}]", "[1]", "[{\"node-name\": 5}]"};
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        BitmapVec v = {0};
        Err err = ERR_INIT;
        json_t *nodes = json_loads(wrong[i], 0, NULL);
        assert_fails(bitmaps_collect(nodes, &owner, &v, &err), &err, ERR_PROTOCOL);
        json_decref(nodes);
    }
    BitmapVec v = {0};
    Err err = ERR_INIT;
    json_t *odd =
        json_loads("[{\"node-name\": \"n\", \"dirty-bitmaps\": {\"name\": 1}}, {\"node-name\": \"m\", "
                   "\"dirty-bitmaps\": [5, {\"name\": []}, {\"name\": \"" NAME(LINE, 1) "\", \"count\": -5}]}]",
                   0, NULL);
    assert_ok(bitmaps_collect(odd, &owner, &v, &err), &err);
    assert_int_equal(v.len, 1);
    assert_int_equal(v.items[0].count, 0);
    bitmap_vec_clear(&v);
    json_decref(odd);
}

// What cleaning up may take: by line, sequence and repository.
static void test_what_a_later_backup_needs(void **state)
{
    (void)state;
    BitmapsNeed need = {.repository = owner.repository, .change_id = LINE "/3298534883335"};
    BitmapsNeed elsewhere = {.repository = OTHER, .change_id = LINE "/3298534883335"};
    BitmapsNeed opaque = {.repository = owner.repository, .change_id = "52 0e/446"};
    Bitmap b = {.line = LINE};
    (void)snprintf(b.repository, sizeof(b.repository), "%s", owner.repository);
    static const struct {
        uint64_t place;
        bool needed;
    } cases[] = {{0, true}, {1, false}, {2, false}, {3, true}, {4, true}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        b.sequence = sequence(cases[i].place, false);
        assert_int_equal(bitmaps_is_needed(&b, &need, 1), cases[i].needed);
        assert_false(bitmaps_is_needed(&b, &elsewhere, 1));
        assert_false(bitmaps_is_needed(&b, NULL, 0));
        assert_true(bitmaps_is_needed(&b, &opaque, 1)); // nobody knows what it needs
    }
    (void)snprintf(b.line, sizeof(b.line), "%s", OTHER);
    assert_false(bitmaps_is_needed(&b, &need, 1));
    b.line[0] = '\0'; // a temporary one
    assert_false(bitmaps_is_needed(&b, &opaque, 1));
}

static void test_any_repository(void **state)
{
    (void)state;
    BitmapVec v = {0};
    Err err = ERR_INIT;
    BitmapsOwner of_vm = {.vm = owner.vm}, theirs = {.repository = OTHER, .vm = owner.vm};
    char name[BITMAPS_NAME], temporary[BITMAPS_NAME];
    bitmaps_name(&theirs, LINE, 7, name);
    bitmaps_temporary(&theirs, "x", temporary);
    json_t *nodes = json_pack("[{s:s, s:[{s:s}, {s:s}, {s:s}]}]", "node-name", "n", "dirty-bitmaps", "name", name,
                              "name", temporary, "name", "sendense..x");
    assert_ok(bitmaps_collect(nodes, &of_vm, &v, &err), &err);
    assert_int_equal(v.len, 2);
    assert_string_equal(v.items[0].repository, OTHER);
    assert_int_equal(v.items[0].sequence, 7);
    assert_string_equal(v.items[1].line, "");
    bitmap_vec_clear(&v);
    assert_ok(bitmaps_collect(nodes, &owner, &v, &err), &err);
    assert_int_equal(v.len, 0);
    bitmap_vec_clear(&v);
    json_decref(nodes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resolution),
        cmocka_unit_test(test_names_of_others),
        cmocka_unit_test(test_answers_that_are_none),
        cmocka_unit_test(test_what_a_later_backup_needs),
        cmocka_unit_test(test_any_repository),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
