# Sourced by deploy/{deps,quickstart,test}: stages with a title, a log file and the time each took.
#
#   stage_init NAME          logs go to build/log/NAME-<stage>.log
#   stage TITLE LOG CMD…     runs CMD with its output in the log; on failure shows the log's end and exits
#   stage_summary            prints what each stage took; also those of a script that was started with STAGE_REPORT=$STAGE_REPORT

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LOG_DIR=$ROOT/build/log

need_root() {
	if [ "$(id -u)" != 0 ]; then
		echo "$0: needs root (packages, namespaces, /dev/kvm). Run: sudo $0" >&2
		exit 1
	fi
}

stage_init() {
	STAGE_NAME=$1
	mkdir -p "$LOG_DIR"
	if [ -z "${STAGE_REPORT:-}" ]; then
		STAGE_REPORT=$LOG_DIR/$STAGE_NAME.stages
		: >"$STAGE_REPORT"
	fi
}

# In tenths of a second: enough for people, and bash has no fractions.
stage_clock() {
	local up
	read -r up _ </proc/uptime
	up=${up%?} # 12.34 -> 12.3
	echo "${up/./}"
}

stage_seconds() {
	echo "$(($1 / 10)).$(($1 % 10)) s"
}

stage_took() {
	printf '%-46s %10s\n' "$1" "$2" >>"$STAGE_REPORT"
}

stage() {
	local title=$1 log=$LOG_DIR/$STAGE_NAME-$2.log start took rc=0
	shift 2
	printf '==> %-46s ' "$title"
	start=$(stage_clock)
	# A subshell with its own errexit: in `cmd || rc=$?` bash would ignore failures inside a function.
	set +e
	(set -e; "$@") >"$log" 2>&1 </dev/null
	rc=$?
	set -e
	took=$(stage_seconds $(($(stage_clock) - start)))
	if [ $rc != 0 ]; then
		printf 'FAILED after %s\n\nLast lines of %s:\n' "$took" "$log"
		tail -n 30 "$log"
		exit 1
	fi
	printf '%s\n' "$took"
	stage_took "$title" "$took"
}

# The same for a command whose output people want to see as it comes.
stage_shown() {
	local title=$1 start rc=0 took
	shift
	printf '==> %s\n' "$title"
	start=$(stage_clock)
	set +e
	(set -e; "$@") </dev/null
	rc=$?
	set -e
	took=$(stage_seconds $(($(stage_clock) - start)))
	stage_took "$title" "$took"
	[ $rc = 0 ] || printf '==> %s: FAILED after %s\n' "$title" "$took"
	return $rc
}

stage_summary() {
	printf '\nTime per stage:\n'
	sed 's/^/  /' "$STAGE_REPORT"
}
