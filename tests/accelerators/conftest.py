"""Both compilers run on the CPU: what they need to know is set before they start."""

import os

import jax

os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    TPU_LOG_DIR="disabled",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # else a second process fails on libtpu's lock file
)
# Else the CUDA plugin looks for a driver.
jax.config.update("jax_platforms", "cpu")
# A program for a device that is not there can be written to the cache, but not read from it.
jax.config.update("jax_enable_compilation_cache", False)
