/* The whole command line as one call, for main() and for tests. */
#ifndef COHORT_CLI_RUN_H
#define COHORT_CLI_RUN_H

/* Runs "cohort ARG…"; prints to stdout and stderr. Returns the exit status (cli.h). */
int cli_run(int argc, char **argv);

#endif
