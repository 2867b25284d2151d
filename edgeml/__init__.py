"""edgeml: data or a finished model into ONNX programs that predict and learn on small computers.

Rooms are opened on demand: importing this package imports none of them.
"""

__version__ = "0.1.0"
