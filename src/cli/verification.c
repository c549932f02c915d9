#include "cli/verification.h"

static bool report(Cli *c, const char *backup_id, const char *result, const json_t *disk, const uint64_t *offset,
                   const char *details, json_t **ret_answer, Err *err)
{
    cleanup_json json_t *body = json_object();
    cleanup_free char *path = cli_path("backups", backup_id, "verification", err);
    if (!body)
        return err_no_memory(err);
    return path && codec_json_set_text(body, "result", result, err) &&
        (!disk || codec_json_set_u64(body, "disk_id", cli_u64(disk, "disk_id"), err)) &&
        (!offset || codec_json_set_u64(body, "offset", *offset, err)) &&
        (!details || codec_json_set_text(body, "details", details, err)) &&
        cli_send(c, "POST", path, body, true, ret_answer, err);
}

bool verification_report(Cli *c, const char *backup_id, const char *result, const json_t *disk, const uint64_t *offset,
                         const char *details, json_t **ret_answer)
{
    Err err = ERR_INIT;
    if (report(c, backup_id, result, disk, offset, details, ret_answer, &err))
        return true;
    cli_note("the hub was not told that %s is %s: %s", backup_id, result, err.details);
    return false;
}
