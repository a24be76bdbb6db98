/* Frame header and bounded message decoding on arbitrary bytes. Byte 0 chooses the message type, 32 bytes are the header. */
#include <stddef.h>
#include <stdint.h>
#include "proto/control.pb-c.h"
#include "proto/frame.h"
#include "proto/migrate.pb-c.h"
#include "proto/rpc.h"
#include "proto/rpc_error.pb-c.h"
#include "proto/storage.pb-c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const ProtobufCMessageDescriptor *const types[] = {
        &cohort__control__heartbeat__descriptor, &cohort__control__ping__descriptor, &cohort__rpc__error__descriptor,
        &cohort__storage__write_req__descriptor, &cohort__storage__tail_rep__descriptor,
        &cohort__storage__versions_rep__descriptor, &cohort__storage__fence_req__descriptor, &cohort__storage__copy_req__descriptor,
        &cohort__storage__read_req__descriptor, &cohort__storage__versions_req__descriptor, &cohort__storage__tail_req__descriptor,
        &cohort__storage__commit_req__descriptor, &cohort__storage__drop_req__descriptor, &cohort__storage__key_rep__descriptor,
        &cohort__storage__changed_req__descriptor, &cohort__storage__changed_rep__descriptor, &cohort__migrate__prepare_req__descriptor,
        &cohort__migrate__guest_req__descriptor};
    struct frame f;
    if (size < 1 + FRAME_SIZE)
        return 0;
    if (frame_decode(data + 1, &f) && f.pb_len > RPC_PB_MAX)
        return 0;
    ProtobufCMessage *m =
        rpc_unpack(types[data[0] % (sizeof types / sizeof types[0])], data + 1 + FRAME_SIZE, size - 1 - FRAME_SIZE);
    rpc_unpack_free(m);
    return 0;
}
