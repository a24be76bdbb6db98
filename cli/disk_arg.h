/* The value of `vm create --disk`: "size=1G,replicas=3" or "volume=NAME". Pure. */
#ifndef COHORT_CLI_DISK_ARG_H
#define COHORT_CLI_DISK_ARG_H

#include <jansson.h>
#include "cli/cli.h"

/* The API's object for it, owned by the caller; NULL and EXIT_USAGE in *f, with the bad part named. */
json_t *disk_arg_parse(const char *text, struct fail *f);

#endif
