#include "source/qemu/spec.h"

#include "base/str.h"
#include "codec/json.h"
#include "wire/stream.h"

static bool read_freeze(const json_t *spec, QemuFreeze *ret, Err *err)
{
    static const char *const words[] = {[FREEZE_AUTO] = "auto", [FREEZE_OFF] = "off", [FREEZE_REQUIRE] = "require"};
    const char *word;
    if (!codec_json_text_opt(spec, "freeze", 16, &word, err))
        return false;
    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        if (str_eq(word ? word : "auto", words[i])) {
            *ret = (QemuFreeze)i;
            return true;
        }
    return err_set(err, ERR_INVALID, "freeze is \"%s\"; HINT: auto, off or require", word);
}

bool qemu_spec_read(const json_t *spec, QemuSpec *ret, Err *err)
{
    static const char *const known[] = {"type", "qmp", "agent", "freeze", "scratch", NULL};
    QemuSpec s = {.qmp = NULL};
    if (!codec_json_object(spec, "source", err) || !codec_json_only(spec, known, err) ||
        !codec_json_text(spec, "qmp", SOURCE_TEXT_MAX, &s.qmp, err) ||
        !codec_json_text_opt(spec, "agent", SOURCE_TEXT_MAX, &s.agent, err) ||
        !codec_json_text_opt(spec, "scratch", SOURCE_TEXT_MAX, &s.scratch, err) || !read_freeze(spec, &s.freeze, err))
        return false;
    if (!source_check_path("qmp", s.qmp, STREAM_PATH_MAX, err) ||
        (s.agent && !source_check_path("agent", s.agent, STREAM_PATH_MAX, err)) ||
        (s.scratch && !source_check_path("scratch", s.scratch, SOURCE_TEXT_MAX, err)))
        return false;
    if (s.freeze == FREEZE_REQUIRE && !s.agent)
        return err_set(err, ERR_INVALID, "freeze is \"require\", and there is no agent to do it");
    *ret = s;
    return true;
}
