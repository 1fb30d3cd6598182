"""What belongs to the operating system: files, worker processes, memory."""
