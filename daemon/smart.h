/* What a drive says of its own health (SMART), as `smartctl --json` tells it. Pure but for smart_devices(), which reads sysfs. */
#ifndef COHORT_DAEMON_SMART_H
#define COHORT_DAEMON_SMART_H

#include <stdbool.h>
#include <stddef.h>
#include "base/err.h"

#define SMART_DEVICES_MAX 4

enum smart_state { SMART_UNKNOWN, SMART_OK, SMART_WARNING, SMART_FAILING };

struct smart {
    enum smart_state state;
    char text[256]; /* "INTEL SSDPE2KX080T8: 31 °C, 4 % of its life used; …", or why nothing is known */
};

/* Judges one drive. Failing: the drive says so itself (overall status, a critical warning, an attribute below its threshold).
 * Warning: sectors that it had to give up or cannot read, media errors, little life or spare left; disks with any of these
 * fail many times more often than others. Unknown: the device has no SMART or it could not be read. E_INVAL: not what
 * smartctl writes. */
MUST_CHECK int smart_parse(const char *json, size_t len, struct smart *ret, struct err *e);
/* "", ok, warning, failing: Disk.smart_state. */
const char *smart_state_name(enum smart_state s);
/* Several drives behind one disk: the worst state, the texts one after the other. */
void smart_merge(struct smart *into, const struct smart *other);

/* Names of the drives ("sda", "nvme0n1") that hold `path`, a directory or a block device: through partitions, dm and md. `sysfs`
 * is "/sys" but in tests. Returns how many; 0: not on a drive of this machine that can be told. */
int smart_devices(const char *sysfs, const char *path, char (*ret_names)[32]);
/* The same for the device `major:minor`. */
int smart_drives_of(const char *sysfs, unsigned major, unsigned minor, char (*ret_names)[32]);

#endif
