"""Programs compiled ahead of time for an H100 and for a TPU v5e, with neither at hand, and what they cost.

For a step that donates its parameters and its state:

    program = compile_for("h100", step, shapes, donate=(0, 1))
    program.check(array_kernels=4, ideal_bytes=bytes_of(params, state) * 2 + bytes_of(grads))
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax._src.lib import _jax, hlo
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

TARGETS = ("h100", "v5e")

# A GpuTargetConfigProto: what XLA needs to know of the device that it compiles for.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


# What an instruction does without a kernel of its own; the bodies of loops and branches are read too.
FREE = set(
    """parameter constant get-tuple-element tuple bitcast after-all while conditional call
    copy-done async-start async-update async-done""".split()
)
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%\S+ = (?P<result>.*?) (?P<opcode>[a-z][a-z0-9-]*)\(", re.M)
COMPUTATION = re.compile(r"^(?:ENTRY )?%(?P<name>\S+) \(.*?^}", re.M | re.S)


@dataclass(frozen=True)
class Program:
    """What a compiled program does, read from its optimized text.

    Attributes:
      kernels: for each fusion, and each other instruction that writes more than one element, the number of
        elements of the largest array that it writes.
      copies: copies of arrays of more than one element.
      whiles: loops.
      bytes: read and written, as the compiler counts them; the body of a loop is counted once.
      temporary: bytes of memory beside arguments and results.
      text: the optimized program.
    """

    kernels: tuple[int, ...]
    copies: int
    whiles: int
    bytes: float
    temporary: int
    text: str

    @property
    def scalar_kernels(self) -> int:
        return sum(size == 1 for size in self.kernels)

    @property
    def array_kernels(self) -> int:
        return sum(size > 1 for size in self.kernels)

    @functools.cached_property
    def step(self) -> str:
        """The program with the body of its largest loop in place of all of it: one step of training."""
        bodies = re.findall(r" while\(.*?body=%([^\s,]+)", self.text)
        return max((_alone(self.text, body) for body in bodies), key=bytes_moved)

    def check(self, *, array_kernels: int, ideal_bytes: int, traffic: float = 1.01) -> None:
        """Fail unless kernels are so few, copies and loops none, and traffic is near what there must be."""
        assert self.array_kernels <= array_kernels, f"{self.array_kernels} kernels, not {array_kernels}"
        assert (self.copies, self.whiles) == (0, 0), f"{self.copies} copies, {self.whiles} loops"
        share = self.bytes / ideal_bytes
        assert share <= traffic, f"{share:.3f} of the bytes that must move, not {traffic}"


def bytes_of(*trees: Any) -> int:
    """The bytes of every array in some trees: those that are read, and once more those that are written."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))


def read(text: str) -> dict[str, Any]:
    """Kernels, copies and loops of a program's text, but for the insides of its fusions."""
    fused = set(re.findall(r"calls=%([^\s,]+)", text))
    kernels, opcodes = [], []
    for computation in COMPUTATION.finditer(text):
        if computation["name"] in fused:
            continue
        for instruction in INSTRUCTION.finditer(computation[0]):
            shapes = re.findall(r"[a-z]+\d*\[([\d,]*)\]", instruction["result"])
            size = max((math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes), default=0)
            opcode = instruction["opcode"]
            if opcode == "fusion" or (size > 1 and opcode not in FREE):
                kernels.append(size)
            opcodes.append((opcode, size > 1))
    copies = opcodes.count(("copy", True)) + opcodes.count(("copy-start", True))
    return {
        "kernels": tuple(kernels),
        "copies": copies,
        "whiles": sum(opcode == "while" for opcode, _ in opcodes),
    }


def _alone(text: str, computation: str) -> str:
    """A program's text with another of its computations as the one that is entered."""
    head, rest = text.replace("\nENTRY %", "\n%").split("\n", 1)
    # What follows the module's name describes the arguments of the computation that was entered.
    return head.split(",")[0] + "\n" + rest.replace(f"\n%{computation} (", f"\nENTRY %{computation} (")


def bytes_moved(program: Any) -> float:
    """The bytes that an optimized program, or its text, reads and writes; the body of a loop is counted once."""
    module = hlo.hlo_module_from_text(program) if isinstance(program, str) else program
    # The one private call: a compiled CUDA program has no cost analysis of its own.
    return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)["bytes accessed"]


@functools.cache
def mesh(target: str) -> Mesh:
    """One device of the target. A compiler that is missing is an error, and never a test that is skipped."""
    if target == "h100":
        topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    else:
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return Mesh(np.array(topology.devices[:1]), ("devices",))


def compile_for(
    target: str, function: Callable, arguments: Sequence[Any], donate: Sequence[int] = ()
) -> Program:
    """Compile `function` for a target, from the shapes of its arguments.

    Donate arguments in the order of the results, parameters and state first: the other order costs copies.
    """
    on_device = NamedSharding(mesh(target), PartitionSpec())
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_device), tuple(arguments)
    )
    lowered = jax.jit(function, donate_argnums=tuple(donate)).lower(*shapes)
    # Prefetches between a TPU's two memories are not traffic that the program asks for.
    options = {"xla_msa_enable": "false"} if target == "v5e" else {}
    compiled = lowered.compile(compiler_options=options)
    (module,) = compiled.runtime_executable().hlo_modules()
    moved = compiled.cost_analysis()["bytes accessed"] if target == "v5e" else bytes_moved(module)
    text = re.sub(r"/\*.*?\*/", "", module.to_string())
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return Program(**read(text), bytes=moved, temporary=temporary, text=text)
