#!/bin/sh
# Puts the agent into a directory that another container of the pod mounts: install.sh DIRECTORY.
# Run it with the image, and so with the Python, of the training (PYTHON, by default `python`).
# What to install can be named in TRACEML_PACKAGE, for example a wheel or a fixed version.
#
# Run by tests/boot/test_ready_files.py.
set -eu

directory=$1
python=${PYTHON:-python}
# Compiled modules fit one version of Python: the overlay checks the name of the directory.
tag=$("$python" -c 'import sys; print(sys.implementation.cache_tag + sys.abiflags)')
"$python" -m pip install --no-cache-dir --target "$directory/$tag" "${TRACEML_PACKAGE:-traceml-agent}"
ln -sfn "$tag" "$directory/current"
