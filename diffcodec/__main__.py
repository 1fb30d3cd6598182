"""``python -m diffcodec`` is the command ``diffcodec``."""

from diffcodec.cli.program import main

main()
