"""One file per stage: a plain ``run(inputs, params, out)`` and its typed parameters."""
