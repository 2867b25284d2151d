"""The whole loop on one machine, with real processes over a real broker: `edgeml demo`."""

from edgeml.demo.story import DemoOptions, run_demo

__all__ = ["DemoOptions", "run_demo"]
