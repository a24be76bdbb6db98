/* Private to cmd_volume*.c. */
#ifndef COHORT_CLI_CMD_VOLUME_H
#define COHORT_CLI_CMD_VOLUME_H

#include "cli/show.h"

int volume_changed(struct cli *c);
int volume_export(struct cli *c);
int volume_import(struct cli *c);

#endif
