"""``python -m diffcodec`` is the command ``diffcodec``."""

from diffcodec.cli import main

main()
