#!/bin/sh
# An Epilog for Slurm: folds the runs of a job whose processes could not (cancelled, out of time,
# killed), so that final_summary.json and .txt are there when the job has left the queue.
# In slurm.conf:
#   Epilog=/etc/slurm/traceml/epilog.sh
# slurmd runs it as root on each node when the processes of the job on that node are gone. All that
# touches files of the user is done as that user, for a limited time, and the status is always 0:
# any other takes the node out of service.
#
# Run by tests/slurm on a real cluster.

. "$(dirname "$0")/site.conf"
note="$NOTES/${SLURM_JOB_ID:?}"

# As the user: the directory of the runs and the names that this job gives to its runs.
# shellcheck disable=SC2016  # expanded by the inner shell
fold_as_user='
dir=$(cat "$NOTE/dir" 2>/dev/null) || dir="$WORK_DIR/traceml-runs"
fold=$(cat "$NOTE/fold" 2>/dev/null) || fold=$FOLD
cd / && [ -d "$dir" ] && [ -x "$fold" ] || exit 0
for run in "$dir/slurm-$JOB" "$dir/slurm-$JOB".* "$dir/slurm-$JOB"-*; do
    [ -d "$run" ] || continue
    spool=$(ls "$run" | grep -m 1 "\.jsonl\$") || continue
    summary="$run/final_summary.json"
    # Spools that lie on their nodes are brought into the run by a fold on each of them.
    if [ -e "$summary" ] && [ -z "$(find "$run" -name "*.jsonl" -newer "$summary")" ] &&
        ! grep -q "\"status\": \"running\"" "$summary" &&
        ! head -n 1 "$run/$spool" | grep -q "\"spool_path\""; then
        continue # the last process has done it
    fi
    "$fold" fold "$run"
done
'

job="$SLURM_JOB_ID"
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ] && [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
groups=--clear-groups
id -un "$SLURM_JOB_UID" >/dev/null 2>&1 && groups=--init-groups
timeout -k 5 "$FOLD_LIMIT_S" \
    setpriv --reuid="$SLURM_JOB_UID" --regid="$SLURM_JOB_GID" "$groups" \
    env -i PATH="$PATH:/usr/bin:/bin" NOTE="$note" FOLD="$FOLD" JOB="$job" \
    WORK_DIR="${SLURM_JOB_WORK_DIR:-/nonexistent}" \
    sh -c "$fold_as_user" >/dev/null 2>&1 </dev/null
timeout -k 1 5 rm -rf "$note"
exit 0
