#!/bin/sh
# Gathers what benchmarks.accelerator needs beyond JAX, Flax, Optax, Orbax and pytest, for a machine
# without a network: wheels for Python 3.12 on x86-64 in .wheels, which git ignores (5 MB).
#
#   sh benchmarks/wheels.sh                 here
#   python -m pip install --no-index --no-deps --target=SITE .wheels/*.whl     there, and then
#   PYTHONPATH=SITE python -m benchmarks.accelerator --minutes=9 --output=DIR
#
# PYTHON names another interpreter to download with, PYTHON_VERSION another one to download for.
set -eu
cd "$(dirname "$0")/.."
set -- ml-collections grain array-record portpicker tensorboardX
for number in 39 35 34 31 28 27 24 17; do
  platforms="${platforms:-} --platform=manylinux_2_${number}_x86_64"
done
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: \
  --python-version="${PYTHON_VERSION:-3.12}" --implementation=cp $platforms \
  --platform=manylinux2014_x86_64 --dest=.wheels "$@"
ls -l .wheels
