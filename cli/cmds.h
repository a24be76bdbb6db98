/* The commands' tables, one per group; main.c lists them. */
#ifndef COHORT_CLI_CMDS_H
#define COHORT_CLI_CMDS_H

#include "cli/cli.h"

extern const struct cmd cmds_cluster[], cmds_node[], cmds_disk[], cmds_volume[], cmds_snapshot[], cmds_image[], cmds_vm[], cmds_network[], cmds_port[],
    cmds_task[], cmds_event[], cmds_token[], cmds_nbd_client[], cmds_host[], cmds_debug[], cmds_log[];

#endif
