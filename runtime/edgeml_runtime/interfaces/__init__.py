"""How programs on the device reach the model: HTTP on the local interface."""
