/* What QEMU's monitor sends, and a machine specification from a peer: parsed or refused, nothing else. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include "compute/qemu/qmp_msg.h"
#include "compute/spec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct qmp_msg m;
    struct machine_spec s;
    if (qmp_msg_parse((const char *)data, size, &m, NULL) == E_OK)
        json_decref(m.root);
    if (machine_spec_parse((const char *)data, size, &s, NULL) == E_OK && machine_spec_check(&s, NULL) != E_OK)
        abort();
    return 0;
}
