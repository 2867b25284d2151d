"""The contract between server and device: names, messages, blocks, manifest, signatures.

Imported by both sides, so there is one definition. No sockets, no files, no clock.
"""

from edgeml_runtime.errors import BadDigest, BadSignature, DeviceError, MalformedMessage, WireError

__all__ = ["BadDigest", "BadSignature", "DeviceError", "MalformedMessage", "WireError"]
