#include "source/vsphere/spec.h"

#include "base/str.h"
#include "base/uuid.h"
#include "codec/json.h"
#include "domain/name.h"
#include "domain/vsphere.h"

static bool read_policies(const json_t *spec, VsphereSpec *s, Err *err)
{
    const char *quiesce, *unsupported, *unallocated;
    if (!codec_json_text_opt(spec, "quiesce", 16, &quiesce, err) ||
        !codec_json_text_opt(spec, "disks_unsupported", 16, &unsupported, err) ||
        !codec_json_text_opt(spec, "unallocated", 16, &unallocated, err))
        return false;
    if (quiesce && !str_eq(quiesce, "auto") && !str_eq(quiesce, "off") && !str_eq(quiesce, "require"))
        return err_set(err, ERR_INVALID, "quiesce is \"%s\"; HINT: auto, off or require", quiesce);
    if (unsupported && !str_eq(unsupported, "skip") && !str_eq(unsupported, "fail"))
        return err_set(err, ERR_INVALID, "disks_unsupported is \"%s\"; HINT: skip or fail", unsupported);
    if (unallocated && !str_eq(unallocated, "read") && !str_eq(unallocated, "zero"))
        return err_set(err, ERR_INVALID, "unallocated is \"%s\"; HINT: read or zero", unallocated);
    s->unallocated_zero = unallocated && str_eq(unallocated, "zero");
    s->quiesce = !quiesce || str_eq(quiesce, "auto") ? VSPHERE_QUIESCE_AUTO
        : str_eq(quiesce, "off")                     ? VSPHERE_QUIESCE_OFF
                                                     : VSPHERE_QUIESCE_REQUIRE;
    s->skip_unsupported = unsupported && str_eq(unsupported, "skip");
    return true;
}

bool vsphere_spec_read(const json_t *spec, VsphereSpec *ret, Err *err)
{
    static const char *const known[] = {"type",  "source",        "vm",   "quiesce", "disks_unsupported", "unallocated",
                                        "moref", "instance_uuid", "path", NULL};
    VsphereSpec s = {.source = NULL};
    if (!codec_json_object(spec, "source", err) || !codec_json_only(spec, known, err) ||
        !codec_json_text(spec, "source", NAME_MAX_BYTES, &s.source, err) || !name_check("source", s.source, err) ||
        !codec_json_text(spec, "vm", VSPHERE_PATH_MAX, &s.vm, err) || !vsphere_check_vm(s.vm, err) ||
        !codec_json_text_opt(spec, "moref", 64, &s.moref, err) ||
        !codec_json_text_opt(spec, "instance_uuid", UUID_TEXT, &s.instance_uuid, err) ||
        !codec_json_text_opt(spec, "path", VSPHERE_PATH_MAX, &s.path, err) || !read_policies(spec, &s, err))
        return false;
    if ((s.moref && !vsphere_is_moref(s.moref)) || (s.instance_uuid && !uuid_is_valid(s.instance_uuid)))
        return err_set(err, ERR_INVALID, "moref, instance_uuid and path are the hub's to give; leave them out");
    *ret = s;
    return true;
}
