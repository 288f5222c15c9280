"""Eight devices on one CPU, for the tests in this directory; they need a process of their own."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
