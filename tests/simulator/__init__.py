"""A seeded random walk through the protocol: real machines, toy engines, a network that breaks.

    python -m tests.simulator --seeds 10000      walk through many
    python -m tests.simulator --seed 7 --trace   look at one

`world` is virtual time and processes, `network` sessions, `pool` blocks with contents, `engine` a toy that computes tokens from
those contents, `data_plane` the messages between pools, `worker` and `router` wire the real machines to them, `walk` draws a
scenario with its faults and checks what must hold.
"""
