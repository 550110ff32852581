"""PTX, the assembly of NVIDIA's GPUs, run on the CPU: so that what Triton's compiler made of a kernel is checked where
there is no GPU. The instructions are those that it makes for sm_80, sm_90 and sm_100; others are a :class:`FaultError`.

All threads of a block take an instruction together, as NumPy arrays of one value a thread; where a branch parts them,
those that are furthest behind go first. A block follows another. Beside the numbers, a fault is

- an access outside of the tensors, or of the shared memory that the kernel asked for;
- a race: two threads at one place between two barriers, or two blocks in one launch, of whom one writes another value
- what a matrix instruction reads without a fence since it was written in the ordinary way;
- a register that is read before it is written.

Orders that the hardware may choose otherwise are chosen by :class:`Order`: a kernel without races makes the same bits
in all of them. Not modelled: rounding within the approximate functions and the matrix units (both are exact to float32
here, but for the order of sums), caches, and time.

The rooms, each of which imports only those before it:

    basics -> program, memory -> block -> form -> operations, lanes, access, matrices -> tensor -> machine

Source: NVIDIA, Parallel Thread Execution ISA ("the ISA" from here on), whose chapters each room names.
"""

from .basics import WARP, FaultError
from .block import SIDE_BY_SIDE, Order
from .machine import launch
from .memory import Pointer
from .program import Program, parse

__all__ = ["SIDE_BY_SIDE", "WARP", "FaultError", "Order", "Pointer", "Program", "launch", "parse"]
