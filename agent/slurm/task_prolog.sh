#!/bin/sh
# A TaskProlog for Slurm: switches the agent on in every task of a job that is to be recorded, and
# notes for the epilog where its runs go. In slurm.conf:
#   TaskProlog=/etc/slurm/traceml/task_prolog.sh
# Slurm runs it as the user before each task and before the batch script, with their environment,
# and takes over each line `export NAME=value` that it prints.
#
# Run by tests/slurm on a real cluster.

. "$(dirname "$0")/site.conf"
note="$NOTES/$SLURM_JOB_ID"
if [ "$SWITCH_ON" = always ] || [ -e "$note/asked" ]; then
    [ -n "${TRACEML_ENABLE+set}" ] || { TRACEML_ENABLE=1 && echo "export TRACEML_ENABLE=1"; }
fi
case "${TRACEML_ENABLE:-}" in
"" | 0) exit 0 ;;
esac
if [ -z "${TRACEML_DIR:-}" ]; then
    # One directory for all nodes of the job; the run in it is named after the job.
    TRACEML_DIR="${SLURM_SUBMIT_DIR:-$PWD}/traceml-runs"
    echo "export TRACEML_DIR=$TRACEML_DIR"
fi
if [ -w "$note" ]; then
    printf '%s\n' "$TRACEML_DIR" >"$note/dir.$$" && mv "$note/dir.$$" "$note/dir"
    fold=$(command -v traceml-agent) && printf '%s\n' "$fold" >"$note/fold.$$" &&
        mv "$note/fold.$$" "$note/fold"
fi
exit 0
