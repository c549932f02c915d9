#include "source/source.h"

#include "base/str.h"
#include "source/file/file.h"
#include "source/qemu/qemu.h"
#include "source/vsphere/vsphere.h"

void source_disk_clear(SourceDisk *d)
{
    free(d->key);
    free(d->label);
    free(d->backing_identity);
    free(d->change_id);
    free(d->base_change_id);
    free(d->lost);
    free(d->token);
    *d = (SourceDisk){0};
}

const SourceOps *source_find(const char *type, Err *err)
{
    static const SourceOps *const all[] = {&source_file_ops, &source_qemu_ops, &source_vsphere_ops};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        if (str_eq(all[i]->type, type))
            return all[i];
    (void)err_set(err, ERR_INVALID, "there is no source of type \"%s\"; HINT: file, qemu or vsphere", type);
    return NULL;
}
