"""The product simulator: the real placement policies over workers whose steps take what was measured. docs/simulation.md."""
