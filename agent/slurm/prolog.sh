#!/bin/sh
# A Prolog for Slurm, run by slurmd as root before a job's first task on a node. In slurm.conf:
#   Prolog=/etc/slurm/traceml/prolog.sh
# It makes a directory for notes that belongs to the job's user, and notes whether the job asks to
# be recorded: only here Slurm 22.05 tells the comment of a job, not in the TaskProlog.
#
# Run by tests/slurm on a real cluster.

. "$(dirname "$0")/site.conf"
umask 022
note="$NOTES/${SLURM_JOB_ID:?}"
mkdir -p "$NOTES" && mkdir -m 700 "$note" 2>/dev/null || exit 0
case ",${SLURM_JOB_COMMENT:-}," in
*,traceml,*) : >"$note/asked" ;;
esac
chown -R "$SLURM_JOB_UID" "$note"
exit 0 # any other status takes the node out of service
