"""What the engine is compared with. Each module has the same names.

``NAME``: how tables call it. ``DEVICES``: where it runs. ``missing(device)``: None, or why it cannot run here.
``ONE_BY_ONE``: whether it dreams one rollout after another, so that it is timed on a share of the workload.
``OWN_NUMBERS``: whether it draws random numbers of its own, so that it can be checked in distribution only; the others
read the numbers that the engine has to draw (``Draws``).
``prepare(setup, device, precision)``: build it for a workload, outside the clock; the function it gives dreams the
whole workload and returns float32 [P, E], finished, on the CPU.
"""
