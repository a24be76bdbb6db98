/* Private to cmd_vm*.c. */
#ifndef COHORT_CLI_CMD_VM_H
#define COHORT_CLI_CMD_VM_H

#include "cli/show.h"

int vm_start(struct cli *c);
int vm_stop(struct cli *c);
int vm_kill(struct cli *c);
int vm_migrate(struct cli *c);

#endif
