#!/bin/sh
# A TaskProlog for Slurm: switches the agent on in every task of a job that asks for it, with
#   sbatch --comment=traceml ...
# Slurm runs it before each task and takes over each line `export NAME=value` that it prints.
# In slurm.conf: TaskProlog=/path/to/task_prolog.sh
#
# The script is run by tests/boot/test_ready_files.py; a Slurm that calls it is not.

case ",${SLURM_JOB_COMMENT:-}," in
*,traceml,*) ;;
*) exit 0 ;;
esac
echo "export TRACEML_ENABLE=1"
# One directory for all nodes of the job; the run in it is named after the job.
echo "export TRACEML_DIR=${TRACEML_DIR:-${SLURM_SUBMIT_DIR:-$PWD}/traceml-runs}"
