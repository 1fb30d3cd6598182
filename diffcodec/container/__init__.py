"""The layout of a file, byte by byte, without the meaning of its payloads: no numerics."""
