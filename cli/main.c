/* cohort: the command line. Everything lies in c_cli, so that tests can call it. */
#include "cli/run.h"

int main(int argc, char **argv) { return cli_run(argc, argv); }
